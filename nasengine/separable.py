"""The separable half of DARTS' operations as one operator: rectifier, depthwise and 1x1 convolution, batch statistics.

PyTorch computes it in four passes over memory, and its gradients in seven more. Compiled loops (`nasengine.kernels`)
take every image through all of them while it is in the caches, on CPUs, in float32, with numba installed. Everything
else runs the plain formula, which stays the reference: other devices and types, tracing and export, fake and meta
tensors, forward-mode and second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from nasengine import launch
from nasengine.sharding import is_sharded

_formula: ContextVar[bool] = ContextVar("nasengine_formula", default=False)


@contextmanager
def by_formula() -> Iterator[None]:
    """A block without compiled loops: the reference."""
    token = _formula.set(True)
    try:
        yield
    finally:
        _formula.reset(token)


def is_fast(x: Tensor) -> bool:
    """Whether the compiled loops can have a batch of images (B, C, H, W)."""
    if _formula.get() or is_sharded() or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if not _ordinary(x) or x.dim() != 4 or not x.numel() or is_in_torch_dispatch_mode(False):
        return False
    if torch.is_autocast_enabled("cpu") or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return launch.compiled()


class Pair(NamedTuple):
    """A depthwise convolution with the 1x1 convolution behind it.

    Attributes:
        depthwise: weight (C, 1, k, k), k odd.
        pointwise: weight (C2, C, 1, 1).
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    depthwise: Tensor
    pointwise: Tensor
    stride: int = 1
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Pixels of padding on each side, with which the depthwise convolution of stride 1 keeps the size."""
        return self.dilation * (self.depthwise.shape[-1] - 1) // 2


class Normalizable(NamedTuple):
    """An output (B, C2, H', W') with the mean and the biased variance (C2,) of its channels: a batch norm to be."""

    output: Tensor
    mean: Tensor
    var: Tensor


def separable(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    depthwise: Tensor,
    pointwise: Tensor,
    stride: int = 1,
    dilation: int = 1,
) -> Normalizable:
    """relu(scale * x + shift), depthwise convolution that keeps or halves the size, 1x1 convolution, its statistics.

    Differentiable in all tensors, any number of times. The bits do not depend on the number of threads.

    Args:
        x: (B, C, H, W); channels-last is what the compiled loops take as it is.
        scale, shift: (C,), both or neither: the batch norm before. Without them it is relu(x).
        depthwise: weight (C, 1, k, k), k odd; pads with zeros behind the rectifier.
        pointwise: weight (C2, C, 1, 1).
        stride: 1 or 2.
        dilation: 1 or 2.
    """
    return separables(x, scale, shift, [Pair(depthwise, pointwise, stride, dilation)])[0]


def separables(x: Tensor, scale: Tensor | None, shift: Tensor | None, pairs: Sequence[Pair]) -> list[Normalizable]:
    """What `separable` gives for each pair, all on the same input; its gradient is summed while it is in the caches."""
    if not _fits(x, scale, shift, pairs):
        return [plain_separable(x, scale, shift, *pair) for pair in pairs]
    apply: Callable[..., tuple[Tensor, ...]] = _Separables.apply
    weights = [weight for pair in pairs for weight in pair[:2]]
    flat = apply(x, scale, shift, tuple(pair[2:] for pair in pairs), *weights)
    return [Normalizable(*flat[start : start + 3]) for start in range(0, len(flat), 3)]


def plain_separable(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    depthwise: Tensor,
    pointwise: Tensor,
    stride: int = 1,
    dilation: int = 1,
) -> Normalizable:
    """`separable` by the operators of PyTorch, one after the other."""
    if scale is not None and shift is not None:
        x = x * scale[:, None, None] + shift[:, None, None]
    reach = dilation * (depthwise.shape[-1] - 1) // 2
    v = F.conv2d(F.relu(x), depthwise, None, stride, reach, dilation, groups=len(depthwise))
    output = F.conv2d(v, pointwise)
    var, mean = torch.var_mean(output, (0, 2, 3), correction=0)
    return Normalizable(output, mean, var)


def _fits(x: Tensor, scale: Tensor | None, shift: Tensor | None, pairs: Sequence[Pair]) -> bool:
    """Whether the compiled loops can have it: ordinary tensors in main memory, of shapes that go together."""
    if not pairs or not is_fast(x) or (scale is None) != (shift is None):
        return False
    channels = x.shape[1]
    if not all(tensor is None or (_ordinary(tensor) and tensor.shape == (channels,)) for tensor in (scale, shift)):
        return False
    return all(_pair_fits(pair, channels) for pair in pairs)


def _pair_fits(pair: Pair, channels: int) -> bool:
    depthwise, pointwise = pair.depthwise, pair.pointwise
    if not (_ordinary(depthwise) and _ordinary(pointwise) and pair.stride in (1, 2) and pair.dilation >= 1):
        return False
    shape, kernel = pointwise.shape, depthwise.shape[-1]
    if len(shape) != 4 or not shape[0] or shape[1:] != (channels, 1, 1):
        return False
    return kernel % 2 == 1 and depthwise.shape == (channels, 1, kernel, kernel)


def _ordinary(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.dtype == torch.float32


def _dense(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


class _Separables(torch.autograd.Function):
    """The compiled loops with their gradients.

    Not an operator of torch.library: what `torch.library.custom_op` adds to a call, 20 us forward and 12 us backward,
    is a tenth of a call at 16 channels and 32x32 pixels. What needs a registered operator, export and fake tensors,
    gets the plain formula, which every exporter knows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        geometry: tuple[tuple[int, int], ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        given = _dense(x)
        pairs = _pairs(geometry, weights)
        outputs = launch.forward(given, scale, shift, pairs)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        # mean and var are told apart from y by their place: three tensors a pair
        ctx.save_for_backward(x, scale, shift, *weights, *outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        geometry = ctx.geometry
        x, scale, shift, *rest = ctx.saved_tensors
        weights, outputs = rest[: 2 * len(geometry)], rest[2 * len(geometry) :]
        if torch.is_grad_enabled():
            return _differentiable(ctx.needs_input_grad, x, scale, shift, _pairs(geometry, weights), grads)
        needed = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[4:]]
        full = [
            (torch.zeros_like(y) if grad is None else _dense(grad)) if place % 3 == 0 else grad
            for place, (y, grad) in enumerate(zip(outputs, grads, strict=True))
        ]
        pairs = _pairs(geometry, weights)
        found = launch.backward(_dense(x), scale, shift, pairs, outputs, full, needed)
        return *found[:3], None, *found[3:]


def _pairs(geometry: Sequence[tuple[int, int]], weights: Sequence[Tensor]) -> list[Pair]:
    return [Pair(weights[2 * i], weights[2 * i + 1], *geometry[i]) for i in range(len(geometry))]


def _differentiable(
    needed: Sequence[bool],
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    pairs: Sequence[Pair],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients by the plain formula, so that they can be differentiated again."""
    tensors = [x, scale, shift, None, *(weight for pair in pairs for weight in pair[:2])]
    inputs = [tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None]
    outputs = [output for pair in pairs for output in plain_separable(x, scale, shift, *pair)]
    used = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    if not used:
        return (None,) * len(needed)
    found = iter(
        torch.autograd.grad([o for o, _ in used], inputs, [g for _, g in used], create_graph=True, allow_unused=True)
    )
    return tuple(next(found) if need else None for need in needed)
