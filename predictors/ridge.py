"""Ridge regression on graph features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from predictors._tabular import FeaturePredictor

Floats = NDArray[np.float64]

_STRENGTHS = 10.0 ** np.arange(-1, 6)


@dataclass(kw_only=True, eq=False, repr=False)
class RidgeRegression(FeaturePredictor):
    """Linear regression on graph features; how much it shrinks is chosen by leaving one label out. A plain baseline.

    Reference: Hoerl, Kennard, Technometrics 1970, as in scikit-learn; among predictors of architectures it is compared
    in White et al., NeurIPS 2021, arXiv:2104.01177.

    Differs from the paper: unlabelled architectures serve to standardise the features. The uncertainty is the same for
    all, the error of the labels that were left out.
    """

    name: ClassVar[str] = "ridge"

    def train(self, inputs: Floats, targets: Floats, groups: NDArray[np.int64]) -> None:
        del groups
        model = RidgeCV(_STRENGTHS).fit(inputs, targets)
        self._weights: Floats = model.coef_
        self._offset, self._error = float(model.intercept_), float(np.sqrt(-model.best_score_))

    def guess(self, inputs: Floats, return_std: bool) -> tuple[Floats, Floats]:
        means: Floats = inputs @ self._weights + self._offset
        return means, np.full(len(means), self._error)

    def fitted(self) -> dict[str, NDArray[Any]]:
        return {"weights": self._weights, "numbers": np.array([self._offset, self._error])}

    def refit(self, arrays: Mapping[str, NDArray[Any]], groups: NDArray[np.int64]) -> None:
        del groups
        self._weights = arrays["weights"]
        self._offset, self._error = arrays["numbers"].tolist()
