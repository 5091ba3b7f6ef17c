"""Judging a supernet and its subnets on held-out data, with inherited weights and recalibrated statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.config import SearchSettings
from nasengine.cost import parameters
from nasengine.evaluation import evaluating, recalibrate, score
from nasengine.precision import at_precision
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Augment, Batch, Task

_RECALIBRATION_BATCHES = 8


class Judge:
    """Scores on the validation part of a task by its measure, higher is better.

    Args:
        task: whose measure counts.
        settings: batch size, seed, precision, and how many examples judge.
        train, valid: indices of the training set, (N,) int64: statistics come from the first, scores from the second.
        stream: of random numbers.
        device: where the networks are.
    """

    def __init__(
        self, task: Task, settings: SearchSettings, train: Tensor, valid: Tensor, stream: int, device: torch.device
    ) -> None:
        self.task, self.settings, self.valid, self.device = task, settings, valid, device
        self._batches = Batches(
            task, train, settings.batch_size, seed=settings.seed, stream=stream, augment=Augment(), device=device
        )

    def supernet(self, supernet: Supernet, mixture: Mixture) -> float:
        """Of a supernet under a mixture."""
        with evaluating(supernet):
            return score(lambda inputs: supernet(inputs, mixture), self._held_out(), self.task.measure)

    def subnet(self, supernet: Supernet, architecture: Architecture) -> float:
        """Of an architecture with the weights it has in a supernet."""
        return self.measured(supernet, architecture)[0]

    def measured(self, supernet: Supernet, architecture: Architecture) -> tuple[float, int]:
        """The score of `subnet`, and how many parameters that network has."""
        network = self.extracted(supernet, architecture)
        with evaluating(network):
            forward = partial(at_precision, self.settings.precision, network)
            return score(forward, self._held_out(), self.task.measure), parameters(network)

    def extracted(self, supernet: Supernet, architecture: Architecture) -> nn.Module:
        """The network of an architecture with inherited weights and statistics of its own."""
        network = supernet.extract(architecture)
        recalibrate(network, self._recalibration(), self.settings.precision)
        return network

    def _held_out(self) -> Iterator[Batch]:
        data, chosen = self.task.dataset, self.valid[: self.settings.eval_size]
        size = 2 * self.settings.batch_size
        return evaluation_batches(self.task, data.train_inputs[chosen], data.train_targets[chosen], size, self.device)

    def _recalibration(self) -> Iterable[Batch]:
        return (self._batches[step] for step in range(min(_RECALIBRATION_BATCHES, len(self._batches))))
