"""Pools of another schema version: refused with one line that says what to do, and migrated by one command."""

import json
import threading

import pytest

import storage.migrate as module
from perpcs.errors import MismatchError, StoreError
from perpcs.records import Population
from storage.migrate import migrate
from storage.pool import Pool
from storage.population import read_population, write_population
from storage.recipes import RecipeStore
from storage.schema import HEADER, SCHEMA_VERSION
from storage.sharers import sharers_uri
from storage.tables import FORMAT, open_table
from storage.transfer import export_pool, import_pool
from storage.verify import verify
from storage.withdraw import withdraw


def set_version(pool, version):
    """The pool as a release of that version left it."""
    header = json.loads(pool.header.to_json()) | {"schema_version": version}
    open_table(sharers_uri(pool.uri)).update_schema_metadata({HEADER.decode(): json.dumps(header)})


def version_of(uri):
    return json.loads(open_table(sharers_uri(uri)).schema.metadata[HEADER])["schema_version"]


@pytest.fixture
def pool(tmp_path, spec, adapter):
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([adapter("amy"), adapter("bob")])
    return pool


@pytest.fixture
def old(pool):
    set_version(pool, 1)
    return pool


def test_an_older_pool_names_the_command_and_is_migrated(old, adapter, tools):
    with pytest.raises(
        MismatchError, match=r"version 1, .* needs 2; run python -m jobs.pool migrate"
    ) as told:
        Pool.open(old.uri)
    assert old.uri in str(told.value) and "\n" not in str(told.value)
    assert migrate(old.uri) == (1, SCHEMA_VERSION)
    pool = Pool.open(old.uri)
    assert pool.header == old.header
    assert pool.view(2).ids == ("amy", "bob")  # versions and tables are the same
    tools.same(pool.view().adapter("amy"), adapter("amy"))
    withdraw(pool, "dan", ahead=True)
    assert not verify(pool).problems
    assert migrate(old.uri) == (SCHEMA_VERSION, SCHEMA_VERSION)


def test_a_writer_that_has_the_old_pool_open_changes_nothing_back(old, adapter):
    migrate(old.uri)
    old.commit([adapter("cat")])
    assert version_of(old.uri) == SCHEMA_VERSION
    assert Pool.open(old.uri).committed() == {"amy", "bob", "cat"}


def test_a_newer_pool_is_refused_and_left_alone(pool):
    set_version(pool, SCHEMA_VERSION + 1)
    for call in (Pool.open, migrate):
        with pytest.raises(MismatchError, match=r"version 3, this release reads up to 2; use a newer one"):
            call(pool.uri)
    assert version_of(pool.uri) == SCHEMA_VERSION + 1


@pytest.mark.parametrize("cut_at", range(4))
def test_a_migration_cut_short_goes_on_where_it_was(old, monkeypatch, cut_at):
    """Two steps of two moves each (the change, the record), cut before any of them."""
    moves, done = iter(range(8)), []

    def move(run):
        def guarded(*args):
            if next(moves) == cut_at:
                raise KeyboardInterrupt
            return run(*args)

        return guarded

    steps = {1: lambda uri: done.append(1), 2: lambda uri: done.append(2)}
    monkeypatch.setattr(module, "SCHEMA_VERSION", 3)
    with monkeypatch.context() as patch:
        patch.setattr(module, "STEPS", {v: move(step) for v, step in steps.items()})
        patch.setattr(module, "_record", move(module._record))
        with pytest.raises(KeyboardInterrupt):
            migrate(old.uri)
    assert version_of(old.uri) == (1 if cut_at < 2 else 2)
    monkeypatch.setattr(module, "STEPS", steps)
    assert migrate(old.uri)[1] == version_of(old.uri) == 3
    assert sorted(set(done)) == [1, 2] and done[-1] == 2


def test_migrations_at_once_beside_a_writer(old, adapter):
    barrier, found = threading.Barrier(4), []

    def run(action):
        barrier.wait()
        found.append(action())

    actions = [lambda: migrate(old.uri)] * 3 + [lambda: old.commit([adapter("cat")])]
    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert Pool.open(old.uri).committed() == {"amy", "bob", "cat"}


def test_what_is_no_pool_or_damaged(tmp_path, pool):
    with pytest.raises(StoreError, match="there is no pool here"):
        migrate(str(tmp_path / "nothing"))
    open_table(sharers_uri(pool.uri)).update_schema_metadata({HEADER.decode(): "{"})
    for call in (Pool.open, migrate):
        with pytest.raises(StoreError, match=r"description is .*damaged"):
            call(pool.uri)


def test_exports_of_older_pools_are_read(tmp_path, spec, pool):
    folder = tmp_path / "export"
    export_pool(pool.view(), str(folder))
    header = json.loads((folder / "pool.json").read_text())
    (folder / "pool.json").write_text(json.dumps(header | {"schema_version": 1}))
    assert import_pool(Pool.create(str(tmp_path / "copy"), spec=spec), str(folder)) == 2
    (folder / "pool.json").write_text(json.dumps(header | {"schema_version": 99}))
    with pytest.raises(MismatchError, match="reads up to"):
        import_pool(pool, str(folder))


def test_newer_recipes_and_populations_are_refused(tmp_path):
    from storage.recipes import _SCHEMA
    from storage.tables import create_table

    recipes, people = str(tmp_path / "recipes.lance"), str(tmp_path / "population.lance")
    create_table(recipes, _SCHEMA)
    write_population(people, Population("LaMP-4", (), (), ()))
    assert RecipeStore(recipes).all() == [] and read_population(people).targets == ()
    for uri in (recipes, people):
        open_table(uri).update_schema_metadata({FORMAT.decode(): "2"})
    for call in (RecipeStore(recipes).all, lambda: read_population(people)):
        with pytest.raises(MismatchError, match="format 2, this release reads up to 1"):
            call()
