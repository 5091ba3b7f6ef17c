"""Small tables that come with scikit-learn: no download, a second a search."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from nasengine.data.labels import holdout
from nasengine.errors import UnknownNameError
from nasengine.task import Dataset

_CLASSES: Mapping[str, str] = MappingProxyType(
    {"iris": "load_iris", "wine": "load_wine", "breast_cancer": "load_breast_cancer"}
)
_DIABETES = "diabetes"


def load(name: str) -> Dataset:
    """Features (N, F) float32 of one of four tables, and a fixed fifth of the examples as the test part.

    iris (150 examples of 4 features, 3 classes), wine (178 of 13, 3 classes) and breast_cancer (569 of 30, 2 classes)
    are split by class. The target of diabetes (442 of 10), the progression of the disease in a year, is standardised
    by the mean and deviation of the training part: a squared error of 1 is that of always guessing the mean.

    Raises:
        UnknownNameError: no table has that name.
    """
    if name == _DIABETES:
        return _diabetes()
    if name not in _CLASSES:
        raise UnknownNameError("table of scikit-learn", name, [*_CLASSES, _DIABETES])
    from sklearn import datasets

    table = getattr(datasets, _CLASSES[name])()
    inputs, targets = torch.from_numpy(table.data.astype(np.float32)), torch.from_numpy(table.target.astype(np.int64))
    train, test = holdout(targets, name)
    return Dataset(
        name=name,
        train_inputs=inputs[train],
        train_targets=targets[train],
        test_inputs=inputs[test],
        test_targets=targets[test],
        classes=tuple(str(label) for label in table.target_names),
    )


def _diabetes() -> Dataset:
    from sklearn.datasets import load_diabetes

    features, progression = load_diabetes(return_X_y=True, scaled=False)
    inputs, raw = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(progression)
    train, test = holdout(torch.zeros(len(raw), dtype=torch.int64), _DIABETES)
    mean, std = float(raw[train].mean()), float(raw[train].std(correction=0))
    targets = ((raw - mean) / std).float()[:, None]
    return Dataset(
        name=_DIABETES,
        train_inputs=inputs[train],
        train_targets=targets[train],
        test_inputs=inputs[test],
        test_targets=targets[test],
        classes=("progression",),
        target_mean=(mean,),
        target_std=(std,),
    )
