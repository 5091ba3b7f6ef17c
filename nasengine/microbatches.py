"""Batches that pass through a network part by part, so that a step takes less memory.

Within `micro_batches` the outputs of a batch are computed by micro-batches and put together; the loss is of them all,
so that any loss has its value and its gradients. Of a micro-batch nothing is kept for backward: its forward pass is run
again where its gradient is due (arXiv:1604.06174), so that the activations of one of them are held at a time, for one
more forward pass. Random numbers, and the buffers that the network reads, are then those of the first time, and running
statistics move once. Gradients are exact. Batch norms take the statistics of a micro-batch, which is another search.

Algorithms know nothing of it. A graph of a gradient (`create_graph`) is right, but holds all micro-batches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nasengine.errors import DeviceMemoryError, NasengineError, SettingError
from nasengine.virtual import buffers_of, call_at, copied

_count: ContextVar[int] = ContextVar("nasengine_micro_batches", default=1)

_EXHAUSTED: Final = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|could not (create|execute) a primitive$",
    re.IGNORECASE,
)
_MARGIN: Final = 0.95  # of the room that a guess fills
_AGAIN: Final = 1.25  # times as many, at least, after a trial that took too much
_SMALL: Final = 16  # the part of a batch by which it is guessed


@contextmanager
def micro_batches(count: int) -> Iterator[None]:
    """A block in which `outputs_of` divides every batch into so many micro-batches, whose sizes differ by at most 1."""
    token = _count.set(count)
    try:
        yield
    finally:
        _count.reset(token)


def outputs_of(
    network: nn.Module, inputs: Tensor, others: Sequence[object] = (), weights: Mapping[str, Tensor] | None = None
) -> Any:
    """What `network(inputs, *others)` gives for a batch (B, ...): a tensor (B, ...) or a tuple of such.

    With `weights` the pass is a virtual one: at those weights, and without a trace in the network.
    """
    count = min(_count.get(), len(inputs))
    if count <= 1:
        return _Pass(network, others, weights)(inputs)
    outputs = []
    for part in inputs.tensor_split(count):
        passing = _Pass(network, others, weights, again=True)
        known: Any = checkpoint(passing, part, use_reentrant=False) if torch.is_grad_enabled() else passing(part)
        outputs.append(known)
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(column) for column in zip(*outputs, strict=True))
    return torch.cat(outputs)


class _Pass:
    """A pass that leaves its trace in the network the first time, unless it is virtual; then it is virtual."""

    def __init__(
        self, network: nn.Module, others: Sequence[object], weights: Mapping[str, Tensor] | None, again: bool = False
    ) -> None:
        self._network, self._others, self._weights = network, others, weights
        # in evaluation no statistics change
        buffers = buffers_of(network) if network.training and (again or weights is not None) else {}
        self._buffers = buffers if weights is not None else copied(buffers)
        self._virtual = weights is not None

    def __call__(self, inputs: Tensor) -> Any:
        if not self._virtual:
            self._virtual = True
            return self._network(inputs, *self._others)
        at = {**(self._weights or {}), **copied(self._buffers)}
        return call_at(self._network, at, (inputs, *self._others))


@dataclass
class Division:
    """Into how many micro-batches the batches of a job are divided.

    Attributes:
        examples: of a batch.
        most: the largest `count` at which no micro-batch is too small.
        norms: whether the network has batch norms, which are then over micro-batches of 2 or more.
        count: of now.
    """

    examples: int = 1
    most: int = 1
    norms: bool = False
    count: int = 1

    @classmethod
    def of(cls, network: nn.Module, examples: int) -> Division:
        """Of batches of so many examples: not divided yet."""
        norms = any(isinstance(module, _BatchNorm) for module in network.modules())
        return cls(examples, max(1, examples // (2 if norms else 1)), norms)

    def __str__(self) -> str:
        if self.count == 1:
            return f"a step of {self.examples}"
        return f"a step of {self.examples} in {self.count} micro-batches"

    def note(self) -> str:
        """What is worth telling of it."""
        norms = ": batch norms take the statistics of each" if self.norms else ""
        return f"batches of {self.examples} are evaluated in {self.count} micro-batches{norms}"

    def double(self) -> None:
        """Divides further, after a step that did not fit. Raises DeviceMemoryError where that cannot be."""
        if self.count >= self.most:
            raise exhausted(str(self))
        self.count = min(self.most, 2 * self.count)

    def fit(self, limit: int, taken: Callable[[int, int], int]) -> None:
        """Divides as little as a limit allows, by trials.

        Args:
            limit: most bytes of a step.
            taken: (examples, count) -> bytes that a step on so many examples takes in so many micro-batches.

        Raises:
            SettingError: the smallest micro-batches take more.
        """
        least = self.examples // self.most
        if (found := taken(least, 1)) > limit:
            raise _too_little(limit, found, f"micro-batches of {least}")
        self.count = self._guess(limit, taken)
        while (found := taken(self.examples, self.count)) > limit:
            if self.count >= self.most:
                raise _too_little(limit, found, str(self))
            self.count = min(self.most, math.ceil(self.count * max(_AGAIN, found / limit)))

    def _guess(self, limit: int, taken: Callable[[int, int], int]) -> int:
        """From two small batches: bytes are taken to grow by the example."""
        small = max(self.examples // self.most, self.examples // _SMALL)
        if 2 * small >= self.examples:
            return 1
        one, two = taken(small, 1), taken(2 * small, 1)
        growth = max(1.0, (two - one) / small)
        room = _MARGIN * (limit - (one - growth * small)) / growth
        return self.most if room < 1 else min(self.most, math.ceil(self.examples / room))


def _too_little(limit: int, found: int, what: str) -> SettingError:
    return SettingError(
        f"The limit must leave room for a step, but --step-memory {limit:,} is below the {found:,} bytes that {what} "
        f"would take; give more than {found}, or search a smaller space."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, NasengineError):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error)) is not None


@contextmanager
def within_memory(what: str, begun: bool = True) -> Iterator[None]:
    """A block of what cannot be divided, in a run or before it. Raises DeviceMemoryError where memory holds it not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise exhausted(what, begun) from None


def exhausted(what: str, begun: bool = True) -> DeviceMemoryError:
    """The error of a run whose work does not fit, even in the smallest micro-batches; or of one that has not begun."""
    saved = "what was saved is whole: go on with --resume where more is free, or start anew with"
    return DeviceMemoryError(
        f"The memory of the device must hold {what}, but it did not; {saved if begun else 'give'} a smaller "
        "--batch-size, a smaller space or another --device."
    )
