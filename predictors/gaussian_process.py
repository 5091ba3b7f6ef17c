"""A Gaussian process on graph features that learns how much each group of them matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
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
    products = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * (x @ y.T)
    if x is y:
        np.fill_diagonal(products, 0.0)
    return np.maximum(products, 0.0, out=products)


@dataclass(kw_only=True, eq=False, repr=False)
class GaussianProcess(Predictor):
    """Gaussian process whose kernel weighs groups of graph features; the weights have the most likely values.

    Reference: Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1 and section 5.4.1 (as
    in scikit-learn); for architectures, with a graph kernel: Ru et al., ICLR 2021, arXiv:2006.07556.

    Differs from the paper: the features are those of nasengine, not Weisfeiler-Lehman counts. Unlabelled architectures
    serve to standardise the features.
    """

    name: ClassVar[str] = "gaussian-process"

    fitted_on: int = setting(
        600, "most labels from which the weights of the groups are learned; all are used after", low=10
    )
    seed: int = setting(0, "of the choice of those labels", low=0)

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self._features = Features.fitted(pool)
        inputs = self._features(graphs).astype(np.float64)
        rows = np.random.default_rng(self.seed).permutation(len(targets))[: self.fitted_on]
        groups = self._features.groups
        start = ConstantKernel(1.0, (1e-2, 1e2)) * GroupedMatern(np.full(groups.max() + 1, 0.1), groups) + WhiteKernel(
            0.1, (1e-3, 1e1)
        )
        learned = GaussianProcessRegressor(start, alpha=1e-6).fit(inputs[rows], targets[rows])
        self._condition(learned.kernel_, inputs, targets)

    def _condition(self, kernel: Kernel, inputs: Floats, targets: Floats) -> None:
        self._process = GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None).fit(inputs, targets)

    def _predict(self, graphs: Graphs) -> tuple[Floats, Floats]:
        inputs = self._features(graphs).astype(np.float64)
        parts = [self._process.predict(inputs[s : s + 4096], return_std=True) for s in range(0, len(inputs), 4096)]
        means, deviations = (np.concatenate(side) for side in zip(*parts, strict=True))
        return means, deviations
