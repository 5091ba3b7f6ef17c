"""Operations of convolutional cells, as published with DARTS (arXiv:1806.09055); shared by spaces of cells.

All take and give images (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.depthwise import depthwise
from nasengine.edges import added, together
from nasengine.mixing import EndsInNorm, Half, Separable, Statistics, Unnormed, WeighsImages, is_hooked
from nasengine.separable import Pair, is_fast, separable
from nasengine.subnets import judging
from nasengine.supernet import MixedOp, Shared, Zero


class FactorizedReduce(nn.Module, EndsInNorm):
    """Halves height and width: two 1x1 convolutions of stride 2, the second on the image shifted by one pixel."""

    def __init__(self, channels_in: int, channels_out: int, affine: bool, relu: nn.Module) -> None:
        super().__init__()
        self.relu = relu
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        found = together([self], x, [None])
        return self._plain(x) if found is None else found[0]

    def _plain(self, x: Tensor) -> Tensor:
        even, odd = phases(self.relu(x)).chunk(2, dim=1)
        both = [F.conv2d(even, self.even.weight), F.conv2d(odd, self.odd.weight)]
        reduced: Tensor = self.norm(torch.cat(both, dim=1))
        return reduced

    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed:
        """What it gives before its batch norm."""
        if not rectifies(self.relu) or type(self.norm) is not nn.BatchNorm2d or is_hooked(self.norm):
            return Unnormed(self._plain(x))
        return statistics.noted(separable(phases(x), None, self.pair()), self.norm)

    def pair(self) -> Pair:
        """Both convolutions as one of the two phases of the image."""
        weight: Tensor = torch.block_diag(self.even.weight.flatten(1), self.odd.weight.flatten(1))  # type: ignore[no-untyped-call]
        return Pair(None, weight[:, :, None, None])


class _Phases(torch.autograd.Function):
    """`phases` with a gradient that is written once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.height, ctx.width = x.shape[-2:]
        return _plain_phases(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        even, odd = grad.chunk(2, dim=1)
        shape = (*even.shape[:2], ctx.height, ctx.width)
        found = grad.new_zeros(shape).contiguous(memory_format=torch.channels_last)
        found[..., ::2, ::2] = even
        found[..., 1::2, 1::2] = odd[..., : ctx.height // 2, : ctx.width // 2]
        return found


def phases(x: Tensor) -> Tensor:
    """Two blocks of channels, (B, C, H, W) -> (B, 2 C, H', W'): every other pixel, from the first and the second on.

    Where there is no second one it is zero.
    """
    if not is_fast(x):
        return _plain_phases(x)
    apply: Callable[..., Tensor] = _Phases.apply
    return apply(x)


def _plain_phases(x: Tensor) -> Tensor:
    odd = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))[..., 1::2, 1::2]
    return torch.cat([x[..., ::2, ::2], odd], dim=1)


class DepthwiseConv(nn.Conv2d):
    """A convolution of every channel by itself that keeps the size, or halves it; on CPUs with a faster gradient."""

    plain = nn.Conv2d  # computes the same: an exported network has this in its place

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.weight, self.stride[0], int(self.padding[0]), self.dilation[0])


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of images (B, C, H, W) by weight (C2, C, 1, 1); in training of single pixels the product that it is.

    PyTorch's convolutions on CPUs take up to three times as long for those.
    """
    if x.shape[2:] == (1, 1) and (torch.is_grad_enabled() or judging() is not None) and is_fast(x):
        return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    return F.conv2d(x, weight, bias)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that is as fast on single pixels."""

    plain = nn.Conv2d  # computes the same: an exported network has this in its place

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class DropPath(nn.Module, WeighsImages):
    """Drops the path of random samples in training and scales others (arXiv:1605.07648); `probability` set outside."""

    def __init__(self) -> None:
        super().__init__()
        self.probability = 0.0

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return x if weights is None else x * weights.view(-1, *[1] * (x.dim() - 1))

    def weights(self, x: Tensor) -> Tensor | None:
        """Zeros and the inverse of the share that is kept."""
        if not self.training or self.probability == 0.0:
            return None
        keep = 1.0 - self.probability
        return torch.empty(x.shape[0], dtype=x.dtype, device=x.device).bernoulli_(keep) / keep


class ReluConvNorm(nn.Sequential, Separable):
    """ReLU, 1x1 convolution, if any with a depthwise one before it, batch norm; all of it once or twice.

    Where `nasengine.separable` has compiled loops for the input, they compute it in place of the modules inside.
    """

    plain = nn.Sequential  # computes the same: an exported network has this in its place

    def forward(self, x: Tensor) -> Tensor:
        found = together([self], x, [None])
        if found is not None:
            return found[0]
        for module in self:
            x = module(x)
        return x

    def halves(self) -> list[Half]:
        """The convolutions and the norm of each half; none where the modules inside are others than it says."""
        found: list[Half] = []
        rest = list(self)
        while rest:
            count = 4 if len(rest) > 3 and isinstance(rest[2], nn.Conv2d) else 3
            half = _half_of(rest[:count])
            if half is None:
                return []
            found.append(half)
            rest = rest[count:]
        chained = all(one.pointwise.out_channels == two.pointwise.in_channels for one, two in pairwise(found))
        return found if len(found) in (1, 2) and chained and type(self).forward is ReluConvNorm.forward else []


def rectifies(module: nn.Module) -> bool:
    """Whether it is max(x, 0), by itself or for many."""
    return type(module.module if isinstance(module, Shared) else module) is nn.ReLU


def _half_of(modules: Sequence[nn.Module]) -> Half | None:
    """A rectifier, if any a depthwise convolution, a 1x1 convolution and a batch norm; None for anything else."""
    if len(modules) < 3 or not rectifies(modules[0]) or type(modules[-1]) is not nn.BatchNorm2d:
        return None
    convs = [conv for conv in modules[1:-1] if type(conv) in (nn.Conv2d, DepthwiseConv)]
    if len(convs) != len(modules) - 2:
        return None
    half = Half(cast(nn.Conv2d, convs[0]) if len(modules) == 4 else None, cast(nn.Conv2d, convs[-1]), modules[-1])
    return half if _fits(half) else None


def _fits(half: Half) -> bool:
    depthwise, last, norm = half
    for conv in (last,) if depthwise is None else (depthwise, last):
        if conv.bias is not None or conv.padding_mode != "zeros" or conv._parameters.get("weight") is None:
            return False
    if depthwise is not None:
        kernel, stride, dilation = (
            numbers[0] for numbers in (depthwise.kernel_size, depthwise.stride, depthwise.dilation)
        )
        shape = (depthwise.kernel_size, depthwise.stride, depthwise.dilation, depthwise.padding)
        if shape != ((kernel,) * 2, (stride,) * 2, (dilation,) * 2, (dilation * (kernel - 1) // 2,) * 2):
            return False
        channels = {depthwise.groups, depthwise.in_channels, depthwise.out_channels, last.in_channels}
        if kernel % 2 == 0 or len(channels) > 1:
            return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    single = (last.kernel_size, last.stride, last.padding, last.groups) == ((1, 1), (1, 1), (0, 0), 1)
    return single and all(each is None or each.shape == (last.out_channels,) for each in tensors)


def relu_conv_norm(channels_in: int, channels_out: int, affine: bool) -> nn.Module:
    """ReLU, 1x1 convolution, batch norm."""
    conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    return ReluConvNorm(nn.ReLU(), conv, nn.BatchNorm2d(channels_out, affine=affine))


def _half(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    return [
        DepthwiseConv(channels, kernel, stride, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def sep_conv(channels: int, kernel: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """Depthwise and pointwise convolution, twice; the stride in the first."""
    first = _half(channels, kernel, stride, 1, affine)
    return ReluConvNorm(relu, *first, nn.ReLU(inplace=True), *_half(channels, kernel, 1, 1, affine))


def dil_conv(channels: int, kernel: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """Depthwise convolution of dilation 2 and pointwise convolution."""
    return ReluConvNorm(relu, *_half(channels, kernel, stride, 2, affine))


def skip_connect(channels: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """The identity, or a FactorizedReduce where the stride is 2."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine, relu)


def states_of(given: Sequence[Tensor], edges: nn.ModuleDict, last: int) -> list[Tensor]:
    """All states of a cell up to number `last`: the given ones, then sums of what the edges "source-node" give."""
    if not torch.is_grad_enabled():
        return _node_by_node(given, edges, last)
    states = list(given)
    totals: dict[int, Tensor] = {}
    for source in range(last):
        later = [node for node in range(max(source + 1, len(given)), last + 1) if f"{source}-{node}" in edges]
        if later:
            modules = [edges[f"{source}-{node}"] for node in later]
            found = added(modules, states[source], [totals.get(node) for node in later])
            totals.update(zip(later, found, strict=True))
        if source + 1 >= len(given):
            states.append(totals[source + 1])
    return states


def _gives_nothing(edge: nn.Module) -> bool:
    return isinstance(edge, Zero) or (isinstance(edge, MixedOp) and edge.is_zero())


def _node_by_node(given: Sequence[Tensor], edges: nn.ModuleDict, last: int) -> list[Tensor]:
    """The same with the least memory, where nothing is gained by computing together what leaves a state."""
    states = list(given)
    for node in range(len(given), last + 1):
        found = [(source, edges[f"{source}-{node}"]) for source in range(node) if f"{source}-{node}" in edges]
        used = [(source, edge) for source, edge in found if not _gives_nothing(edge)]
        terms = [edge(states[source]) for source, edge in used or found]
        states.append(sum(terms[1:], start=terms[0]))
    return states


Factory = Callable[[int, int, bool, nn.Module], nn.Module]

OPERATIONS: Final[Mapping[str, Factory]] = {
    "none": lambda channels, stride, affine, relu: Zero(stride),
    "max_pool_3x3": lambda channels, stride, affine, relu: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda channels, stride, affine, relu: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": skip_connect,
    "sep_conv_3x3": lambda channels, stride, affine, relu: sep_conv(channels, 3, stride, affine, relu),
    "sep_conv_5x5": lambda channels, stride, affine, relu: sep_conv(channels, 5, stride, affine, relu),
    "dil_conv_3x3": lambda channels, stride, affine, relu: dil_conv(channels, 3, stride, affine, relu),
    "dil_conv_5x5": lambda channels, stride, affine, relu: dil_conv(channels, 5, stride, affine, relu),
}
"""By published name and in published order: (channels, stride, affine, leading ReLU) -> module."""
