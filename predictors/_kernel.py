"""The kernel of graph features in groups, and how much each group matters, learned from labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

Floats = NDArray[np.float64]


class GroupedMatern(StationaryKernelMixin, NormalizedKernelMixin, Kernel):  # type: ignore[misc]
    """Matern kernel of smoothness 5/2 whose squared distance is the weighted mean of those of groups of features.

    Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.17, with r^2 = mean_g w_g |x_g - x'_g|^2,
    where |.|^2 is the mean over the features of a group.

    Args:
        weights: w_g of the groups; `weights_bounds` are those of all.
        groups: the number of the group of each feature.
    """

    def __init__(
        self, weights: Floats, groups: NDArray[np.int64], weights_bounds: tuple[float, float] | str = (1e-4, 1e3)
    ) -> None:
        self.weights, self.groups, self.weights_bounds = weights, groups, weights_bounds

    @property
    def hyperparameter_weights(self) -> Hyperparameter:
        return Hyperparameter("weights", "numeric", self.weights_bounds, np.size(self.weights))

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        weights = np.atleast_1d(self.weights)
        scale = np.sqrt(weights / np.bincount(self.groups) / len(weights))[self.groups]
        scaled = X * scale
        square = _square(scaled, scaled if Y is None else Y * scale)
        root = np.sqrt(5.0 * square)
        decay = np.exp(-root)
        kernel = (1.0 + root + 5.0 / 3.0 * square) * decay
        if not eval_gradient:
            return kernel
        slope = -5.0 / 6.0 * (1.0 + root) * decay  # by the squared distance
        parts = [scaled[:, self.groups == group] for group in range(len(weights))]
        free = not self.hyperparameter_weights.fixed
        return kernel, np.stack([slope * _square(x, x) for x in parts], axis=2) if free else np.empty(
            (*kernel.shape, 0)
        )

    def __repr__(self) -> str:
        return f"GroupedMatern({np.array2string(np.atleast_1d(self.weights), precision=3)})"


def _square(x: Floats, y: Floats) -> Floats:
    """Squared distances (N, M) of rows."""
    products: Floats = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * (x @ y.T)
    if x is y:
        np.fill_diagonal(products, 0.0)
    np.maximum(products, 0.0, out=products)
    return products


class MostLikely:
    """An optimizer for scikit-learn's Gaussian process: the hyper-parameters that are most likely with a prior.

    Their logarithms are normal around where they start: with few labels the likelihood alone would drop most groups.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, objective: Callable[..., Any], start: Floats, bounds: Floats) -> tuple[Floats, float]:
        def penalised(theta: Floats) -> tuple[float, Floats]:
            value, gradient = objective(theta, eval_gradient=True)
            away = (theta - start) / self.deviation
            return value + 0.5 * away @ away, gradient + away / self.deviation

        found = minimize(penalised, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 40})
        return found.x, float(found.fun)


def kernel_of(groups: NDArray[np.int64], theta: Floats | None = None) -> Kernel:
    """Amplitude times Matern kernel plus noise, with the hyper-parameters `theta` where they are known."""
    weights = GroupedMatern(np.full(groups.max() + 1, 0.3), groups)
    start = ConstantKernel(1.0, (1e-2, 1e2)) * weights + WhiteKernel(0.2, (1e-3, 1e1))
    return start if theta is None else start.clone_with_theta(theta)


def learned(inputs: Floats, targets: Floats, groups: NDArray[np.int64], prior: float) -> Floats:
    """The most likely hyper-parameters `theta` of `kernel_of`: logarithms of the amplitude, the weights, the noise."""
    process = GaussianProcessRegressor(kernel_of(groups), alpha=1e-6, optimizer=MostLikely(prior))
    with warnings.catch_warnings():  # a bound is a good answer: a group that tells nothing, labels without noise
        warnings.simplefilter("ignore", ConvergenceWarning)
        theta: Floats = process.fit(inputs, targets).kernel_.theta
    return theta
