"""A convolution with its batch norm and activation: in training the last two are one pass, where loops are compiled.

PyTorch runs them one after the other, and cuts the learned scales of elastic channels out of their tensors; here the
loops (`nasengine.kernels.batch_norm`) read the first ones of a tensor. Everything else runs the modules, the reference:
evaluation but that of `nasengine.subnets`, and what `nasengine.separable.is_fast` leaves out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import launch
from nasengine.elastic import active
from nasengine.layers import ElasticBatchNorm2d
from nasengine.separable import fresh, graph_of_gradients, is_fast, is_ordinary
from nasengine.subnets import judging

_ACTIVATIONS: Final[dict[type[nn.Module] | None, int]] = {None: 0, nn.ReLU: 1, nn.Hardswish: 2}
"""As `nasengine.kernels.batch_norm` numbers them."""


class ConvNorm(nn.Sequential):
    """A convolution, its batch norm, and a rectifier, a hardswish or nothing: (batch, channels, height, width)."""

    plain = nn.Sequential  # computes the same: an exported network has this in its place

    def forward(self, x: Tensor) -> Tensor:
        convolution, module, *rest = self
        x = convolution(x)
        norm, activation = _fused(module, rest, x), type(rest[0]) if rest else None
        if norm is not None and norm.training:
            return normalised(x, norm, activation)
        if norm is not None:
            return judged(x, norm, activation)
        x = module(x)
        for activation_of in rest:
            x = activation_of(x)
        return x


def _fused(module: nn.Module, rest: list[nn.Module], x: Tensor) -> nn.BatchNorm2d | None:
    """The norm, if the compiled loops can have it: in training or a pass that judges, with learned scales."""
    state = judging()
    if not (torch.is_grad_enabled() or state is not None) or not is_fast(x) or x.numel() <= x.shape[1]:
        return None
    if state is not None and x.numel() <= state.batches * x.shape[1]:
        return None
    if len(rest) > 1 or (rest and type(rest[0]) not in _ACTIVATIONS):
        return None
    channels = x.shape[1]
    if isinstance(module, ElasticBatchNorm2d):
        if active(module.size) != channels:
            return None
        module = module.norm
        channels = module.num_features
    if type(module) is not nn.BatchNorm2d or not module.affine:
        return None
    if module.training != (state is None) or (state is not None and not module.track_running_stats):
        return None
    tensors = (module.weight, module.bias, module.running_mean, module.running_var)
    fits = all(t is None or (is_ordinary(t) and t.shape == (channels,)) for t in tensors)
    written = all(t is None or t.is_contiguous() for t in tensors[2:])
    return module if fits and written and x.shape[1] <= channels else None


def normalised(x: Tensor, norm: nn.BatchNorm2d, activation: type[nn.Module] | None) -> Tensor:
    """activation(norm(x)) of images (B, C, H, W), by the first C channels of a norm in training."""
    factor = 0.0
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else float(norm.momentum)
    apply: Callable[..., Tensor] = _Normalised.apply
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats and factor else (None, None)
    return apply(x, norm.weight, norm.bias, _ACTIVATIONS[activation], *running, (factor, norm.eps))


def judged(x: Tensor, norm: nn.BatchNorm2d, activation: type[nn.Module] | None) -> Tensor:
    """The same where a subnet is judged: each batch by its own moments, or by the means of those that were seen."""
    state = judging()
    assert state is not None
    found, x = state.of(norm, x), _dense(x)
    y, moments = torch.empty_like(x), torch.empty(2, x.shape[1])
    others = (norm.weight, norm.bias, found.mean, found.var)
    pixels = x.numel() // x.shape[1] // max(1, state.batches)
    batches = (state.batches, pixels, found.batches)
    _run(_ACTIVATIONS[activation], x, y, moments, others, (0.0, norm.eps), (None, None, None), batches)
    found.batches += state.batches
    return y


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        activation: int,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        factors: tuple[float, float],
    ) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.channels_last)
        moments = torch.empty(2, x.shape[1])
        _run(activation, _dense(x), y, moments, (weight, bias, running_mean, running_var), factors, (None, None, None))
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.activation, ctx.epsilon = activation, factors[1]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments = ctx.saved_tensors
        rest = (None,) * 4
        if torch.is_grad_enabled():  # a graph is asked for
            return *_differentiable(ctx, x, weight, bias, grad), *rest
        found = torch.empty_like(x, memory_format=torch.channels_last), torch.zeros_like(weight), torch.zeros_like(bias)
        _run(ctx.activation, _dense(x), _dense(grad), moments, (weight, bias, None, None), (0.0, 0.0), found)
        return *found, *rest


def _differentiable(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by the plain formula, so that they can be differentiated again."""
    count = x.shape[1]
    x, weight, bias = fresh((x, weight, bias))
    y = F.batch_norm(x, None, None, weight[:count], bias[:count], True, 0.0, ctx.epsilon)
    y = (y, F.relu(y), F.hardswish(y))[ctx.activation]
    return tuple(graph_of_gradients([y], [grad], [x, weight, bias], ctx.needs_input_grad[:3]))


def _run(
    activation: int,
    x: Tensor,
    y: Tensor,
    moments: Tensor,
    others: tuple[Tensor | None, ...],
    factors: tuple[float, float],
    found: tuple[Tensor | None, ...],
    batches: tuple[int, int, int] | None = None,
) -> None:
    """Runs the kernel: forward, or where gradients are to be found, backward.

    Args:
        moments: mean and one over the deviation of each channel, (2, C).
        others: weight and bias, running mean and variance.
        batches: how many there are, the pixels of each, and how many were before; one of all pixels by default.
    """
    channels, threads = x.shape[1], torch.get_num_threads()
    held = [None if each is None else each.contiguous() for each in others]
    pixels, weight, bias, running_mean, running_var = x.numel() // channels, *map(_address, held)
    mean = moments.data_ptr()
    table = [0, 0, pixels, channels, activation, x.data_ptr(), y.data_ptr(), weight, bias]
    table += (mean, mean + 4 * channels, running_mean, running_var, _packed(factors), *map(_address, found))
    table += (launch.workspace(128 * threads), *(batches or (1, pixels, 0)))
    launch.run("batch_norm", table, min(threads, -(-channels // 8)))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@lru_cache(1024)
def _packed(factors: tuple[float, float]) -> int:
    """Two floats in one entry of the table."""
    return int(struct.unpack("=q", struct.pack("=ff", *factors))[0])


def _dense(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
