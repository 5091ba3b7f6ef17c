"""How well a predictor ranks: measures on labels that it has not seen, and how they grow with the labels it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from nasengine.seeding import generator

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Guess = Callable[[Rows, Rows], tuple[Floats, Floats]]
"""Fits to the labels of the first rows, and gives scores and standard deviations of the second ones."""

LEAST: Final = 20
"""Fewer labels are too few to hold some out."""
MEASURES: Final = ("kendall_tau", "spearman", "pearson", "precision_at_k", "regret_at_k")
_HELD, _SIZES, _CURVE_DRAWS = 5, 6, 3  # one of five is held out; sizes of the curve, and draws of each
_LAST = 3  # sizes by which the end of the curve is judged
_LITTLE, _TELLING = 0.01, 10  # of tau; labels held out below which nothing is said of it
_STREAM = 8  # of random numbers


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One part of the labels that was held out: its rows, true and guessed scores, standard deviations, (N,) each.

    Attributes:
        draw: the number of the part, from 0.
        labels: to how many others the predictor was fitted.
        measures: of the guesses; see `measure`.
    """

    draw: int
    labels: int
    rows: Rows
    truth: Floats
    scores: Floats
    deviations: Floats
    measures: dict[str, float]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        parts: fitted to all other labels, one a draw.
        curve: fitted to growing numbers of the labels, the largest last, at each the same parts.
        k: of precision@k and regret@k.
    """

    parts: tuple[HeldOut, ...]
    curve: tuple[HeldOut, ...]
    k: int

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each measure over the draws; the deviation of one draw is NaN."""
        columns = {name: [part.measures[name] for part in self.parts] for name in MEASURES}
        return {
            n: (float(np.mean(c)), float(np.std(c, ddof=1)) if len(c) > 1 else math.nan) for n, c in columns.items()
        }

    def slope(self) -> tuple[float, float, int]:
        """Rise of tau a doubling of the labels over the last sizes: mean, standard error (NaN for one draw), draws."""
        sizes = sorted({part.labels for part in self.curve})[-_LAST:]
        draws = sorted({part.draw for part in self.curve})
        slopes = []
        for draw in draws:
            points = [part for part in self.curve if part.draw == draw and part.labels >= sizes[0]]
            if len(points) > 1:
                x, y = np.log2([p.labels for p in points]), [p.measures["kendall_tau"] for p in points]
                slopes.append(float(np.polyfit(x, y, 1)[0]))
        error = float(np.std(slopes, ddof=1)) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
        return (float(np.mean(slopes)) if slopes else math.nan), error, len(slopes)

    def advice(self) -> str:
        """One sentence on whether more labels would help, as far as the curve can tell."""
        slope, error, count = self.slope()
        most = max((part.labels for part in self.curve), default=0)
        held = min((len(part.rows) for part in self.curve), default=0)
        if count < _CURVE_DRAWS or held < _TELLING:
            return (
                f"Whether more labels would help cannot be told: that takes {_CURVE_DRAWS} draws of at least "
                f"{_TELLING} labels held out each, so {_HELD * _TELLING} labels in all."
            )
        margin = float(stats.t.ppf(0.95, count - 1)) * error
        rise = f"tau changed by {slope:+.3f} ± {error:.3f} a doubling of the labels, up to {most}"
        if slope - margin > 0 and slope >= _LITTLE:
            return f"More labels would probably help: {rise}."
        if slope + margin < 2 * _LITTLE:
            return f"More labels would probably change the ranking little: {rise}."
        return f"Whether more labels would help cannot be told from {count} draws: {rise}."


def measure(truth: Floats, scores: Floats, k: int) -> dict[str, float]:
    """How well scores (N,) rank by true ones (N,), which are not all equal; equal scores count as knowing nothing.

    kendall_tau: tau-b, 1 for the true order and -1 for its reverse. spearman, pearson: correlations of ranks and of
    scores. precision_at_k: the share of the k that are guessed best whose true score is among the k best. regret_at_k:
    the best true score less the best of those k.
    """
    informed = np.ptp(scores) > 0
    found = np.argsort(-scores, kind="stable")[:k]
    least = np.sort(truth)[-k]
    return {
        "kendall_tau": float(stats.kendalltau(truth, scores).statistic) if informed else 0.0,
        "spearman": float(stats.spearmanr(truth, scores).statistic) if informed else 0.0,
        "pearson": float(np.corrcoef(truth, scores)[0, 1]) if informed else 0.0,
        "precision_at_k": float(np.mean(truth[found] >= least)),
        "regret_at_k": float(truth.max() - truth[found].max()),
    }


def curve_sizes(most: int) -> list[int]:
    """At most six numbers of labels, each about the same multiple of the one before, up to the most."""
    least = min(max(8.0, most / 16), most / 2)
    return sorted({round(size) for size in np.geomspace(least, most, _SIZES)})


def fits(labels: int, draws: int) -> int:
    """How many fits an evaluation takes at most; 0 where there are too few labels."""
    if labels < LEAST:
        return 0
    return draws + (len(curve_sizes(labels - labels // _HELD)) - 1) * min(draws, _CURVE_DRAWS)


def evaluate(
    scores: Floats, guess: Guess, draws: int, seed: int, progress: Callable[[int, int], object] = lambda done, of: None
) -> Evaluation | None:
    """Judges a predictor on random fifths of labels with these scores (N,), and its learning curve on three of them.

    None where nothing can be measured: fewer than 20 labels, or all draws had equal scores on one side.
    """
    count = len(scores)
    held = count // _HELD
    total, done, k = fits(count, draws), 0, max(1, round(held / 10))
    parts: list[HeldOut] = []
    curve: list[HeldOut] = []
    if not total:
        return None
    sizes = curve_sizes(count - held)
    orders = [torch.randperm(count, generator=generator(seed, _STREAM, draw)).numpy() for draw in range(draws)]
    for size in reversed(sizes):  # the longest fits first, so that the time left is not told too short
        for draw in range(draws if size == sizes[-1] else min(draws, _CURVE_DRAWS)):
            rows, known = orders[draw][:held], orders[draw][held : held + size]
            part = _judged(scores, guess, rows, known, draw, k)
            done += 1
            progress(done, total)
            if part is not None:
                parts += [part] if size == sizes[-1] else []
                curve += [part] if draw < _CURVE_DRAWS else []
    if not parts:
        return None
    curve.sort(key=lambda part: (part.labels, part.draw))
    return Evaluation(tuple(parts), tuple(curve), k)


def _judged(scores: Floats, guess: Guess, rows: Rows, known: Rows, draw: int, k: int) -> HeldOut | None:
    """None where the scores of one side are all equal: there is nothing to fit to, or no order to find."""
    if np.ptp(scores[rows]) == 0 or np.ptp(scores[known]) == 0:
        return None
    guessed, deviations = guess(known, rows)
    truth = scores[rows]
    return HeldOut(draw, len(known), rows, truth, guessed, deviations, measure(truth, guessed, k))


def curve_table(curve: Sequence[HeldOut]) -> str:
    """The curve as CSV: one row a fit, with all measures."""
    lines = [",".join(["labels", "draw", *MEASURES])]
    lines += [",".join(map(repr, [part.labels, part.draw, *(part.measures[n] for n in MEASURES)])) for part in curve]
    return "\n".join(lines) + "\n"
