"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels, no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from nasengine.data.labels import holdout
from nasengine.task import Augment, Dataset


def load() -> Dataset:
    """Images (N, 1, 8, 8) with the values 0..16 spread over 0..255, and the fixed stratified 80/20 split."""
    rows = _rows()
    images = torch.from_numpy(np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(rows[:, -1].astype(np.int64))
    train, test = holdout(targets, "digits")
    return Dataset(
        name="digits",
        train_inputs=images[train],
        train_targets=targets[train],
        test_inputs=images[test],
        test_targets=targets[test],
        classes=tuple("0123456789"),
        augment=Augment(crop=1),
        final_cutout=0,
    )


def _rows() -> np.ndarray:
    """Shape (1797, 65), the digit last; from scikit-learn's file, as importing scikit-learn takes longer than torch."""
    package = find_spec("sklearn")
    file = Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    return np.column_stack((values, labels))
