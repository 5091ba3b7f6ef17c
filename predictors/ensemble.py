"""The mean of a Gaussian process and gradient boosting on the same graph features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nasengine.settings import setting
from predictors._tabular import FeaturePredictor
from predictors.boosting import Boosting
from predictors.gaussian_process import GaussianProcess

Floats = NDArray[np.float64]


@dataclass(kw_only=True, eq=False, repr=False)
class Ensemble(FeaturePredictor):
    """Gaussian process and gradient boosting on one set of graph features, averaged: smooth and step-like guesses err
    in different places.

    Reference: the two members; ensembles of predictors of architectures are compared in White et al., NeurIPS 2021,
    arXiv:2104.01177.

    Differs from the paper: it has no such ensemble. The uncertainty is that of the mixture of both.
    """

    name: ClassVar[str] = "ensemble"

    boosting: float = setting(1 / 3, "weight of the boosting; the Gaussian process has the rest", low=0, high=1)
    trees: int = setting(300, "trees of a member of the boosting", low=1)
    seed: int = setting(0, "of both", low=0)

    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        self._make()
        for member in self._members.values():
            member.train(inputs, targets, groups)

    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        both = [member.guess(inputs, return_std) for member in self._members.values()]
        means, deviations = (np.stack(side) for side in zip(*both, strict=True))
        shares = np.array([[1 - self.boosting], [self.boosting]])
        mean: Floats = (shares * means).sum(axis=0)
        return mean, np.sqrt((shares * (deviations**2 + (means - mean) ** 2)).sum(axis=0))

    def fitted(self) -> dict[str, NDArray[Any]]:
        return {
            f"{name}.{key}": array for name, member in self._members.items() for key, array in member.fitted().items()
        }

    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        self._make()
        for name, member in self._members.items():
            start = f"{name}."
            own = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
            member.refit(own, groups)

    def _make(self) -> None:
        self._members: dict[str, FeaturePredictor] = {
            "process": GaussianProcess(space=self.space, shapes=self.shapes, seed=self.seed),
            "boosting": Boosting(space=self.space, shapes=self.shapes, trees=self.trees, seed=self.seed),
        }
