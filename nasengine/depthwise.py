"""Convolutions of every channel by itself, with gradients that are as fast as they are.

PyTorch's gradients of depthwise convolutions on CPUs run at a few per cent of what the arithmetic needs. Compiled
loops (`nasengine.kernels.depthwise`) compute them where `nasengine.separable.is_fast` says so; else, on CPUs, the
gradient of the input is a convolution of stride 1; everything else runs the plain formula, the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import launch
from nasengine.separable import fresh, graph_of_gradients, is_fast, is_transformed
from nasengine.subnets import judging

_TASKS: Final = 8
"""Tasks that threads share, at least, where there are as many blocks of channels or groups of images."""
_SLACK: Final = 64
_LARGE: Final = 512
"""Pixels above which eight images leave the caches: there PyTorch is faster forward, and at 3x3."""


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """Convolution of every channel (B, C, H, W) by its kernel, weight (C, 1, k, k); on CPUs with a faster gradient."""
    wanted = torch.is_grad_enabled() or judging() is not None
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or is_transformed()
    keeps = 2 * padding == dilation * (weight.shape[-1] - 1)
    if x.device.type != "cpu" or not wanted or plain or not keeps:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))
    if _fits(x, weight, stride, padding, dilation):
        apply: Callable[..., Tensor] = _Compiled.apply
        return apply(x, weight, stride)
    mirrored: Callable[..., Tensor] = _Mirrored.apply
    return mirrored(x, weight, stride, padding, dilation)


def _fits(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> bool:
    """Whether the compiled loops can have it."""
    if not is_fast(x) or type(weight) not in (Tensor, nn.Parameter) or not weight.is_cpu:
        return False
    kernel = weight.shape[-1]
    large = x.shape[2] * x.shape[3] > _LARGE
    if large and ((kernel == 3 and stride == 1) or not torch.is_grad_enabled()):
        return False
    shaped = weight.dtype == torch.float32 and weight.shape == (x.shape[1], 1, kernel, kernel)
    return shaped and kernel % 2 == 1 and (padding, dilation) == (kernel // 2, 1) and stride in (1, 2)


class _Mirrored(torch.autograd.Function):
    """Depthwise convolution whose input gradient is the convolution of stride 1 with the mirrored kernel.

    Where the stride is 2, zeros are put between the output's gradients first. These are the sums of the plain
    gradient; they run on the fast forward kernels, whereas the backward kernels of strided, dilated and 5x5 depthwise
    convolutions on CPUs are several times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = (stride, padding, dilation)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.shape
        if stride > 1:
            spread = torch.zeros_like(x)
            spread[..., ::stride, ::stride] = grad
            grad = spread
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, groups=len(weight))
        if ctx.needs_input_grad[1]:
            around, apart = [padding] * 2, [dilation] * 2
            _, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], around, apart, False, [0, 0], len(weight), [False, True, False]
            )
        return grad_x, grad_weight, None, None, None


class _Compiled(torch.autograd.Function):
    """The compiled loops with their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)  # as they came: a copy would have no graph
        ctx.stride = stride
        x, weight = _dense(x), weight.contiguous()
        images, channels, height, width = x.shape
        shape = (images, channels, _halved(height, stride), _halved(width, stride))
        y = torch.empty(shape, memory_format=torch.channels_last)
        _run(x, weight, stride, y, None, None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph is asked for
            x, weight = fresh((x, weight))
            y = F.conv2d(x, weight, None, ctx.stride, weight.shape[-1] // 2, groups=len(weight))
            of_x, of_weight = graph_of_gradients([y], [grad], [x, weight], ctx.needs_input_grad[:2])
            return of_x, of_weight, None
        x, weight = _dense(x), weight.contiguous()
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        _run(x, weight, ctx.stride, _dense(grad), grad_x, grad_weight)
        return grad_x, grad_weight, None


def _run(x: Tensor, weight: Tensor, stride: int, y: Tensor, grad_x: Tensor | None, grad_weight: Tensor | None) -> None:
    """Fills y, or from y as its gradient those that are asked for; images in channels-last."""
    images, channels, height, width = x.shape
    kernel = weight.shape[-1]
    parts, tasks, (size, at_x, at_y, sums) = _plan(images, channels, height, width, kernel, stride)
    threads = min(torch.get_num_threads(), tasks)
    base = launch.workspace(size * threads + sums)
    gradients = [0 if tensor is None else tensor.data_ptr() for tensor in (grad_x, grad_weight)]
    table = [0, 0, 0, parts, images, channels, height, width, kernel, stride, weight.data_ptr()]
    table += (x.data_ptr(), y.data_ptr(), *gradients, base, size, at_x, at_y, base + size * threads)
    launch.run("depthwise", table, threads)


@cache
def _plan(
    images: int, channels: int, height: int, width: int, kernel: int, stride: int
) -> tuple[int, int, tuple[int, int, int, int]]:
    """Parts of the images, tasks, and bytes: of a thread's memory, where it has input and output, of all sums."""
    from nasengine.kernels.depthwise import TILE
    from nasengine.kernels.vectors import BYTES, LANES

    blocks, groups = -(-channels // LANES), -(-images // TILE)
    parts = min(groups, -(-_TASKS // blocks))
    at_x = kernel * kernel * BYTES
    at_y = at_x + height * width * TILE * BYTES
    size = at_y + _halved(height, stride) * _halved(width, stride) * TILE * BYTES + _SLACK
    return parts, parts * blocks, (size, at_x, at_y, parts * blocks * kernel * kernel * BYTES)


def _halved(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


def _dense(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
