"""Operations of convolutional cells, as published with DARTS (arXiv:1806.09055); shared by spaces of cells.

All take and give images (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.depthwise import depthwise
from nasengine.mixing import Statistics, Unnormed, folded, measured, mixed
from nasengine.separable import Pair, is_fast, separable, separables
from nasengine.subnets import judging
from nasengine.supernet import MixedOp, Zero, decided, known, once_a_call


class FactorizedReduce(nn.Module):
    """Halves height and width: two 1x1 convolutions of stride 2, the second on the image shifted by one pixel."""

    def __init__(self, channels_in: int, channels_out: int, affine: bool, relu: nn.Module) -> None:
        super().__init__()
        self.relu = relu
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        reduced: Tensor = self.norm(self._reduced(x))
        return reduced

    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed:
        """What it gives before its batch norm."""
        return measured(self._reduced(x), self.norm, statistics)

    def _reduced(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        height, width = x.shape[-2:]
        shifted = F.pad(x, (0, width % 2, 0, height % 2))[..., 1:, 1:]
        return torch.cat([self.even(x), self.odd(shifted)], dim=1)


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


class DropPath(nn.Module):
    """Drops the path of random samples in training and scales others (arXiv:1605.07648); `probability` set outside."""

    def __init__(self) -> None:
        super().__init__()
        self.probability = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        kept = torch.empty(x.shape[0], *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)


def relu_conv_norm(channels_in: int, channels_out: int, affine: bool) -> nn.Module:
    """ReLU, 1x1 convolution, batch norm."""
    conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels_out, affine=affine))


class SeparableConv(nn.Sequential):
    """ReLU, depthwise and pointwise convolution, batch norm; all of it once or twice.

    Where `nasengine.separable` has fused loops for the input, they compute it in place of the modules inside.
    """

    plain = nn.Sequential  # computes the same: an exported network has this in its place

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and is_fast(x)):
            for module in self:
                x = module(x)
            return x
        statistics = Statistics()
        found = self.unnormed(x, statistics)
        statistics.keep()
        return mixed([found], x.new_ones(1))

    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed:
        """What it gives before its last batch norm."""
        begun = known((id(self), id(x)))
        found = separable(x, None, None, *self.pair(0)) if begun is None else begun[1]
        for start in range(4, len(self) + 4, 4):
            norm = cast(nn.BatchNorm2d, self[start - 1])
            half = Unnormed(found.output, norm, found.mean, found.var)
            statistics.add(half)
            if start < len(self):
                scale, shift = (row.squeeze(0) for row in folded([half], x.new_ones(1, 1)))
                found = separable(found.output, scale, shift, *self.pair(start))
        return half

    def pair(self, start: int) -> Pair:
        """The two convolutions of the half that begins with this module."""
        depthwise, pointwise = cast(nn.Conv2d, self[start + 1]), cast(nn.Conv2d, self[start + 2])
        return Pair(depthwise.weight, pointwise.weight, depthwise.stride[0], depthwise.dilation[0])


def begin(modules: Iterable[nn.Module], x: Tensor) -> None:
    """Computes what the soft mixtures among modules begin with together: halves of separable convolutions of x."""
    if not is_fast(x):
        return
    mixtures = [module for module in modules if isinstance(module, MixedOp)]
    soft = [mixture for mixture in mixtures if isinstance(decided(mixture.choice.label), Tensor)]
    options = [option for mixture in soft for option in mixture.options if isinstance(option, SeparableConv)]
    for option, found in zip(options, separables(x, None, None, [option.pair(0) for option in options]), strict=True):
        once_a_call((id(option), id(x)), lambda found=found: (x, found))  # type: ignore[misc]


def _half(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    return [
        DepthwiseConv(channels, kernel, stride, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def sep_conv(channels: int, kernel: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """Depthwise and pointwise convolution, twice; the stride in the first."""
    first = _half(channels, kernel, stride, 1, affine)
    return SeparableConv(relu, *first, nn.ReLU(inplace=True), *_half(channels, kernel, 1, 1, affine))


def dil_conv(channels: int, kernel: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """Depthwise convolution of dilation 2 and pointwise convolution."""
    return SeparableConv(relu, *_half(channels, kernel, stride, 2, affine))


def skip_connect(channels: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    """The identity, or a FactorizedReduce where the stride is 2."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine, relu)


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
