"""The audit as a program, over a small pool that held some of its sharers' items out."""

import json
import shutil

import pytest

from jobs import audit
from jobs.cli import guarded
from perpcs.audit.findings import from_text


@pytest.fixture(scope="module")
def audited(finished, tmp_path_factory):
    """A copy of a finished run, audited."""
    folder = tmp_path_factory.mktemp("audit") / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    argv = [str(folder), "--items", "6", "--references", "2", "--pieces", "1", "--ratios", "0.5"]
    assert guarded(lambda: audit.main(argv)) == 0
    return folder


def test_it_writes_its_numbers_and_a_section_of_the_report(audited):
    found = from_text((audited / "audit.json").read_text(), where="audit.json")
    assert [row.shared.split()[0] for row in found.rows[::2]] == ["adapter", "control", "piece", "ratio"]
    assert {row.attack for row in found.rows} == {"loss", "calibrated"}
    assert found.sharers == 4 and found.members == found.others == 4 * 6 and found.source == "made afresh"
    whole, part = found.rows[0].pieces, found.rows[-1].pieces
    assert 0 < part < whole == 8
    assert found.rows[4].pieces == 1
    assert all(0 <= row.auc_low <= row.auc <= row.auc_high <= 1 for row in found.rows)
    assert "Membership inference" in (audited / "report.html").read_text()


def test_no_words_of_users_are_in_it(audited):
    text = (audited / "audit.json").read_text()
    assert "candidate" not in text and "description" not in text
    assert json.loads(text)["version"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: has no config.yaml"),
        ([], "name an experiment folder, e.g. python -m jobs.audit runs/quickstart"),
        (["x", "--items", "0"], "invalid whole number from 1 on, value: '0'"),
        (["x", "--ratios", "2"], "invalid ratio above 0, at most 1, value: '2'"),
    ],
)
def test_bad_arguments_are_one_line(argv, message, capsys):
    assert guarded(lambda: audit.main(argv)) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_real_users_need_held_out_items(mini, tmp_path):
    cfg = mini(tmp_path, "population.source=lamp", "population.path=x")
    with pytest.raises(audit.ConfigError, match=r"pool\.holdout=0: an audit needs items"):
        audit.items_of(cfg, None, [], count=3)
