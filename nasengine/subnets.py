"""Judging the subnets of a supernet inside it: the numbers of the extracted network, without making one.

A subnet that inherits weights is judged by statistics of its own (`nasengine.evaluation.recalibrate`). Batches pass
through the supernet itself, under the hard mixture, some at a time: every batch norm normalises each batch by its own
moments and notes their means, by which the examples that judge are then normalised. Nothing of the supernet changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasengine.architecture import Architecture
from nasengine.errors import NasengineError
from nasengine.evaluation import evaluating
from nasengine.supernet import Supernet


class UnfitError(NasengineError):
    """A batch norm has rows that are not those of the batches; never leaves this package."""


@dataclass
class Moments:
    """Means over batches of the mean and the unbiased variance of each channel, (C,), as a batch norm keeps them."""

    mean: Tensor
    var: Tensor
    batches: int = 0


@dataclass
class Judging:
    """What the batch norms of a subnet have seen.

    Attributes:
        batches: how many are in the rows that pass now; 0 where these are judged.
        moments: of each batch norm.
    """

    batches: int = 0
    moments: dict[_BatchNorm, Moments] = field(default_factory=dict)

    def of(self, norm: _BatchNorm, x: Tensor) -> Moments:
        """The moments for the channels of (N, C, ...)."""
        if norm not in self.moments:
            kind = torch.promote_types(x.dtype, torch.float32)  # under autocast images are narrower, moments are not
            self.moments[norm] = Moments(x.new_zeros(x.shape[1], dtype=kind), x.new_ones(x.shape[1], dtype=kind))
        found = self.moments[norm]
        if len(found.mean) != x.shape[1] or (self.batches and len(x) % self.batches):
            raise UnfitError("A batch norm must have the rows of whole batches.")
        return found


_judging: ContextVar[Judging | None] = ContextVar("nasengine_judging", default=None)


def judging() -> Judging | None:
    """What a pass of now that judges a subnet has seen; None in other passes."""
    return None if torch.compiler.is_compiling() else _judging.get()


def subnet_outputs(
    supernet: Supernet, architecture: Architecture, seen: Sequence[tuple[Tensor, int]], judged: Sequence[Tensor]
) -> Iterator[Tensor]:
    """What a subnet gives for each part of the examples that judge, without gradient.

    Args:
        seen: inputs of batches of equal size, one after the other, and how many these are.
        judged: inputs.

    Raises:
        UnfitError: the rows of a batch norm are none of the inputs'.
    """
    mixture, state = supernet.hard(architecture), Judging()
    norms = _norms(supernet) if seen else {}
    with evaluating(supernet), _within(state if norms else None, norms):
        for inputs, state.batches in seen if norms else ():
            supernet(inputs, mixture)
        state.batches = 0
        for inputs in judged:
            outputs: Tensor = supernet(inputs, mixture)
            yield outputs


def _norms(network: nn.Module) -> dict[nn.Module, _BatchNorm]:
    """The batch norms whose statistics are recalibrated, by the module that is called."""
    from nasengine.layers import ElasticBatchNorm

    found: dict[nn.Module, _BatchNorm] = {}
    for module in network.modules():
        norm = module.norm if isinstance(module, ElasticBatchNorm) else module
        if isinstance(norm, _BatchNorm) and norm.track_running_stats:
            found[module] = norm
    return found


@contextmanager
def _within(state: Judging | None, norms: dict[nn.Module, _BatchNorm]) -> Iterator[None]:
    """A block in which the batch norms take what the state has in place of their statistics."""
    token = _judging.set(state)
    try:
        for module, norm in norms.items():
            forward: Callable[[Tensor], Tensor] = partial(_normalised, norm)
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in norms:
            module.__dict__.pop("forward", None)
        _judging.reset(token)


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """A batch norm of the first channels, for each batch by itself or by what was seen."""
    state = judging()
    assert state is not None
    found, count = state.of(norm, x), x.shape[1]
    weight, bias = (norm.weight[:count], norm.bias[:count]) if norm.affine else (None, None)
    if not state.batches:
        return F.batch_norm(x, found.mean, found.var, weight, bias, False, 0.0, norm.eps)
    outputs = []
    for batch in x.chunk(state.batches):
        found.batches += 1
        share = 1 / found.batches
        outputs.append(F.batch_norm(batch, found.mean, found.var, weight, bias, True, share, norm.eps))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
