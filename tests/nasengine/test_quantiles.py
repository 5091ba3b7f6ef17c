from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from nasengine.quantiles import Quantiles

SCORES = np.array([0.3, 0.1, 0.9, 0.1, 0.5])


def test_scores_become_the_normal_quantiles_of_their_ranks() -> None:
    quantiles = Quantiles.of(SCORES)
    np.testing.assert_allclose(quantiles.forward(SCORES), ndtri(np.array([2.5, 1.0, 4.5, 1.0, 3.5]) / 5))
    np.testing.assert_allclose(quantiles.backward(quantiles.forward(SCORES)), SCORES, rtol=1e-12)
    assert quantiles.knots.shape == (2, 4)


def test_straight_between_and_beyond() -> None:
    quantiles = Quantiles(np.array([[0.0, 1.0, 3.0], [-1.0, 0.0, 1.0]]))
    x = np.array([-1.0, 0.5, 2.0, 5.0])
    np.testing.assert_allclose(quantiles.forward(x), [-2.0, -0.5, 0.5, 2.0])
    np.testing.assert_allclose(quantiles.backward(quantiles.forward(x)), x)


def test_beyond_many_scores_the_slope_is_that_of_the_outer_tenth() -> None:
    scores = np.sort(np.random.default_rng(0).normal(size=50))
    quantiles = Quantiles.of(scores)
    steps = np.diff(quantiles.forward(np.array([scores[-1], scores[-1] + 1.0])))
    expected = np.diff(quantiles.knots[1][[-6, -1]]) / np.diff(scores[[-6, -1]])
    np.testing.assert_allclose(steps, expected)


@pytest.mark.parametrize("scores", [SCORES, np.array([1.0, 2.0]), np.r_[-1e9, np.linspace(0, 1, 30), 1e12]])
def test_both_ways_rise_strictly(scores: np.ndarray) -> None:
    quantiles = Quantiles.of(scores)
    x = np.linspace(-6, 6, 200)
    assert (np.diff(quantiles.backward(x)) > 0).all() and (quantiles.slope(x) > 0).all()
    y = np.linspace(scores.min() - 1, scores.max() + 1, 50)
    assert (np.diff(quantiles.forward(y)) > 0).all()


def test_the_slope_of_a_line() -> None:
    line = Quantiles(np.array([[0.0, 4.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(line.slope(np.array([-3.0, 0.0, 0.7, 5.0])), 2.0)


def test_ranks_alone_count() -> None:
    one, other = Quantiles.of(SCORES), Quantiles.of(np.exp(9 * SCORES) - 5)
    assert np.array_equal(one.forward(SCORES), other.forward(np.exp(9 * SCORES) - 5))
