"""The event log in a folder and on an object store."""

import json

from jobs import events as module
from jobs.events import EventLog, read_events
from perpcs.errors import StoreError
from storage.files import walk
from storage.layout import Paths


def numbers(paths):
    return [event["n"] for event in read_events(paths)]


def test_lines_of_several_runs_in_a_folder_and_a_line_cut_off_by_a_kill(tmp_path):
    paths = Paths.of(str(tmp_path / "run"))
    assert numbers(paths) == []
    with EventLog(paths) as log:
        log.append({"n": 1, "text": "zwei Nutzer ü"})
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write('{"n": 2, "te')
    with EventLog(paths) as log:
        log.append({"n": 3})
        assert numbers(paths) == [1, 3], "at once, not at the end"


def test_a_log_that_cannot_be_written_stops_nothing_and_says_so_once(tmp_path, caplog):
    (tmp_path / "events.jsonl").mkdir()
    with EventLog(Paths.of(str(tmp_path))) as log:
        log.append({"n": 1})
        log.append({"n": 2})
    assert [record.message.split(",")[0] for record in caplog.records] == ["the event log cannot be written"]


def test_parts_on_an_object_store(s3_environment, monkeypatch, tmp_path):
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PART_BYTES", 100)
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    paths = Paths.of(f"s3://pools/{tmp_path.name}-events")
    with EventLog(paths) as log:
        for n in range(10):
            log.append({"n": n, "text": "x" * 20})
            while len(numbers(paths)) <= n:
                pass
    with EventLog(paths) as log:
        log.append({"n": 10})
    assert numbers(paths) == list(range(11))
    parts = [path.rsplit("/", 1)[-1] for path, _ in walk(paths.event_parts)]
    assert len(parts) > 3 and all(json.dumps(part).endswith('.jsonl"') for part in parts)


def test_what_could_not_be_written_is_written_with_what_comes_next(s3_environment, monkeypatch, tmp_path):
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PART_BYTES", 100)
    monkeypatch.setattr(module, "FLUSH_S", 3600.0)
    paths = Paths.of(f"s3://pools/{tmp_path.name}-ill")
    write, ill = module.write_bytes, [True, True]

    def sometimes(place, data):
        if ill and ill.pop():
            raise StoreError("the object store does not answer")
        write(place, data)

    monkeypatch.setattr(module, "write_bytes", sometimes)
    with EventLog(paths) as log:
        for n in range(6):
            log.append({"n": n, "text": "x" * 80})
            log._write_part()
    assert not ill and numbers(paths) == list(range(6))
