"""Measures of success: what a network is judged by, beside the loss that it is trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import ArchitectureError, SettingError

_WORD = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN: Final = ("loss", "size")  # train_loss and test_size are columns of every run


@dataclass(frozen=True)
class Measure:
    """How good outputs are; the mean over the examples is reported, and higher is better.

    Attributes:
        name: ends the names of its columns (train_<name>, test_<name>); one that ends in "accuracy" is a share from 0
            to 1 and is shown in per cent.
        total: (outputs (B, ...), targets (B, ...)) -> the sum over the examples, a 0-dim tensor.
    """

    name: str
    total: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.name) or self.name in _TAKEN:
            raise SettingError(
                "A measure must have a name of small letters, digits and underscores other than "
                f"{' and '.join(_TAKEN)}, but got {self.name!r}; rename it."
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The total of a batch. Raises SettingError if it is not one number."""
        total = self.total(outputs, targets)
        if not isinstance(total, Tensor) or total.ndim != 0:
            came = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise SettingError(
                f"The measure {self.name!r} must give a 0-dim tensor, the sum over a batch, but gave {came}; sum it up."
            )
        return total


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many rows of `logits` (B, classes) have their maximum at the target (B,), as a 0-dim int64 tensor."""
    return (logits.argmax(dim=1) == targets).sum()


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the squared error of `outputs` (B, k), the mean over the k `targets` (B, k), summed over B; 0-dim.

    Raises:
        ArchitectureError: the shapes differ.
    """
    _check_one_a_target(outputs, targets)
    return -(outputs - targets).square().mean(dim=1).sum()


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over B and k of the squared error of `outputs` (B, k) from `targets` (B, k), a 0-dim tensor.

    Raises:
        ArchitectureError: the shapes differ.
    """
    _check_one_a_target(outputs, targets)
    return F.mse_loss(outputs, targets)


def _check_one_a_target(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:  # torch would broadcast them
        raise ArchitectureError(
            f"A network for a regression must give one number a target, {tuple(targets.shape)} for this batch, but "
            f"gave {tuple(outputs.shape)}; end it with a layer of shapes.outputs numbers."
        )


ACCURACY: Final = Measure("accuracy", count_correct)
NEGATIVE_MSE: Final = Measure("negative_mse", negative_squared_error)
