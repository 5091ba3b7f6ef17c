"""Predictors on graph features."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasengine.encoding import Graphs
from nasengine.predictor import Predictor
from predictors._features import Features

Floats = NDArray[np.float64]


@dataclass(kw_only=True, eq=False, repr=False)
class FeaturePredictor(Predictor):
    """A regression on standardised graph features, whose pool has the unlabelled architectures too."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self._features = Features.fitted(pool)
        self.train(self._features(graphs).astype(np.float64), targets, self._features.groups)

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        return self.guess(self._features(graphs).astype(np.float64), return_std)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self._features.arrays(), **self.fitted()}

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._features = Features.restored(arrays)
        self.refit(arrays, self._features.groups)

    @abc.abstractmethod
    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        """Fits to features (N, F) in groups (F,) and targets (N,)."""

    @abc.abstractmethod
    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        """Means and standard deviations (N,) of the targets for features (N, F); without `return_std` any for these."""

    @abc.abstractmethod
    def fitted(self) -> dict[str, NDArray[Any]]:
        """What `train` learned, as arrays for `refit`."""

    @abc.abstractmethod
    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        """Puts back what `fitted` gave."""
