import math

import numpy as np
import pytest

from perpcs.errors import ConfigError, DataError
from perpcs.evaluation.metrics import (
    GOLD_LOSS,
    METRICS,
    TASK_METRICS,
    columns,
    metric,
    rating,
    rating_errors,
    score,
    task_metrics,
)


def test_accuracy_strips_and_is_exact():
    values = score(
        ["accuracy"], [" comedy\n", "Comedy", "drama", ""], ["comedy", "comedy", " drama ", "drama"]
    )
    assert values == {"accuracy": 0.5}


def test_macro_f1_by_hand():
    golds = ["a", "a", "b", "c"]
    predictions = ["a", "b", "b", "nonsense"]
    # a: tp 1, fn 1 -> 2/3; b: tp 1, fp 1 -> 2/3; c: fn 1 -> 0; the nonsense is nobody's false positive
    assert score(["macro_f1"], predictions, golds)["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_macro_f1_counts_an_answered_label_that_is_never_gold_and_skips_one_that_never_occurs():
    values = score(["macro_f1"], ["a", "b"], ["a", "a"], labels=["a", "b", "never"])
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_macro_f1_equals_precision_and_recall_on_random_answers():
    rng = np.random.default_rng(3)
    labels = [f"l{i}" for i in range(5)]
    golds = [labels[i] for i in rng.integers(0, 5, 200)]
    predictions = [labels[i] if i < 5 else "junk" for i in rng.integers(0, 6, 200)]
    f1 = []
    for label in labels:
        hit = sum(p == g == label for p, g in zip(predictions, golds, strict=True))
        precision, recall = hit / predictions.count(label), hit / golds.count(label)
        f1.append(2 * precision * recall / (precision + recall))
    assert score(["macro_f1"], predictions, golds, labels=labels)["macro_f1"] == pytest.approx(np.mean(f1))


def test_macro_f1_of_a_gold_outside_the_labels_is_refused():
    with pytest.raises(DataError, match="gold 0 is 'x'"):
        score(["macro_f1"], ["a"], ["x"], labels=["a", "b"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("4 stars", 4.0),
        ("score: 2.5!", 2.5),
        ("five", None),
        ("", None),
        ("0", None),
        ("2019", None),
    ],
)
def test_rating_is_the_first_number_on_the_scale(text, value):
    assert rating(text) == value


def test_rating_errors_by_hand():
    # a non-number counts as the farther of 1 and 5: 5 from gold 1, 1 from gold 4, either from gold 3
    errors = rating_errors(["5", "good", "good", "none", "-3"], ["4", "1", "4", "3", "2"])
    assert errors.tolist() == [1, 4, 3, 2, 3]
    values = score(["mae", "rmse"], ["5", "good"], ["4", "1"])
    assert values["mae"] == 2.5
    assert values["rmse"] == pytest.approx(math.sqrt((1 + 16) / 2))


def test_a_gold_that_is_no_rating_is_refused():
    with pytest.raises(DataError, match="gold 1 is 'great'"):
        score(["mae"], ["1", "2"], ["3", "great"])


def longest_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def test_rouge_against_a_few_lines():
    predictions = ["the cat sat on the mat", "a b c d", "nothing shared"]
    golds = ["on the mat the cat sat down", "d c b a", "totally different words"]
    one, longest = [], []
    for prediction, gold in zip(predictions, golds, strict=True):
        p, g = prediction.split(), gold.split()
        overlap = sum(min(p.count(w), g.count(w)) for w in set(p))
        # F1 = 2 overlap / (lengths together)
        one.append(2 * overlap / (len(p) + len(g)))
        longest.append(2 * longest_common(p, g) / (len(p) + len(g)))
    values = score(["rouge_1", "rouge_l"], predictions, golds)
    assert values["rouge_1"] == pytest.approx(np.mean(one))
    assert values["rouge_l"] == pytest.approx(np.mean(longest))
    assert columns("rouge_1", predictions, golds)[:, 0] == pytest.approx(one)


def test_the_golds_losses_cannot_be_made_from_texts():
    with pytest.raises(ConfigError, match="gold_loss: cannot be made from texts"):
        columns(GOLD_LOSS, ["a"], ["a"])


@pytest.mark.parametrize("name", [name for name, made in METRICS.items() if made.columns])
def test_sums_over_parts_give_the_value_of_the_whole(name):
    rng = np.random.default_rng(0)
    golds = [str(x) for x in rng.integers(1, 6, 40)]
    predictions = [str(x) for x in rng.integers(1, 6, 40)]
    stats = columns(name, predictions, golds)
    parts = stats[:13].sum(axis=0) + stats[13:].sum(axis=0)
    whole = score([name], predictions, golds)[name]
    assert metric(name).finish(parts, np.array(40)) == pytest.approx(whole)
    stacked = metric(name).finish(np.stack([parts, stats[:13].sum(axis=0)]), np.array([40, 13]))
    alone = score([name], predictions[:13], golds[:13])[name]
    assert stacked == pytest.approx([whole, alone])


def test_every_task_has_known_metrics_and_typos_get_a_suggestion():
    for task, names in TASK_METRICS.items():
        assert task_metrics(task) == names
        assert set(names) <= set(METRICS)
    with pytest.raises(ConfigError, match="did you mean rouge_1"):
        metric("rogue_1")
    with pytest.raises(ConfigError, match="did you mean LaMP-2"):
        task_metrics("LaMP-2X")


def test_lengths_must_agree_and_nothing_is_no_score():
    with pytest.raises(DataError, match="2 predictions for 1 golds"):
        score(["accuracy"], ["a", "b"], ["a"])
    with pytest.raises(DataError, match="no queries"):
        score(["accuracy"], [], [])
