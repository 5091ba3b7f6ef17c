"""What differences between algorithms are worth: intervals against scipy's, and sentences that claim no more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nasengine.comparison import Difference, Summary, advice, differences, on_budget, told


def summary(label: str, *scores: float, seconds: float = 10.0, diverged: int = 0) -> Summary:
    return Summary(label, scores, seconds, diverged)


def test_mean_and_deviation() -> None:
    found = summary("a", 0.5, 0.6, 0.9)
    assert found.mean == pytest.approx(2 / 3) and found.deviation == pytest.approx(np.std([0.5, 0.6, 0.9], ddof=1))
    assert summary("a", 0.5).deviation is None and summary("a").mean is None


@pytest.mark.parametrize("algorithms", [2, 3, 4])
def test_intervals_are_those_of_welch_for_all_pairs_together(algorithms: int) -> None:
    rng = np.random.default_rng(algorithms)
    scores = [rng.normal(0.1 * place, 0.05 * (1 + place), size=3 + place) for place in range(algorithms)]
    found = differences([summary(str(place), *row) for place, row in enumerate(scores)])
    pairs = algorithms * (algorithms - 1) // 2
    assert len(found) == pairs
    for difference in found:
        one, other = scores[int(difference.one)], scores[int(difference.other)]
        assert int(difference.one) > int(difference.other)
        test = stats.ttest_ind(one, other, equal_var=False)
        interval = test.confidence_interval(1 - 0.05 / pairs)
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
        assert difference.mean == pytest.approx(one.mean() - other.mean())
        assert difference.told == (test.pvalue < 0.05 / pairs)


def test_a_spread_that_is_not_known_tells_nothing() -> None:
    for found in ([summary("a", 0.5), summary("b", 0.9)], [summary("a", 0.5, 0.5), summary("b", 0.9, 0.9)]):
        (difference,) = differences(found)
        assert difference == Difference("b", "a", pytest.approx(0.4)) and not difference.told
        assert told(difference, "accuracy") == "b less a: +40.00 points, of which a spread over seeds cannot be told."
    assert differences([summary("a", 0.5), summary("b")]) == []


def test_sentences() -> None:
    small, large = Difference("b", "a", 0.01, -0.02, 0.04), Difference("c", "a", -0.3, -0.4, -0.2)
    assert (
        told(small, "accuracy")
        == "b less a: +1.00 points, interval -2.00 to +4.00 points: not told apart by these seeds."
    )
    assert told(large, "negative_mse") == "c less a: -0.3, interval -0.4 to -0.2: more than seeds alone make."


def test_nothing_is_claimed_that_seeds_explain() -> None:
    found = [summary("a", 0.90, 0.92, 0.94), summary("b", 0.91, 0.93, 0.95)]
    sentences = advice(found, differences(found), "accuracy")
    assert sentences[0] == "Intervals are Welch's, which hold together with a probability of 95%."
    assert sentences[1].endswith("not told apart by these seeds.")
    assert sentences[2] == "No difference between algorithms exceeds what seeds alone make."
    half = stats.t.ppf(0.975, 4) * (2 * 0.02**2 / 3) ** 0.5
    assert sentences[3].startswith(
        f"With n = 3 that is little evidence: here a difference must be above {100 * half:.2f} points"
    )
    many = [summary(s.label, *np.tile(s.scores, 3)) for s in found]
    assert not any("little evidence" in text for text in advice(many, differences(many), "accuracy"))


def test_what_seeds_do_not_explain_is_told() -> None:
    found = [summary("a", 0.90, 0.91, 0.92), summary("b", 0.50, 0.51, 0.52, diverged=1)]
    sentences = advice(found, differences(found), "accuracy")
    assert sentences[1].endswith("more than seeds alone make.")
    assert not any(text.startswith("No difference") for text in sentences)
    assert sentences[-1] == "b diverged with 1 of its seeds, which are left out of its mean."
    one = [summary("a", 0.9), summary("b", 0.5)]
    assert advice(one, differences(one), "accuracy")[-1].startswith("With one seed nothing is known of the spread")


def test_how_equal_the_cost_was() -> None:
    found = [summary("a", 0.9, seconds=58.0), summary("b", 0.9, seconds=66.0), summary("c", seconds=float("nan"))]
    assert on_budget(found[:1], 60.0, 1, 2) == ["Seconds of a search against the budget of 60 s: a -3%."]
    sentences = on_budget(found, 60.0, 2, 2)
    assert sentences[0] == "Seconds of a search against the budget of 60 s: a -3%, b +10%."
    assert "Several searches ran at a time on 2 cores" in sentences[-1]
    assert "not quite equal" in on_budget(found, 40.0, 1, 2)[1]
    assert "on a cluster" in on_budget(found, 60.0, "ray", 2)[-1]
