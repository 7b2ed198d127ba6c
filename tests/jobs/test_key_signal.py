"""The measure of user signal as a program, over a small finished run."""

from jobs import key_signal
from jobs.cli import guarded


def test_it_prints_a_line_for_each_key_and_changes_nothing(finished, contents, capsys):
    before = contents(finished)
    assert guarded(lambda: key_signal.main([str(finished)])) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:6]] == [
        "plain, gate",
        "plain, gradient",
        "profile, gate",
        "profile, gradient",
    ]
    assert all(0 <= float(cell) <= 1 for row in rows[2:6] for cell in row[1:3])
    assert contents(finished) == before


def test_a_folder_without_an_experiment_is_one_line(tmp_path, capsys):
    assert guarded(lambda: key_signal.main([str(tmp_path)])) == 2
    assert "has no config.yaml; name the folder" in capsys.readouterr().err
