"""Weighted sums of operations whose last batch norms are not applied one by one, but folded into one scale and shift.

sum_k w_k * norm_k(z_k) = sum_k s_k * z_k + d  with  s_k = w_k * gamma_k / sqrt(var_k + eps)  and
d = sum_k (w_k * beta_k - s_k * mean_k), per channel: what a mixture of operations (arXiv:1806.09055, eq. 2) costs is
then one pass over the values, forward and backward, and nothing but the values is kept for the gradient.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import _verify_batch_size

from nasengine import launch
from nasengine.separable import is_fast
from nasengine.supernet import MixedOp, Shared, Zero, decided, once_a_call


class Unnormed(NamedTuple):
    """What an operation gives before its last batch norm, shape (N, C, H, W), with its moments per channel, shape (C,).

    Without a norm there are no moments. The variance is the biased one.
    """

    values: Tensor
    norm: nn.BatchNorm2d | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


@dataclass
class Statistics:
    """Moments of batches, to be taken into the running ones of their norms all at once."""

    found: list[tuple[nn.BatchNorm2d, Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, term: Unnormed) -> None:
        """Notes the moments of a term, if its norm keeps any. Raises ValueError for one value a channel, as torch."""
        norm, mean, var = term.norm, term.mean, term.var
        if norm is None or mean is None or var is None or not norm.training:
            return
        _verify_batch_size(list(term.values.shape))
        if norm.track_running_stats:
            self.found.append((norm, mean.detach(), var.detach(), term.values.numel() // len(mean)))

    @torch.no_grad()
    def keep(self) -> None:
        """Moves the running moments as `torch.nn.BatchNorm2d` does; the variance is the unbiased one."""
        if not self.found:
            return
        running = [cast(Tensor, norm.running_mean) for norm, *_ in self.found]
        running += [cast(Tensor, norm.running_var) for norm, *_ in self.found]
        now = [mean for _, mean, _, _ in self.found]
        now += [var * (count / (count - 1)) for _, _, var, count in self.found]
        torch._foreach_lerp_(running, now, float(self.found[0][0].momentum or 0.0))
        torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm, *_ in self.found], 1)
        self.found.clear()


def summed(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor:
    """sum_i modules[i](inputs[i]); soft mixtures as one weighted sum of all their options, where loops are compiled."""
    mixtures = [module for module in modules if isinstance(module, MixedOp)]
    weights = [decided(mixture.choice.label) for mixture in mixtures]
    soft = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(soft) < len(modules) or not is_fast(inputs[0]):
        outputs = [module(x) for module, x in zip(modules, inputs, strict=True)]
        total: Tensor = sum(outputs[1:], start=outputs[0])
        return total
    terms, places, before, statistics = [], [], 0, Statistics()
    for mixture, x in zip(mixtures, inputs, strict=True):
        for place, option in enumerate(mixture.options):
            if not isinstance(option, Zero):
                terms.append(unnormed(option, x, statistics))
                places.append(before + place)
        before += len(mixture.options)
    statistics.keep()
    return mixed(terms, torch.cat(soft)[places])


def unnormed(module: nn.Module, x: Tensor, statistics: Statistics) -> Unnormed:
    """What a module gives before its last batch norm, if it ends in one."""
    if isinstance(module, Shared):
        # x is kept with what it gave: while it lives, nothing else has its id
        return once_a_call((id(module), id(x)), lambda: (x, unnormed(module.module, x, statistics)))[1]
    if hasattr(module, "unnormed"):
        found: Unnormed = module.unnormed(x, statistics)
        return found
    if not (isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm2d)):
        return Unnormed(module(x))
    for child in module[:-1]:
        x = child(x)
    return measured(x, module[-1], statistics)


def measured(values: Tensor, norm: nn.BatchNorm2d, statistics: Statistics) -> Unnormed:
    """Values with their moments, which are noted."""
    var, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    term = Unnormed(values, norm, mean, var)
    statistics.add(term)
    return term


def mixed(terms: Sequence[Unnormed], weights: Tensor) -> Tensor:
    """The sum of weights[k] times the normed values of term k, shape (N, C, H, W); weights of shape (terms,)."""
    normed = [place for place, term in enumerate(terms) if term.norm is not None]
    bare = [place for place, term in enumerate(terms) if term.norm is None]
    channels = terms[0].values.shape[1]
    rows = [weights[bare][:, None].expand(-1, channels)] if bare else []
    shift = weights.new_zeros(channels)
    if normed:
        scale, shift = folded([terms[place] for place in normed], weights[normed][:, None])
        rows.insert(0, scale)
    return combined([terms[place].values for place in (*normed, *bare)], torch.cat(rows), shift)


def folded(terms: Sequence[Unnormed], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (terms, C) and the one shift (C,) of batch norms times weights (terms, 1).

    A norm is by the moments of its term in training, else by its running ones.
    """
    moments = [_used(term) for term in terms]
    mean, var = (torch.stack(column) for column in zip(*moments, strict=True))
    norms = [cast(nn.BatchNorm2d, term.norm) for term in terms]
    scale = weights * torch.rsqrt(var + norms[0].eps)
    if norms[0].affine:
        scale = scale * torch.stack([norm.weight for norm in norms])
    shift = -(mean * scale).sum(0)
    if norms[0].affine:
        shift = shift + (weights * torch.stack([norm.bias for norm in norms])).sum(0)
    return scale, shift


def _used(term: Unnormed) -> tuple[Tensor, Tensor]:
    norm = cast(nn.BatchNorm2d, term.norm)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return cast(Tensor, term.mean), cast(Tensor, term.var)
    return norm.running_mean, norm.running_var


def combined(values: Sequence[Tensor], scales: Tensor, shift: Tensor) -> Tensor:
    """sum_k scales[k] * values[k] + shift per channel: K of (N, C, H, W), (K, C) and (C,) give (N, C, H, W)."""
    if not is_fast(values[0]):
        return plain_combined(values, scales, shift)
    apply: Callable[..., Tensor] = _Combined.apply
    return apply(scales, shift, *values)


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scales: Tensor, shift: Tensor, *values: Tensor) -> Tensor:
        values = tuple(value.contiguous(memory_format=torch.channels_last) for value in values)
        ctx.save_for_backward(scales, shift, *values)
        total = torch.empty_like(values[0], memory_format=torch.channels_last)
        _run(scales.contiguous(), shift, values, total, [])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scales, shift, *values = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph is asked for
            inputs = [scales, shift, *values]
            with torch.enable_grad():
                outputs = plain_combined(values, scales, shift)
            return torch.autograd.grad(outputs, inputs, grad, create_graph=True)
        grads = [
            torch.empty_like(value) if needed else None
            for value, needed in zip(values, ctx.needs_input_grad[2:], strict=True)
        ]
        sums = _run(scales.contiguous(), shift, values, grad.contiguous(memory_format=torch.channels_last), grads)
        rows = sums[:, : len(shift)]
        return rows[:-1], rows[-1], *grads


_CHUNKS = 16


def _run(
    scales: Tensor, shift: Tensor, values: Sequence[Tensor], total: Tensor, grads: Sequence[Tensor | None]
) -> Tensor:
    from nasengine import vectors

    pixels, channels = total.numel() // len(shift), len(shift)
    chunks = min(_CHUNKS, pixels // 64 + 1)
    width = -(-channels // vectors.LANES) * vectors.LANES
    sums = torch.empty(chunks if grads else 0, len(values) + 1, width)
    addresses = [value.data_ptr() for value in values] + [0 if g is None else g.data_ptr() for g in grads]
    head = [0, 0, chunks, pixels, channels, len(values), scales.data_ptr(), shift.data_ptr(), total.data_ptr()]
    table = [*head, sums.data_ptr(), *addresses]
    arguments = (ctypes.c_int64 * len(table))(*table)
    _runners()[bool(grads)](ctypes.addressof(arguments), min(torch.get_num_threads(), chunks))
    return sums[0] if grads else sums


@cache
def _runners() -> tuple[Callable[[int, int], None], Callable[[int, int], None]]:
    from nasengine import mixing_kernels

    return launch._runner(mixing_kernels.forward()), launch._runner(mixing_kernels.backward())


def plain_combined(values: Sequence[Tensor], scales: Tensor, shift: Tensor) -> Tensor:
    """The same, term by term: the reference."""
    total = shift[:, None, None] + scales[0, :, None, None] * values[0]
    for scale, value in zip(scales[1:], values[1:], strict=True):
        total = total + scale[:, None, None] * value
    return total
