"""A Gaussian process on graph features that learns how much each group of them matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor

from nasengine.errors import DataError
from nasengine.settings import setting
from predictors._kernel import kernel_of, learned
from predictors._tabular import FeaturePredictor

Floats = NDArray[np.float64]

_MOST: Final = 20_000


@dataclass(kw_only=True, eq=False, repr=False)
class GaussianProcess(FeaturePredictor):
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

    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        if len(targets) > _MOST:
            raise DataError(
                f"A Gaussian process must have at most {_MOST:,} labels, since its matrix has a row and a column for "
                f"each, but got {len(targets):,}; give fewer, or take the predictor 'boosting'."
            )
        rows = np.random.default_rng(self.seed).permutation(len(targets))[: self.fitted_on]
        self._condition(learned(inputs[rows], targets[rows], groups, self.prior), inputs, targets, groups)

    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        if not return_std:
            parts = [self._process.predict(inputs[s : s + 2048]) for s in range(0, len(inputs), 2048)]
            return np.concatenate(parts), np.zeros(len(inputs))
        parts = [self._process.predict(inputs[s : s + 2048], return_std=True) for s in range(0, len(inputs), 2048)]
        means, deviations = (np.concatenate(side) for side in zip(*parts, strict=True))
        return means, deviations

    def fitted(self) -> dict[str, NDArray[Any]]:
        process = self._process
        return {"theta": process.kernel_.theta, "inputs": process.X_train_, "targets": process.y_train_}

    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        self._condition(arrays["theta"], arrays["inputs"], arrays["targets"], groups)

    def _condition(self, theta: Floats, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        kernel = kernel_of(groups, theta)
        self._process = GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None).fit(inputs, targets)
