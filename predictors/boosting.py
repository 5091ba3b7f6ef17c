"""Gradient boosting on graph features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from nasengine.settings import setting
from predictors._tabular import FeaturePredictor

Floats = NDArray[np.float64]


@dataclass(kw_only=True, eq=False, repr=False)
class Boosting(FeaturePredictor):
    """Gradient boosted trees on graph features, several times with other random features.

    Reference: Ke et al., NeurIPS 2017, as in scikit-learn; for architectures: Luo et al., arXiv:2007.04785.

    Differs from the paper: unlabelled architectures only serve to standardise the features, which trees do not need.
    """

    name: ClassVar[str] = "boosting"

    trees: int = setting(300, "trees of a member", low=1)
    lr: float = setting(0.05, "learning rate", above=0)
    leaves: int = setting(16, "most leaves of a tree", low=2)
    members: int = setting(3, "how many are averaged; their spread is the uncertainty", low=1)
    seed: int = setting(0, "of the features that a split may use", low=0)

    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        del groups
        self._inputs, self._targets = inputs, targets
        self._models = [
            HistGradientBoostingRegressor(
                max_iter=self.trees,
                learning_rate=self.lr,
                max_leaf_nodes=self.leaves,
                min_samples_leaf=min(8, 1 + len(targets) // 10),
                l2_regularization=1.0,
                max_features=0.3,
                early_stopping=False,
                random_state=1000 * self.seed + member,
            ).fit(inputs, targets)
            for member in range(self.members)
        ]

    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        guesses = np.stack([model.predict(inputs) for model in self._models])
        return guesses.mean(axis=0), guesses.std(axis=0)

    def fitted(self) -> dict[str, NDArray[Any]]:
        return {"inputs": self._inputs, "targets": self._targets}

    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        self.train(arrays["inputs"], arrays["targets"], groups)
