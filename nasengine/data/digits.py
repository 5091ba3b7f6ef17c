"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np
import torch

from nasengine.data.labels import holdout
from nasengine.task import Augment, Dataset


def load() -> Dataset:
    """Images (N, 1, 8, 8) with the values 0..16 spread over 0..255, and the fixed stratified 80/20 split."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(values * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
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
