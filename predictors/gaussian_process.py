"""A Gaussian process on graph features that learns how much each group of them matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

from nasengine.encoding import Graphs
from nasengine.predictor import Predictor
from nasengine.settings import setting
from predictors._features import Features

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
        return Hyperparameter("weights", "numeric", self.weights_bounds, len(self.weights))

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


@dataclass(kw_only=True, eq=False, repr=False)
class GaussianProcess(Predictor):
    """Gaussian process whose kernel weighs groups of graph features; the weights have the most likely values.

    Reference: Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1 and section 5.4.1 (as
    in scikit-learn); for architectures, with a graph kernel: Ru et al., ICLR 2021, arXiv:2006.07556.

    Differs from the paper: the features are those of nasengine, not Weisfeiler-Lehman counts. Unlabelled architectures
    serve to standardise the features.
    """

    name: ClassVar[str] = "gaussian-process"

    fitted_on: int = setting(500, "most labels from which the weights of the groups are learned; all are used", low=10)
    prior: float = setting(3.0, "standard deviation of the logarithms of the weights before labels are seen", above=0)
    seed: int = setting(0, "of the choice of the labels from which the weights are learned", low=0)

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self._features = Features.fitted(pool)
        groups = self._features.groups
        inputs = self._features(graphs).astype(np.float64)
        rows = np.random.default_rng(self.seed).permutation(len(targets))[: self.fitted_on]
        weights = GroupedMatern(np.full(groups.max() + 1, 0.3), groups)
        start = ConstantKernel(1.0, (1e-2, 1e2)) * weights + WhiteKernel(0.2, (1e-3, 1e1))
        process = GaussianProcessRegressor(start, alpha=1e-6, optimizer=MostLikely(self.prior))
        self._theta: Floats = process.fit(inputs[rows], targets[rows]).kernel_.theta
        self._condition(inputs, targets)

    def _condition(self, inputs: Floats, targets: Floats) -> None:
        groups = self._features.groups
        kernel = ConstantKernel() * GroupedMatern(np.ones(groups.max() + 1), groups) + WhiteKernel()
        fixed = kernel.clone_with_theta(self._theta)
        self._process = GaussianProcessRegressor(fixed, alpha=1e-6, optimizer=None).fit(inputs, targets)

    def _predict(self, graphs: Graphs) -> tuple[Floats, Floats]:
        inputs = self._features(graphs).astype(np.float64)
        parts = [self._process.predict(inputs[s : s + 2048], return_std=True) for s in range(0, len(inputs), 2048)]
        means, deviations = (np.concatenate(side) for side in zip(*parts, strict=True))
        return means, deviations

    def _arrays(self) -> dict[str, NDArray[Any]]:
        fitted = {"theta": self._theta, "inputs": self._process.X_train_, "targets": self._process.y_train_}
        return {**self._features.arrays(), **fitted}

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._features, self._theta = Features.restored(arrays), arrays["theta"]
        self._condition(arrays["inputs"], arrays["targets"])
