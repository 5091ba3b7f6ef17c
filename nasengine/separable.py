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
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from nasengine import launch
from nasengine.launch import Shape, address, bits, run_pairs
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
    if torch.compiler.is_compiling() or torch._C._is_tracing() or _formula.get() or is_sharded():
        return False
    if not is_ordinary(x) or x.dim() != 4 or not x.numel() or is_in_torch_dispatch_mode(False):
        return False
    if torch.is_autocast_enabled("cpu") or is_transformed():
        return False
    return launch.compiled()


def is_transformed() -> bool:
    """Whether tensors may have tangents, or stand for many: there gradients that are written by hand do not count."""
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


class Pair(NamedTuple):
    """A depthwise convolution with the 1x1 convolution behind it.

    Attributes:
        depthwise: weight (C, 1, k, k), k odd; None for the 1x1 convolution alone, of stride 1.
        pointwise: weight (C2, C, 1, 1).
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    depthwise: Tensor | None
    pointwise: Tensor
    stride: int = 1
    dilation: int = 1

    @property
    def kernel(self) -> int:
        """k, 1 without a depthwise convolution."""
        return 1 if self.depthwise is None else self.depthwise.shape[-1]


class Norm(NamedTuple):
    """A batch norm by given moments: weight * (x - mean) / sqrt(var + eps) + bias, all of shape (C,)."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


class Normalizable(NamedTuple):
    """An output (B, C2, H', W') with the mean and the biased variance (C2,) of its channels: a batch norm to be."""

    output: Tensor
    mean: Tensor
    var: Tensor


def separable(x: Tensor, norm: Norm | None, pair: Pair) -> Normalizable:
    """relu(norm(x)), depthwise convolution that keeps or halves the size, 1x1 convolution, its statistics.

    Differentiable in all tensors, any number of times. The bits do not depend on the number of threads.

    Args:
        x: (B, C, H, W); channels-last is what the compiled loops take as it is.
        norm: the batch norm before. Without it it is relu(x).
        pair: the convolutions; the depthwise one pads with zeros behind the rectifier.
    """
    return separables(x, norm, [pair])[0]


def separables(x: Tensor, norm: Norm | None, pairs: Sequence[Pair]) -> list[Normalizable]:
    """What `separable` gives for each pair, all on the same input; its gradient is summed while it is in the caches."""
    if not _fits(x, norm, pairs):
        return [plain_separable(x, norm, pair) for pair in pairs]
    apply: Callable[..., tuple[Tensor, ...]] = _Separables.apply
    tensors = [*_norm_tensors(norm), *(weight for pair in pairs for weight in pair[:2])]
    flat = apply(tuple(pair[2:] for pair in pairs), 0.0 if norm is None else norm.eps, x, *tensors)
    return [Normalizable(*flat[start : start + 3]) for start in range(0, len(flat), 3)]


def plain_separable(x: Tensor, norm: Norm | None, pair: Pair) -> Normalizable:
    """`separable` by the operators of PyTorch, one after the other."""
    v = F.relu(x if norm is None else normalized(x, norm))
    if pair.depthwise is not None:
        reach = pair.dilation * (pair.kernel - 1) // 2
        v = F.conv2d(v, pair.depthwise, None, pair.stride, reach, pair.dilation, groups=len(pair.depthwise))
    output = F.conv2d(v, pair.pointwise)
    var, mean = torch.var_mean(output, (0, 2, 3), correction=0)
    return Normalizable(output, mean, var)


def normalized(x: Tensor, norm: Norm) -> Tensor:
    """The batch norm of x (B, C, H, W) by the operators of PyTorch."""
    scale = torch.rsqrt(norm.var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    x = (x - norm.mean[:, None, None]) * scale[:, None, None]
    return x if norm.bias is None else x + norm.bias[:, None, None]


def _norm_tensors(norm: Norm | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if norm is None else norm[:4]


def _fits(x: Tensor, norm: Norm | None, pairs: Sequence[Pair]) -> bool:
    """Whether the compiled loops can have it: ordinary tensors in main memory, of shapes that go together."""
    if not pairs or not is_fast(x):
        return False
    channels = x.shape[1]
    if not all(t is None or (is_ordinary(t) and t.shape == (channels,)) for t in _norm_tensors(norm)):
        return False
    return all(_pair_fits(pair, channels) for pair in pairs)


def _pair_fits(pair: Pair, channels: int) -> bool:
    depthwise, pointwise, kernel = pair.depthwise, pair.pointwise, pair.kernel
    if not (is_ordinary(pointwise) and pair.stride in (1, 2) and pair.dilation >= 1):
        return False
    shape = pointwise.shape
    if len(shape) != 4 or not shape[0] or shape[1:] != (channels, 1, 1):
        return False
    if depthwise is None:
        return pair.stride == 1
    return is_ordinary(depthwise) and kernel % 2 == 1 and depthwise.shape == (channels, 1, kernel, kernel)


def is_ordinary(tensor: Tensor) -> bool:
    """Whether it is float32 in main memory, and nothing that stands for a tensor."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.dtype == torch.float32


def dense(image: Tensor) -> Tensor:
    """An image (B, C, H, W) in channels-last, itself if it is."""
    return image.contiguous(memory_format=torch.channels_last)


class _Separables(torch.autograd.Function):
    """The compiled loops with their gradients.

    Not an operator of torch.library: what `torch.library.custom_op` adds to a call, 20 us forward and 12 us backward,
    is a tenth of a call at 16 channels and 32x32 pixels. What needs a registered operator, export and fake tensors,
    gets the plain formula, which every exporter knows.
    """

    @staticmethod
    def forward(
        ctx: Any, geometry: tuple[tuple[int, int], ...], eps: float, x: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        held = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        results = halves(dense(x), _norm_of(held, eps), _shapes(geometry, held), [address(each) for each in held[4:]])
        outputs = [tensor for y, moments in results for tensor in (y, *moments.unbind())]
        ctx.geometry, ctx.eps = geometry, eps
        ctx.set_materialize_grads(False)
        # mean and var are told apart from y by their place: three tensors a pair
        ctx.save_for_backward(x, *tensors, *outputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved, count, needed = ctx.saved_tensors, 5 + 2 * len(ctx.geometry), ctx.needs_input_grad[2:]
        x, tensors, outputs = saved[0], saved[1:count], saved[count:]
        if torch.is_grad_enabled():
            views = fresh([x, *tensors])
            norm, pairs = _norm(views[1:], ctx.eps), _pairs(ctx.geometry, views[1:])
            units = [plain_separable(cast(Tensor, views[0]), norm, pair) for pair in pairs]
            made = [output for unit in units for output in unit]
            return None, None, *graph_of_gradients(made, grads, views, needed)
        full = [
            (torch.zeros_like(y) if grad is None else dense(grad)) if place % 3 == 0 else grad
            for place, (y, grad) in enumerate(zip(outputs, grads, strict=True))
        ]
        found = [
            torch.empty(tensor.shape, memory_format=torch.channels_last if tensor is x else torch.contiguous_format)
            if need and tensor is not None
            else None
            for tensor, need in zip([x, *tensors], needed, strict=True)
        ]
        held = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        at, to, of = ([address(tensor) for tensor in each] for each in (held, found, outputs))
        given = [address(grad) for grad in full]
        rows = [
            (
                *at[4 + 2 * i : 6 + 2 * i],
                *of[3 * i : 3 * i + 3],
                *given[3 * i : 3 * i + 3],
                *to[5 + 2 * i : 7 + 2 * i],
                0,
                0,
            )
            for i in range(len(ctx.geometry))
        ]
        run_pairs(True, dense(x), _norm_of(held, ctx.eps), _shapes(ctx.geometry, held), rows, to[:5])
        return None, None, *found


def halves(
    x: Tensor, norm: launch.Norm, shapes: tuple[Shape, ...], weights: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """y and its moments (2, C2), mean and variance, for each pair, of x (B, C, H, W) in channels-last.

    Args:
        weights: addresses of those of the depthwise (0 for none) and of the 1x1 convolution of each pair.
    """
    images, _, height, width = x.shape
    results, rows = [], []
    for place, (_, stride, _, channels) in enumerate(shapes):
        size = (images, channels, (height + stride - 1) // stride, (width + stride - 1) // stride)
        y, moments = torch.empty(size, memory_format=torch.channels_last), torch.empty((2, channels))
        results.append((y, moments))
        mean = moments.data_ptr()
        rows.append((*weights[2 * place : 2 * place + 2], y.data_ptr(), mean, mean + 4 * channels, *(0,) * 7))
    run_pairs(False, x, norm, shapes, rows)
    return results


def _norm_of(tensors: Sequence[Tensor | None], eps: float) -> launch.Norm:
    mean, var, weight, bias = map(address, tensors[:4])
    return bits(eps), mean, var, weight, bias


def _shapes(geometry: Sequence[tuple[int, int]], tensors: Sequence[Tensor | None]) -> tuple[Shape, ...]:
    return tuple((pair.kernel, pair.stride, pair.dilation, len(pair.pointwise)) for pair in _pairs(geometry, tensors))


def _norm(tensors: Sequence[Tensor | None], eps: float) -> Norm | None:
    mean, var, weight, bias = tensors[:4]
    return None if mean is None or var is None else Norm(mean, var, weight, bias, eps)


def _pairs(geometry: Sequence[tuple[int, int]], tensors: Sequence[Any]) -> list[Pair]:
    return [Pair(tensors[4 + 2 * i], tensors[5 + 2 * i], *each) for i, each in enumerate(geometry)]


T = TypeVar("T", Tensor, Tensor | None)


def fresh(tensors: Sequence[T]) -> list[T]:
    """Views, since one may have been made of another, whose gradient would then have that path in it twice."""
    return [tensor if tensor is None else tensor.view_as(tensor) for tensor in tensors]


def graph_of_gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor | None], tensors: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the tensors that need one, of some outputs, so that they can be differentiated again."""
    inputs = [tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None]
    both = zip(outputs, grads, strict=False)  # what depends on nothing that needs a gradient has none to give
    used = [(output, grad) for output, grad in both if grad is not None and output.requires_grad]
    if not used:
        return [None] * len(needed)
    of, by = [output for output, _ in used], [grad for _, grad in used]
    found = iter(torch.autograd.grad(of, inputs, by, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]
