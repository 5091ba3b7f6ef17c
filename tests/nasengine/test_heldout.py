"""Measures of rankings against scipy and by hand, and what a learning curve may claim."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from nasengine.heldout import (
    MEASURES,
    Evaluation,
    HeldOut,
    Rows,
    curve_sizes,
    curve_table,
    evaluate,
    fits,
    measure,
)

Floats = NDArray[np.float64]


def test_measures_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    truth = np.round(rng.normal(size=50), 1)  # with ties
    scores = truth + rng.normal(size=50)
    found = measure(truth, scores, 5)
    assert tuple(found) == MEASURES
    assert found["kendall_tau"] == pytest.approx(stats.kendalltau(truth, scores, variant="b").statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, scores).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, scores).statistic)


def test_measures_by_hand() -> None:
    truth = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    found = measure(truth, np.array([0.0, 9.0, 8.0, 7.0, 1.0, 2.0]), 3)
    assert found["precision_at_k"] == pytest.approx(2 / 3) and found["regret_at_k"] == 1.0
    assert measure(truth, truth, 2) == pytest.approx(dict(zip(MEASURES, (1, 1, 1, 1, 0), strict=True)))
    assert measure(truth, -truth, 1) == pytest.approx(dict(zip(MEASURES, (-1, -1, -1, 0, 5), strict=True)))


def test_equal_guesses_know_nothing() -> None:
    found = measure(np.array([1.0, 2.0, 3.0]), np.zeros(3), 1)
    assert [found[name] for name in MEASURES] == [0.0, 0.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize("most", [16, 17, 80, 340, 20_000])
def test_sizes_of_the_curve(most: int) -> None:
    sizes = curve_sizes(most)
    assert sizes[-1] == most and sizes == sorted(set(sizes)) and 4 <= len(sizes) <= 6
    rises = [larger / smaller for smaller, larger in pairwise(sizes)]
    assert max(rises) < 1.3 * min(rises)


def _noisy(scores: Floats, gain: float = 1.0) -> tuple[list[tuple[Rows, Rows]], object]:
    calls: list[tuple[Rows, Rows]] = []

    def guess(known: Rows, held: Rows) -> tuple[Floats, Floats]:
        calls.append((known, held))
        noise = np.random.default_rng(len(calls)).normal(size=len(held)) / len(known) ** gain
        return scores[held] + 10 * noise, np.ones(len(held))

    return calls, guess


def test_parts_are_held_out() -> None:
    scores = np.random.default_rng(1).normal(size=100)
    calls, guess = _noisy(scores)
    told: list[tuple[int, int]] = []
    found = evaluate(scores, guess, 4, 3, lambda *done: told.append(done))  # type: ignore[arg-type]
    assert found is not None and len(calls) == fits(100, 4) == 4 + 5 * 3 and told[-1] == (19, 19)
    assert all(not set(known) & set(held) and len(held) == 20 for known, held in calls)
    assert [len(known) for known, _ in calls[:4]] == [80] * 4 and found.k == 2
    assert len({tuple(sorted(part.rows)) for part in found.parts}) == 4
    for part in found.parts:
        assert part.measures == measure(part.truth, part.scores, 2) and (part.truth == scores[part.rows]).all()
    assert [(part.labels, part.draw) for part in found.curve] == [(n, d) for n in curve_sizes(80) for d in range(3)]
    again = evaluate(scores, _noisy(scores)[1], 4, 3)  # type: ignore[arg-type]
    assert again is not None and again.summary() == found.summary()
    other = evaluate(scores, _noisy(scores)[1], 4, 4)  # type: ignore[arg-type]
    assert other is not None and set(other.parts[0].rows) != set(found.parts[0].rows)


def test_summary_and_table() -> None:
    scores = np.random.default_rng(1).normal(size=40)
    found = evaluate(scores, _noisy(scores)[1], 3, 0)  # type: ignore[arg-type]
    assert found is not None
    taus = [part.measures["kendall_tau"] for part in found.parts]
    assert found.summary()["kendall_tau"] == (pytest.approx(np.mean(taus)), pytest.approx(np.std(taus, ddof=1)))
    lines = curve_table(found.curve).splitlines()
    assert lines[0] == "labels,draw,kendall_tau,spearman,pearson,precision_at_k,regret_at_k"
    assert len(lines) == 1 + len(found.curve) and lines[-1].startswith("32,2,")
    assert float(lines[1].split(",")[2]) == found.curve[0].measures["kendall_tau"]
    single = evaluate(scores, _noisy(scores)[1], 1, 0)  # type: ignore[arg-type]
    assert single is not None and math.isnan(single.summary()["pearson"][1])


def test_too_few_labels() -> None:
    def never(known: Rows, held: Rows) -> tuple[Floats, Floats]:
        raise AssertionError

    assert fits(19, 5) == 0 and evaluate(np.arange(19.0), never, 5, 0) is None
    assert evaluate(np.zeros(50), never, 5, 0) is None  # nothing to fit to


def test_parts_of_equal_scores_are_left_out() -> None:
    scores = np.zeros(30)
    scores[:3] = [1.0, 2.0, 3.0]
    found = evaluate(scores, lambda known, held: (np.arange(float(len(held))), np.ones(len(held))), 6, 0)
    assert found is not None and 0 < len(found.parts) < 6
    assert all(np.ptp(part.truth) > 0 for part in found.parts)


def _curve(taus: dict[int, list[float]], held: int = 10) -> Evaluation:
    zeros = np.zeros(1)
    parts = [
        HeldOut(
            draw,
            labels,
            np.zeros(held, np.int64),
            zeros,
            zeros,
            zeros,
            {**dict.fromkeys(MEASURES, 0.0), "kendall_tau": tau},
        )
        for labels, row in taus.items()
        for draw, tau in enumerate(row)
    ]
    return Evaluation((), tuple(parts), 1)


@pytest.mark.parametrize(
    ("taus", "begins", "slope"),
    [
        (
            {50: [0.1, 0.2, 0.3], 100: [0.4, 0.5, 0.6], 200: [0.5, 0.6, 0.7], 400: [0.6, 0.7, 0.8]},
            "More labels would probably help",
            0.1,
        ),
        (
            {100: [0.80, 0.81, 0.82], 200: [0.80, 0.81, 0.821], 400: [0.80, 0.811, 0.82]},
            "More labels would probably change the ranking little",
            0.0,
        ),
        (
            {100: [0.5, 0.5, 0.5], 200: [0.5, 0.6, 0.5], 400: [0.5, 0.9, 0.6]},
            "Whether more labels would help cannot be told from 3 draws",
            0.083,
        ),
        (
            {100: [0.5], 200: [0.6], 400: [0.7]},
            "Whether more labels would help cannot be told: that takes 3 draws of at least 10 labels held out each",
            0.1,
        ),
    ],
)
def test_what_the_curve_may_claim(taus: dict[int, list[float]], begins: str, slope: float) -> None:
    found = _curve(taus)
    assert found.slope()[0] == pytest.approx(slope, abs=0.001)
    assert found.advice().startswith(begins) and found.advice().endswith(".") and found.advice().count(". ") == 0


def test_a_curve_of_few_labels_claims_nothing() -> None:
    flat = {100: [0.8, 0.8, 0.8], 200: [0.8, 0.8, 0.8], 400: [0.8, 0.8, 0.8]}
    assert _curve(flat).advice().startswith("More labels would probably change the ranking little")
    assert _curve(flat, held=9).advice() == (
        "Whether more labels would help cannot be told: that takes 3 draws of at least 10 labels held out each, so 50 "
        "labels in all."
    )
