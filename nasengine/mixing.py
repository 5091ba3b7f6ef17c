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
from itertools import groupby
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

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


@runtime_checkable
class EndsInNorm(Protocol):
    """A module that can leave its last batch norm to others."""

    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed: ...


@dataclass
class Statistics:
    """Moments of batches, to be taken into the running ones of their norms all at once."""

    found: list[tuple[nn.BatchNorm2d, Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, term: Unnormed) -> None:
        """Notes the moments of a term, if its norm keeps any. Raises ValueError for one value a channel, as torch."""
        norm, mean, var = term.norm, term.mean, term.var
        if norm is None or mean is None or var is None or not norm.training:
            return
        if term.values.numel() == len(mean):
            norm(term.values)  # refuses it
        if norm.track_running_stats:
            self.found.append((norm, mean.detach(), var.detach(), term.values.numel() // len(mean)))

    @torch.no_grad()
    def keep(self) -> None:
        """Moves the running moments as `torch.nn.BatchNorm2d` does; the variance is the unbiased one."""
        if not self.found:
            return
        torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm, *_ in self.found], 1)
        for factor, found in groupby(self.found, key=lambda kept: _factor(kept[0])):
            norms, means, variances, counts = zip(*found, strict=True)
            running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
            unbiased = [var * (count / (count - 1)) for var, count in zip(variances, counts, strict=True)]
            torch._foreach_lerp_(running, [*means, *unbiased], factor)
        self.found.clear()


def _factor(norm: nn.BatchNorm2d) -> float:
    """How far the running moments move; without a momentum they are means over all batches so far."""
    return 1 / int(cast(Tensor, norm.num_batches_tracked)) if norm.momentum is None else float(norm.momentum)


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
    if isinstance(module, EndsInNorm):
        return module.unnormed(x, statistics)
    *before, last = module if isinstance(module, nn.Sequential) else [module]
    if not isinstance(last, nn.BatchNorm2d):
        return Unnormed(module(x))
    for child in before:
        x = child(x)
    return measured(x, last, statistics)


def measured(values: Tensor, norm: nn.BatchNorm2d, statistics: Statistics) -> Unnormed:
    """Values with their moments, which are noted; without them where the norm takes its running ones."""
    if not norm.training and norm.running_mean is not None:
        return Unnormed(values, norm)
    term = Unnormed(values, norm, *moments(values))
    statistics.add(term)
    return term


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of values (N, C, H, W)."""
    if is_fast(values):
        apply: Callable[..., tuple[Tensor, Tensor]] = _Moments.apply
        return apply(values)
    var, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    return mean, var


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        pixels, channels = values.numel() // values.shape[1], values.shape[1]
        ends = torch.arange(_chunks(pixels) + 1, dtype=torch.float64).mul(pixels).div(_chunks(pixels)).floor()
        sums = torch.empty(_chunks(pixels), _width(channels) // _lanes(), 2, _lanes())
        _run("moments", [_dense(values)], sums)
        means, squares = sums.transpose(1, 2).flatten(2)[..., :channels].double().unbind(1)
        counts = ends.diff()[:, None]
        mean = (counts * means).sum(0) / pixels
        var = (squares + counts * (means - mean).square()).sum(0) / pixels
        found = mean.float(), var.float()
        ctx.save_for_backward(values, found[0])
        return found

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        """d mean = 1 / P and d var = 2 (value - mean) / P for each of P pixels."""
        values, mean = ctx.saved_tensors
        pixels = values.numel() // values.shape[1]
        slope = grad_var * (2 / pixels)
        return combined([values], slope[None], grad_mean / pixels - slope * mean)


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

    A norm is by the moments of its term in training, else by its running ones. All have one eps, and all or none of
    them learned scales.
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
        ctx.save_for_backward(scales, shift, *values)
        total = torch.empty_like(values[0], memory_format=torch.channels_last)
        _run("forward", [_dense(value) for value in values], None, scales.contiguous(), shift.contiguous(), total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scales, shift, *values = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph is asked for
            inputs = [tensor for tensor, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True) if need]
            found = iter(torch.autograd.grad(plain_combined(values, scales, shift), inputs, grad, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        grads = [
            torch.empty_like(value, memory_format=torch.channels_last) if need else None
            for value, need in zip(values, ctx.needs_input_grad[2:], strict=True)
        ]
        channels = len(shift)
        sums = torch.empty(_chunks(grad.numel() // channels), len(values) + 1, _width(channels))
        dense = [_dense(value) for value in values]
        _run("backward", dense, sums, scales.contiguous(), shift.contiguous(), _dense(grad), grads)
        of_scales, of_shift = sums[0, :-1, :channels], sums[0, -1, :channels]
        return of_scales, of_shift, *grads


def _dense(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)


def _chunks(pixels: int) -> int:
    """Parts that threads take: a fixed number, so that the bits do not depend on the threads."""
    return min(16, pixels // 64 + 1)


def _lanes() -> int:
    from nasengine.kernels.vectors import LANES

    return LANES


def _width(channels: int) -> int:
    """Channels in whole vectors."""
    return -(-channels // _lanes()) * _lanes()


def _run(
    kernel: str,
    values: Sequence[Tensor],
    sums: Tensor | None,
    scales: Tensor | None = None,
    shift: Tensor | None = None,
    total: Tensor | None = None,
    grads: Sequence[Tensor | None] = (),
) -> None:
    """Runs a kernel of `nasengine.kernels.mixing` on images in channels-last, with the table that it reads."""
    channels = values[0].shape[1]
    pixels = values[0].numel() // channels
    given = (scales, shift, total, sums, *values, *grads)
    table = [0, 0, _chunks(pixels), pixels, channels, len(values), *(0 if t is None else t.data_ptr() for t in given)]
    arguments = (ctypes.c_int64 * len(table))(*table)
    _runner(kernel)(ctypes.addressof(arguments), min(torch.get_num_threads(), _chunks(pixels)))


@cache
def _runner(kernel: str) -> Callable[[int, int], None]:
    from nasengine import kernels

    addresses = {
        "forward": kernels.mixing_forward_address,
        "backward": kernels.mixing_backward_address,
        "moments": kernels.moments_address,
    }
    return launch.runner(addresses[kernel]())


def plain_combined(values: Sequence[Tensor], scales: Tensor, shift: Tensor) -> Tensor:
    """The same, term by term: the reference."""
    total = shift[:, None, None] + scales[0, :, None, None] * values[0]
    for scale, value in zip(scales[1:], values[1:], strict=True):
        total = total + scale[:, None, None] * value
    return total
