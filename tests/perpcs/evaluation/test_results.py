import json
import subprocess
import sys

import pytest

from perpcs.errors import DataError
from perpcs.evaluation.results import (
    Choices,
    Comparison,
    Cost,
    Experiment,
    Gain,
    MethodOutput,
    Results,
    Row,
    UserSums,
    from_dict,
    read_results,
    to_dict,
    without_times,
    write_results,
)

COST = Cost(10, 100.0, 5000, 1.5)


def sample() -> Results:
    return Results(
        experiment=Experiment(
            "demo", "LaMP-2M", 0, 5, 4, 2, 2, "tiny", "abc", 3, "d1", settings={"lora.rank": "8"}
        ),
        rows=(
            Row(
                "LaMP-2M",
                "oppu",
                "OPPU",
                "method",
                "accuracy",
                0.5,
                0.4,
                0.6,
                2,
                8,
                0,
                1.0,
                0,
                9,
                1,
                2,
                0.25,
                "ü",
            ),
        ),
        comparisons=(Comparison("oppu", "adapted", "accuracy", 0.1, None, None, 0.5, 1.0, 2),),
        gains=(Gain("gradient", "accuracy", None, None, None),),
        warnings=("only 2 users",),
        choices=Choices(("u1", "u2"), ("s1",), {"gradient": ((1.0,), (0.5,))}, None),
        labels=("a", "b"),
        user_sums=(UserSums("oppu", "accuracy", ("u1", "u2"), (4, 4), ((2.0,), (2.0,))),),
        user_digests={"u1": "x", "u2": "y"},
    )


def test_round_trip(tmp_path):
    path = write_results(sample(), tmp_path / "deep" / "results.json")
    assert read_results(path) == sample()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def mutated(change):
    data = json.loads(json.dumps(to_dict(sample())))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "no such key 'extra'"),
        (lambda d: d["rows"][0].update(valeu=1), r"rows\[0\]: no such key 'valeu'"),
        (lambda d: d["rows"][0].pop("low"), r"rows\[0\]: key 'low' is missing"),
        (lambda d: d.pop("gains"), "key 'gains' is missing"),
        (lambda d: d["rows"][0].update(value="0.5"), r"value: '0.5' is not of type float"),
        (lambda d: d["rows"][0].update(users=True), "users: True is not of type int"),
        (lambda d: d["rows"][0].update(value=None), "value: None is not of type float"),
        (lambda d: d["rows"][0].update(value=float("nan")), "value: nan is not of type float"),
        (lambda d: d["rows"][0].update(role="boss"), "role: 'boss' is none of method, control, ours"),
        (lambda d: d.update(rows={}), "rows: {} is no list"),
        (lambda d: d.update(experiment=[]), r"experiment: \[\] is no object"),
        (lambda d: d.update(version=3), "version is 3"),
        (lambda d: d.pop("version"), "version is None"),
        (lambda d: d["choices"]["weights"]["gradient"].pop(), "must be 2 targets by 1 sharers"),
    ],
)
def test_anything_off_the_schema_is_refused_in_one_line(change, message):
    with pytest.raises(DataError, match=message) as caught:
        from_dict(mutated(change))
    assert "\n" not in str(caught.value)


def test_a_whole_number_may_stand_for_a_float():
    assert from_dict(mutated(lambda d: d["rows"][0].update(value=1))).rows[0].value == 1.0


def test_nan_is_not_written():
    with pytest.raises(DataError, match="nan cannot be written"):
        to_dict(Results(sample().experiment, (), gains=(Gain("m", "accuracy", float("nan"), 0.0, 0.0),)))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        read_results(tmp_path / "nothing.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"version": 1, ')
    with pytest.raises(DataError, match=r"broken\.json: cannot be read as JSON"):
        read_results(broken)


def test_without_times_drops_measured_keys_and_nothing_else():
    one, two = to_dict(sample()), to_dict(sample())
    two["rows"][0]["seconds"] = 99.0
    assert one != two
    assert without_times(one) == without_times(two)
    two["rows"][0]["value"] = 0.51
    assert without_times(one) != without_times(two)


def test_output_must_be_complete_and_without_repeats():
    with pytest.raises(DataError, match="method m: needs one prediction"):
        MethodOutput("m", 0, ("u",), ("q",), (), ("g",), COST)
    with pytest.raises(DataError, match="method m: needs one prediction"):
        MethodOutput("m", 0, ("u",), ("q",), ("a",), ("g",), COST, losses=(1.0, 2.0))
    with pytest.raises(DataError, match="answered twice"):
        MethodOutput("m", 0, ("u", "u"), ("q", "q"), ("a", "b"), ("g", "g"), COST)


def test_the_import_is_cheap():
    code = "import sys, perpcs.evaluation.results\n"
    code += "print(sorted({'torch','matplotlib','scipy','jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_of_version_1_is_read_without_what_it_did_not_know():
    data = to_dict(sample())
    for row in data["rows"]:
        for key in ("forward_flops", "backward_flops", "pool_flops", "query_tokens", "peak_memory"):
            del row[key]
    del data["user_items"]
    assert from_dict({**data, "version": 1}) == sample()
    with pytest.raises(DataError, match=r"'user_items' is missing"):
        from_dict(data)
