"""Scores as quantiles of a normal distribution, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quantiles:
    """A strictly rising map of scores to normal quantiles, straight between the known scores and beyond them.

    Attributes:
        knots: (2, K): different scores, rising, and their quantiles.
    """

    knots: Floats

    @classmethod
    def of(cls, scores: Floats) -> Self:
        """The map that takes scores (N,), at least two of them different, to the quantiles of their ranks."""
        values, first = np.unique(scores, return_index=True)
        quantiles = ndtri((rankdata(scores) - 0.5) / len(scores))[first]
        return cls(np.stack([values, quantiles]))

    def forward(self, scores: Floats) -> Floats:
        return _line(scores, self.knots[0], self.knots[1])

    def backward(self, quantiles: Floats) -> Floats:
        return _line(quantiles, self.knots[1], self.knots[0])

    def slope(self, quantiles: Floats) -> Floats:
        """How much a score rises with its quantile, over a tenth of a standard deviation to both sides."""
        rise: Floats = (self.backward(quantiles + 0.1) - self.backward(quantiles - 0.1)) / 0.2
        return rise


def _line(x: Floats, xs: Floats, ys: Floats) -> Floats:
    """Linear between the points; beyond them with the mean slope of the outer tenth, so that ranks are kept."""
    outer = max(1, len(xs) // 10)
    low = (ys[outer] - ys[0]) / (xs[outer] - xs[0])
    high = (ys[-1] - ys[-1 - outer]) / (xs[-1] - xs[-1 - outer])
    inner: Floats = np.interp(x, xs, ys)
    outside: Floats = low * np.minimum(x - xs[0], 0.0) + high * np.maximum(x - xs[-1], 0.0)
    return inner + outside
