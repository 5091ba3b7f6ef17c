"""Judging a network: its score by a measure, and batch-norm statistics that fit the weights that are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasengine.measure import Measure
from nasengine.precision import Precision, at_precision
from nasengine.task import Batch


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a block; the mode of every part is put back."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training


def score(forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], measure: Measure) -> float:
    """The mean of a measure over the examples of all batches; `forward` gives outputs (batch, ...)."""
    total, count = 0.0, 0
    for inputs, targets in batches:
        total += measure(forward(inputs), targets).item()
        count += len(targets)
    return total / count


def recalibrate(network: nn.Module, batches: Iterable[Batch], precision: Precision = "float32") -> None:
    """Replaces the statistics of all batch norms by the mean over `batches`, without touching a weight.

    A subnet that inherits weights from a supernet inherits statistics of mixtures, under which it cannot be judged.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    try:
        with evaluating(network):  # dropout and the like are off
            for norm in norms:
                norm.train()
            for inputs, _ in batches:
                at_precision(precision, network, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
