"""Labels as they come from files, checked, and the fixed split of data that have no test part."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasengine.errors import DataError
from nasengine.seeding import generator
from nasengine.task import stratified_split

_TEST_PORTION, _HOLDOUT_SEED = 0.2, 1797


def checked_labels(labels: NDArray[np.generic], classes: int | None, where: str) -> Tensor:
    """`labels` (N,) of any integer type as int64, all from 0 to `classes` - 1 (None: no upper limit).

    Raises:
        DataError: labels that are not integers or out of range; `where` begins the sentence.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where} must be a row of integers, but has {labels.dtype} of shape {labels.shape}.")
    values = labels.astype(np.int64)
    wrong = values < 0 if classes is None else (values < 0) | (values >= classes)
    if wrong.any():
        row, limit = int(wrong.argmax()), "0 or more" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{where} must be {limit}, but row {row} has {labels[row]}.")
    return torch.from_numpy(values)


def holdout(targets: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Sorted indices of a fixed stratified split: 80 % of each class for training, the rest for the test.

    Raises:
        DataError: every class is too small to give anything to the test.
    """
    train, test = stratified_split(targets, 1 - _TEST_PORTION, generator(_HOLDOUT_SEED))
    if len(test) == 0:
        raise DataError(f"{where} must have 3 or more examples of a class to split off a test part, but has fewer.")
    return train.sort().values, test.sort().values
