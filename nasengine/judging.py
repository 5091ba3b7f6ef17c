"""Judging a supernet and its subnets on held-out data, with inherited weights and recalibrated statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.config import SearchSettings
from nasengine.cost import parameters
from nasengine.evaluation import evaluating, recalibrate, score
from nasengine.precision import at_precision
from nasengine.sharding import is_sharded
from nasengine.subnets import UnfitError, subnet_outputs
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Augment, Batch, Task

_RECALIBRATION_BATCHES = 8
_NUMBERS = 2**14
"""In the inputs that pass through a subnet at a time, about: what it makes of them stays in the caches."""
_KEPT = 2**24
"""Most numbers of inputs that are kept between subnets."""
_TOLERANCE = 1e-2


class _Rows(NamedTuple):
    """What subnets are judged by, in the parts that pass at a time: inputs with how many batches they are, targets."""

    seen: list[tuple[Tensor, int]]
    inputs: list[Tensor]
    targets: list[Tensor]


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
        self._inside: WeakKeyDictionary[Supernet, bool] = WeakKeyDictionary()
        self._kept: _Rows | None = None
        self._batches = Batches(
            task, train, settings.batch_size, seed=settings.seed, stream=stream, augment=Augment(), device=device
        )

    def supernet(self, supernet: Supernet, mixture: Mixture) -> float:
        """Of a supernet under a mixture."""
        with evaluating(supernet):
            return score(lambda inputs: supernet(inputs, mixture), self._held_out(), self.task.measure)

    def subnet(self, supernet: Supernet, architecture: Architecture) -> float:
        """Of an architecture with the weights it has in a supernet: inside it, where that is right, else by `plain`."""
        outputs = self._outputs(supernet, architecture)
        if outputs is None:
            return self.plain(supernet, architecture)
        parts = zip(outputs, self._rows.targets, strict=True)
        return score(lambda found: found, (Batch(*part) for part in parts), self.task.measure)

    def plain(self, supernet: Supernet, architecture: Architecture) -> float:
        """The same by the extracted network, the reference."""
        network = self.extracted(supernet, architecture)
        with evaluating(network):
            forward = partial(at_precision, self.settings.precision, network)
            return score(forward, self._held_out(), self.task.measure)

    def measured(self, supernet: Supernet, architecture: Architecture) -> tuple[float, int]:
        """The score of `subnet`, and how many parameters that network has."""
        return self.subnet(supernet, architecture), parameters(supernet.extract(architecture))

    def extracted(self, supernet: Supernet, architecture: Architecture) -> nn.Module:
        """The network of an architecture with inherited weights and statistics of its own."""
        network = supernet.extract(architecture)
        recalibrate(network, self._recalibration(), self.settings.precision)
        return network

    def _outputs(self, supernet: Supernet, architecture: Architecture) -> list[Tensor] | None:
        """Those for the held-out examples, computed inside the supernet; None where that is not right.

        Whether it is right for a supernet is seen by its first subnet: a network may mix the examples of a batch.
        """
        if is_sharded() or not self._inside.get(supernet, True):
            return None
        try:
            outputs = list(subnet_outputs(supernet, architecture, self._rows.seen, self._rows.inputs))
        except UnfitError:
            self._inside[supernet] = False
            return None
        if supernet not in self._inside:
            self._inside[supernet] = self._right(supernet, architecture, torch.cat(outputs))
        return outputs if self._inside[supernet] else None

    def _right(self, supernet: Supernet, architecture: Architecture, outputs: Tensor) -> bool:
        """Whether these are, but for rounding, the outputs of the extracted network."""
        with torch.random.fork_rng(devices=[]):  # only the first subnet of a process is seen: a resumed run sees others
            network = self.extracted(supernet, architecture)
        with evaluating(network):
            precision = self.settings.precision
            expected = torch.cat([at_precision(precision, network, batch.inputs) for batch in self._held_out()])
        margin = _TOLERANCE * float(expected.abs().nan_to_num().max())
        return torch.allclose(outputs, expected, rtol=0, atol=margin, equal_nan=True)

    @property
    def _rows(self) -> _Rows:
        if self._kept is None:
            rows = self._divided()
            if sum(part.numel() for part in (*(inputs for inputs, _ in rows.seen), *rows.inputs)) > _KEPT:
                return rows
            self._kept = rows
        return self._kept

    def _divided(self) -> _Rows:
        size = self.settings.batch_size
        batches = max(1, _NUMBERS // self.task.dataset.train_inputs[0].numel() // size)
        seen, judged = [batch.inputs for batch in self._recalibration()], list(self._held_out(batches * size))
        fronts = [seen[start : start + batches] for start in range(0, len(seen), batches)]
        return _Rows(
            [(torch.cat(front), len(front)) for front in fronts],
            [batch.inputs for batch in judged],
            [batch.targets for batch in judged],
        )

    def _held_out(self, size: int = 0) -> Iterator[Batch]:
        data, chosen = self.task.dataset, self.valid[: self.settings.eval_size]
        size = size or 2 * self.settings.batch_size
        return evaluation_batches(self.task, data.train_inputs[chosen], data.train_targets[chosen], size, self.device)

    def _recalibration(self) -> Iterable[Batch]:
        return (self._batches[step] for step in range(min(_RECALIBRATION_BATCHES, len(self._batches))))
