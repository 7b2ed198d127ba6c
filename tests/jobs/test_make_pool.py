"""The pool without the rest of the flow."""

from jobs import make_pool


def test_where_the_flow_is_finished_there_is_nothing_to_do(copy, mini, contents):
    before = contents(copy)
    make_pool.main(mini(copy))
    assert contents(copy) == before


def test_it_makes_what_serving_needs_and_no_results(copy, mini):
    import shutil

    for name in ("indexes", "results.json", "recipes.lance"):
        place = copy / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    make_pool.main(mini(copy))
    assert any((copy / "indexes").iterdir())
    assert not (copy / "results.json").exists() and not (copy / "recipes.lance").exists()
