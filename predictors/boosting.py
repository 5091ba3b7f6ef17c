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
    The uncertainty is the spread of the members and, the same for all, the error of one that has not seen a fifth of
    the labels: members that differ in features alone err alike.
    """

    name: ClassVar[str] = "boosting"

    trees: int = setting(300, "trees of a member", low=1)
    lr: float = setting(0.05, "learning rate", above=0)
    leaves: int = setting(16, "most leaves of a tree", low=2)
    members: int = setting(3, "how many are averaged", low=1)
    seed: int = setting(0, "of the features that a split may use", low=0)

    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        del groups
        self._grow(inputs, targets)
        self._error = self._unseen_error(inputs, targets)

    def _unseen_error(self, inputs: Floats, targets: Floats) -> float:
        """Root of the mean square; that of knowing nothing where there are too few labels to hold some out."""
        rows = np.random.default_rng(self.seed).permutation(len(targets))
        held, known = rows[: len(rows) // 5], rows[len(rows) // 5 :]
        if not len(held):
            return 1.0
        guesses = self._model(0, inputs[known], targets[known]).predict(inputs[held])
        return float(np.sqrt(np.mean((guesses - targets[held]) ** 2)))

    def _grow(self, inputs: Floats, targets: Floats) -> None:
        self._inputs, self._targets = inputs, targets
        self._models = [self._model(member, inputs, targets) for member in range(self.members)]

    def _model(self, member: int, inputs: Floats, targets: Floats) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            max_iter=self.trees,
            learning_rate=self.lr,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=min(8, 1 + len(targets) // 10),
            l2_regularization=1.0,
            max_features=0.3,
            early_stopping=False,
            random_state=1000 * self.seed + member,
        ).fit(inputs, targets)

    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        guesses = np.stack([model.predict(inputs) for model in self._models])
        return guesses.mean(axis=0), np.hypot(guesses.std(axis=0), self._error)

    def fitted(self) -> dict[str, NDArray[Any]]:
        return {"inputs": self._inputs, "targets": self._targets, "error": np.array(self._error)}

    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        del groups
        self._grow(arrays["inputs"], arrays["targets"])
        self._error = float(arrays["error"])
