"""The kernel of groups of features, and the most likely weights of its groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from predictors._kernel import GroupedMatern, MostLikely, kernel_of, learned

Floats = NDArray[np.float64]

GROUPS = np.array([0, 0, 1, 2, 2, 2])
WEIGHTS = np.array([0.4, 2.0, 0.05])


def points(count: int, seed: int = 0, features: int = 6) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, features))


def test_symmetric_positive_definite_with_ones_on_the_diagonal() -> None:
    kernel, x = GroupedMatern(WEIGHTS, GROUPS), points(20)
    matrix = kernel(x)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.array_equal(np.diag(matrix), np.ones(20)) and np.array_equal(kernel.diag(x), np.ones(20))
    assert np.linalg.eigvalsh(matrix).min() > 0 and kernel.is_stationary()
    np.testing.assert_allclose(kernel(x, points(7, 1))[3, 5], kernel(points(7, 1), x)[5, 3])
    np.testing.assert_allclose(kernel(x, x.copy()), matrix, atol=1e-7)


def test_the_definition() -> None:
    one, other = points(2)
    square = sum(weight * ((one - other)[group == GROUPS] ** 2).mean() for group, weight in enumerate(WEIGHTS)) / len(
        WEIGHTS
    )
    root = np.sqrt(5 * square)
    expected = (1 + root + root**2 / 3) * np.exp(-root)
    np.testing.assert_allclose(GroupedMatern(WEIGHTS, GROUPS)(one[None], other[None]), [[expected]])


@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_one_group_is_the_ordinary_kernel(weight: float) -> None:
    x, y = points(10), points(4, 1)
    kernel = GroupedMatern(np.array([weight]), np.zeros(6, np.int64))
    plain = Matern(length_scale=np.sqrt(6 / weight), nu=2.5)
    np.testing.assert_allclose(kernel(x, y), plain(x, y), atol=1e-12)
    again = kernel.clone_with_theta(kernel.theta)  # scikit-learn makes the one weight a number
    assert again.hyperparameter_weights.n_elements == 1
    np.testing.assert_allclose(again(x, y), kernel(x, y))


@pytest.mark.parametrize("groups", [GROUPS, np.zeros(6, np.int64)], ids=["several", "one"])
def test_the_gradient_agrees_with_finite_differences(groups: NDArray[np.int64]) -> None:
    x = points(8)
    kernel = kernel_of(groups)
    theta = kernel.theta + np.linspace(-0.5, 0.5, len(kernel.theta))
    _, gradient = kernel.clone_with_theta(theta)(x, eval_gradient=True)
    assert gradient.shape == (8, 8, len(theta))
    for place in range(len(theta)):
        step = np.eye(len(theta))[place] * 1e-6
        sides = [kernel.clone_with_theta(theta + sign * step)(x) for sign in (1, -1)]
        np.testing.assert_allclose(gradient[:, :, place], (sides[0] - sides[1]) / 2e-6, atol=1e-8)


def test_no_gradient_where_the_weights_are_fixed() -> None:
    kernel = GroupedMatern(WEIGHTS, GROUPS, "fixed")
    assert kernel(points(5), eval_gradient=True)[1].shape == (5, 5, 0) and kernel.n_dims == 0


def test_the_mode_of_a_known_posterior() -> None:
    """A normal likelihood around 3 with deviation 1 and a normal prior around 1 with deviation 2: 2.6."""

    def likelihood(theta: Floats, eval_gradient: bool) -> tuple[float, Floats]:
        assert eval_gradient
        return float(0.5 * ((theta - 3.0) ** 2).sum()), theta - 3.0

    start, bounds = np.array([1.0, 1.0]), np.array([[-10.0, 10.0], [-10.0, 2.0]])
    found, value = MostLikely(2.0)(likelihood, start, bounds)
    np.testing.assert_allclose(found, [2.6, 2.0], atol=1e-5)
    assert value == pytest.approx(0.5 * 0.4**2 + 0.5 * 0.8**2 + 0.5 + 0.5 * 0.5**2, abs=1e-6)


def test_what_is_learned_is_the_mode_of_the_posterior() -> None:
    x = points(40)
    y = np.sin(x[:, 2]) + 0.1 * np.random.default_rng(5).normal(size=40)
    prior, start = 2.0, kernel_of(GROUPS).theta
    process = GaussianProcessRegressor(kernel_of(GROUPS), alpha=1e-6, optimizer=None).fit(x, y)

    def posterior(theta: Any) -> float:
        away = (theta - start) / prior
        return float(-process.log_marginal_likelihood(theta) + 0.5 * away @ away)

    theta = learned(x, y, GROUPS, prior)
    again = minimize(posterior, theta, bounds=process.kernel_.bounds, method="L-BFGS-B")
    assert posterior(theta) < again.fun + 1e-3
    assert posterior(theta) < posterior(start) - 1.0
    weights = np.exp(theta[1:-1])
    assert weights[1] > 3 * weights[0] and weights[1] > 3 * weights[2]


def test_a_bound_is_no_warning() -> None:
    x = points(60)
    with np.errstate(all="raise"):
        theta = learned(x, x[:, 2], GROUPS, 10.0)
    assert theta[-1] == pytest.approx(np.log(1e-3))
