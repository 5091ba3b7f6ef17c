"""Ridge regression on graph features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from nasengine.encoding import Graphs
from nasengine.predictor import Predictor
from predictors._features import Features

Floats = NDArray[np.float64]

_STRENGTHS = 10.0 ** np.arange(-1, 6)


@dataclass(kw_only=True, eq=False, repr=False)
class RidgeRegression(Predictor):
    """Linear regression on graph features; how much it shrinks is chosen by leaving one label out. A plain baseline.

    Reference: Hoerl, Kennard, Technometrics 1970, as in scikit-learn; among predictors of architectures it is compared
    in White et al., NeurIPS 2021, arXiv:2104.01177.

    Differs from the paper: unlabelled architectures serve to standardise the features. The uncertainty is the same for
    all, the error of the labels that were left out.
    """

    name: ClassVar[str] = "ridge"

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self._features = Features.fitted(pool)
        inputs = self._features(graphs).astype(np.float64)
        model = RidgeCV(_STRENGTHS).fit(inputs, targets)
        self._weights, self._offset = model.coef_, float(model.intercept_)
        self._error = float(np.sqrt(-model.best_score_))

    def _predict(self, graphs: Graphs) -> tuple[Floats, Floats]:
        means: Floats = self._features(graphs) @ self._weights + self._offset
        return means, np.full(len(means), self._error)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        numbers = np.array([self._offset, self._error])
        return {**self._features.arrays(), "weights": self._weights, "numbers": numbers}

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._features, self._weights = Features.restored(arrays), arrays["weights"]
        self._offset, self._error = arrays["numbers"].tolist()
