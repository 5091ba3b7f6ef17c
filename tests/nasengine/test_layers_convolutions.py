"""Elastic convolutions against plain ones: slices, chains of kernels, and the weighted sums of their outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.elastic import Size
from nasengine.errors import ArchitectureError
from nasengine.layers import (
    ElasticBatchNorm2d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    ElasticLayerNorm,
    ElasticLinear,
)
from nasengine.supernet import Gates, fix
from tests.nasengine.calls import call, close, gradient_entries, numbers, randomised, weights

IN, OUT, TAPS = Size("in", (2, 3, 4)), Size("out", (3, 5)), Size("taps", (3, 5, 7))
SHARES = {"in": weights(0.2, 0.5, 0.3), "out": weights(0.6, 0.4), "taps": weights(0.1, 0.3, 0.6)}
IN_MASK = weights(1, 1, 0.8, 0.3)


def hard(**options: int) -> tuple[dict[str, int], Architecture]:
    sizes = {"in": IN, "out": OUT, "taps": TAPS}
    return options, Architecture({label: sizes[label].options[place] for label, place in options.items()})


def chain(layer: ElasticConv1d | ElasticConv2d | ElasticDepthwiseConv2d, taps: int) -> Tensor:
    """The kernels of `taps` a side, (outputs, inputs, *taps), 7 -> 5 -> 3 by the definition."""
    weight = layer.conv.weight
    dims = weight.dim() - 2
    while weight.shape[-1] > taps:
        smaller = weight.shape[-1] - 2
        inside = (slice(None), slice(None), *[slice(1, -1)] * dims)
        centre = weight[inside].flatten(2)
        if str(smaller) in layer.taps.matrices:
            rows = layer.taps.matrices[str(smaller)]
            centre = torch.stack([(row * centre).sum(-1) for row in rows], dim=-1)
        weight = centre.unflatten(2, [smaller] * dims)
    return weight


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int = 1) -> Tensor:
    function: Callable[..., Tensor] = F.conv1d if x.dim() == 3 else F.conv2d
    return function(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)


KINDS = [(ElasticConv1d, (9,)), (ElasticConv2d, (8, 7))]


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=["1d", "2d"])
@pytest.mark.parametrize(("stride", "bias", "transforms"), [(1, False, True), (2, True, True), (1, True, False)])
def test_hard_convolutions_are_slices(
    kind: type[ElasticConv1d] | type[ElasticConv2d], size: tuple[int, ...], stride: int, bias: bool, transforms: bool
) -> None:
    layer = randomised(kind(IN, OUT, TAPS, stride, bias, transforms))
    assert len(layer.taps.matrices) == (2 if transforms else 0)
    for i, o, t in itertools.product((0, 2), range(2), range(3)):
        mixture, architecture = hard(**{"in": i, "out": o, "taps": t})
        inputs, outputs, taps = IN.values[i], OUT.values[o], TAPS.values[t]
        x = numbers(2, inputs, *size)
        found = call(layer, x, mixture)
        expected = conv(x, chain(layer, taps)[:outputs, :inputs], layer.conv.bias[:outputs] if bias else None, stride)
        close(found, expected)
        assert stride == 2 or found.shape[2:] == size
        fixed = fix(layer, architecture)
        assert isinstance(fixed, (nn.Conv1d, nn.Conv2d)) and fixed.kernel_size == (taps,) * len(size)
        close(fixed(x), expected)


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=["1d", "2d"])
def test_identity_matrices_leave_the_centre(
    kind: type[ElasticConv1d] | type[ElasticConv2d], size: tuple[int, ...]
) -> None:
    layer, x = kind(4, 5, TAPS).double(), numbers(2, 4, *size)
    weight = layer.conv.weight[(slice(None), slice(None), *[slice(2, 5)] * len(size))]
    close(call(layer, x, {"taps": 0}), conv(x, weight, None, 1))
    assert {name: list(matrix.shape) for name, matrix in layer.taps.matrices.items()} == {
        str(taps): [taps ** len(size)] * 2 for taps in (3, 5)
    }


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=["1d", "2d"])
@pytest.mark.parametrize("transforms", [True, False])
def test_soft_kernels_are_the_weighted_sum_of_outputs_with_one_bias(
    kind: type[ElasticConv1d] | type[ElasticConv2d], size: tuple[int, ...], transforms: bool
) -> None:
    layer, x = randomised(kind(IN, OUT, TAPS, 2, True, transforms)), numbers(2, 4, *size)
    bias = layer.conv.bias
    assert bias is not None
    masked = x * IN_MASK.view(-1, *[1] * len(size))
    shares = zip((3, 5, 7), (0.1, 0.3, 0.6), strict=True)
    expected = sum(share * conv(masked, chain(layer, taps), None, 2) for taps, share in shares)
    close(call(layer, x, SHARES), expected + bias.view(-1, *[1] * len(size)))


def test_gates_of_channels_of_a_convolution() -> None:
    layer, x, gates = randomised(ElasticConv2d(IN, OUT, 3)), numbers(2, 4, 5, 5), numbers(4)
    found = call(layer, x, {"in": Gates(gates), "out": 1})
    close(found, conv(x * gates[:, None, None], layer.conv.weight, None, 1))


@pytest.mark.parametrize("transforms", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions(stride: int, transforms: bool) -> None:
    layer = randomised(ElasticDepthwiseConv2d(IN, TAPS, stride, transforms))
    for i, t in itertools.product(range(3), range(3)):
        mixture, architecture = hard(**{"in": i, "taps": t})
        channels = IN.values[i]
        x = numbers(2, channels, 8, 7)
        expected = conv(x, chain(layer, TAPS.values[t])[:channels], None, stride, channels)
        close(call(layer, x, mixture), expected)
        close(fix(layer, architecture)(x), expected)
    x = numbers(2, 4, 8, 7)
    shares = zip((3, 5, 7), (0.1, 0.3, 0.6), strict=True)
    soft = sum(share * conv(x, chain(layer, taps), None, stride, 4) for taps, share in shares)
    close(call(layer, x, SHARES), torch.as_tensor(soft))
    close(call(layer, x, {**SHARES, "in": Gates(numbers(4))}), torch.as_tensor(soft))


def test_weights_outside_a_kernel_have_no_gradient() -> None:
    layer, x = randomised(ElasticConv2d(IN, OUT, TAPS, bias=True)), numbers(2, 3, 8, 7)

    def entries(taps: int) -> dict[str, int]:
        return gradient_entries(layer, call(layer, x, {"in": 1, "out": 0, "taps": taps}))

    names = [f"taps.matrices.{taps}" for taps in (3, 5)]
    assert entries(2) == {"conv.weight": 9 * 49, "conv.bias": 3, names[0]: 0, names[1]: 0}
    assert entries(1) == {"conv.weight": 9 * 25, "conv.bias": 3, names[0]: 0, names[1]: 625}
    assert entries(0) == {"conv.weight": 9 * 25, "conv.bias": 3, names[0]: 81, names[1]: 9 * 25}


def test_weights_outside_a_kernel_are_not_read() -> None:
    layer, x = randomised(ElasticDepthwiseConv2d(IN, TAPS)), numbers(2, 3, 8, 7)
    before = call(layer, x, {"in": 1, "taps": 1})
    with torch.no_grad():
        layer.conv.weight[3:] = torch.nan
        layer.conv.weight[..., 0, :] = torch.nan
        layer.conv.weight[..., :, -1] = torch.nan
        layer.taps.matrices["3"].fill_(torch.nan)
    assert torch.equal(call(layer, x, {"in": 1, "taps": 1}), before)


def test_kernels_that_are_choices_are_odd() -> None:
    for make in (lambda size: ElasticConv1d(2, 2, size), lambda size: ElasticDepthwiseConv2d(2, size)):
        with pytest.raises(ArchitectureError, match=r"^Kernels must be odd, but choice 'taps' has \[3, 4\]\.$"):
            make(Size("taps", (3, 4)))


def test_kernels_of_one_size_are_odd() -> None:
    with pytest.raises(ArchitectureError, match=r"^Kernels must be odd, so that inputs keep their size, but got 4\.$"):
        ElasticConv2d(2, 2, 4)


def test_kernels_have_no_gates() -> None:
    with pytest.raises(ArchitectureError, match="Choice 'taps' is between kernels, which have no gates"):
        call(ElasticConv1d(2, 2, TAPS), torch.ones(1, 2, 9), {"taps": Gates(torch.ones(7))})


def test_all_can_be_differentiated_twice() -> None:
    images = [ElasticConv2d(2, IN, TAPS), ElasticBatchNorm2d(IN), nn.Tanh(), ElasticDepthwiseConv2d(IN, TAPS)]
    features = [nn.Flatten(2), ElasticLinear(4, IN), ElasticLayerNorm(IN), ElasticLinear(IN, 1)]
    network = randomised(nn.Sequential(*images, *features))

    def output(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return call(network, x, {"in": a.softmax(0), "taps": b.softmax(0)})

    arguments = (numbers(3), numbers(3, seed=1), numbers(2, 2, 2, 2))
    assert torch.autograd.gradgradcheck(output, tuple(argument.requires_grad_() for argument in arguments))
