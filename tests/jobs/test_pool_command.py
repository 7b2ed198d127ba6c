"""`python -m jobs.pool`: every command, on a small pool, and its answers to mistakes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.pool import main
from perpcs.records import Recipe
from storage.index import PoolIndex
from storage.pool import Pool
from storage.recipes import RecipeStore

_where = Path(__file__).parents[1] / "storage" / "conftest.py"
_spec = importlib.util.spec_from_file_location("small_pools", _where)
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)


@pytest.fixture
def uri(tmp_path):
    pool = Pool.create(str(tmp_path / "pool"), spec=small.make_spec())
    for user_id in ("amy", "bob"):
        pool.commit([small.make_adapter(user_id, pool.spec)])
    return pool.uri


@pytest.fixture
def run(capsys):
    def run(*argv, status=0):
        assert main(argv) == status
        out, err = capsys.readouterr()
        if status == 2:
            assert err.count("\n") == 1
            return err
        return json.loads(out)

    return run


def test_a_pools_whole_life(tmp_path, uri, run):
    folder, recipes = str(tmp_path / "index"), str(tmp_path / "recipes.lance")
    view = Pool.open(uri).view()
    PoolIndex.open(view, key="gate", folder=folder).build()
    places = len(view.spec.projections)
    for user_id, ordinal in (("x", 0), ("y", 1)):
        ordinals, codes = np.full((places, 1), ordinal, np.uint16), np.full((places, 1), 127, np.int8)
        recipe = Recipe(user_id, "gradient", "base-1", view.version, "concat", ordinals, codes, 1.0)
        RecipeStore(recipes).put([recipe])

    assert run("stats", uri)["sharers"] == 2
    assert run("verify", uri)["problems"] == []
    assert run("migrate", uri) == {"schema_version_before": 2, "now": 2}
    assert run("tag", uri, "first", "--version", "2") == {"tag": "first", "version": 2}
    assert run("diff", uri, "first", "3")["added"] == ["bob"]
    assert run("diff", uri, "first")["added"] == ["bob"]
    assert run("compact", uri)["sharers.lance"]["after"] == 1
    done = run("withdraw", uri, "bob", "--recipes", recipes)
    assert done["recipes"] == [{"user": "y", "method": "gradient"}]
    assert run("cleanup", uri, "--grace", "0", "--index", folder)["erased"]["found"] == []
    assert not list(Path(folder).rglob("*.faiss"))
    assert run("verify", uri, "--index", folder)["problems"] == []
    assert run("stale", uri, recipes)["recipes"] == [{"user": "y", "method": "gradient"}]
    done = run("mend", uri, recipes)
    assert (done["mended"], done["assemble_anew"]) == ([], [{"user": "y", "method": "gradient"}])
    assert run("stats", uri)["erased"] == 1
    assert run("withdraw", uri, "zoe", "--ahead")["withdrawn"] == "zoe"
    assert run("stats", uri)["erased"] == 1
    assert run("export", uri, str(tmp_path / "export"))["sharers"] == 1
    assert run("import", str(tmp_path / "copy"), str(tmp_path / "export"))["added"] == 1
    assert Pool.open(str(tmp_path / "copy")).committed() == {"amy"}


def test_damage_is_exit_status_1(uri, run):
    path = next(Path(uri, "pieces_mlp_down_proj.lance", "data").iterdir())
    data = path.read_bytes()
    samples = [
        small.make_adapter(i, small.make_spec()).pieces["model.layers.0.mlp.down_proj"].b
        for i in ("amy", "bob")
    ]
    at = max(data.find(sample.tobytes()[:32]) for sample in samples)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert "is damaged" in run("verify", uri, status=1)["problems"][0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "required: COMMAND; see --help"),
        (("fly", "POOL"), "invalid choice: 'fly'"),
        (("stats", "nowhere"), "nowhere: there is no pool here"),
        (("diff", "POOL", "2", "77"), "no version 77"),
        (("diff", "POOL", "2", "paper"), "no tag 'paper'"),
        (("withdraw", "POOL", "nobody"), "no sharer 'nobody'"),
        (("tag", "POOL", "7"), "must be a word"),
        (("import", "POOL", "nowhere"), "no pool.json"),
        (("migrate", "nowhere"), "nowhere: there is no pool here"),
        (("export", "POOL", "POOL"), "export to a new folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(uri, run, argv, words):
    assert words in run(*(uri if word == "POOL" else word for word in argv), status=2)


def test_help_needs_no_pool(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in (
        "stats",
        "verify",
        "diff",
        "tag",
        "compact",
        "cleanup",
        "withdraw",
        "migrate",
        "stale",
        "mend",
        "export",
        "import",
    ):
        assert name in text
        assert main([name, "--help"]) == 0
