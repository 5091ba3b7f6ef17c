"""The fast operations equal the plain ones."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.operations import OPERATIONS, DepthwiseConv, DropPath, FactorizedReduce, PointwiseConv

CASES = list(itertools.product((3, 5), (1, 2), (1, 2), (8, 9), (1, 4)))


def _plain(conv: DepthwiseConv, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize(("kernel", "stride", "dilation", "size", "channels"), CASES)
def test_depthwise_convolution_equals_the_plain_one(
    kernel: int, stride: int, dilation: int, size: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = DepthwiseConv(channels, kernel, stride, dilation).double()
    x = torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = conv.weight.detach().clone().requires_grad_()
    fast, plain = conv(x), _plain(conv, x, weight)
    upstream = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    fast_gradients = torch.autograd.grad(fast, (x, conv.weight), upstream)
    plain_gradients = torch.autograd.grad(plain, (x, weight), upstream)
    torch.testing.assert_close(fast, plain, rtol=0, atol=0)
    torch.testing.assert_close(fast_gradients, plain_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), list(itertools.product((3, 5), (1, 2), (1, 2))))
def test_depthwise_convolution_can_be_differentiated_twice(kernel: int, stride: int, dilation: int) -> None:
    conv = DepthwiseConv(2, kernel, stride, dilation).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(conv, {"weight": weight}, (x,))
        return output

    weight = conv.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, weight))
    assert torch.autograd.gradgradcheck(forward, (x, weight))


def test_weight_gradients_that_nobody_wants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = DepthwiseConv(2, 3)
    conv.weight.requires_grad_(False)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", None)
    x = torch.ones(1, 2, 4, 4, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("size", [4, 7, 8, 9])
def test_factorized_reduce_halves_any_size_and_sees_all_pixels(size: int) -> None:
    reduce = FactorizedReduce(2, 4, False, nn.Identity()).double().eval()
    x = torch.rand(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    output = reduce(x)
    assert output.shape == (1, 4, (size + 1) // 2, (size + 1) // 2)
    seen = torch.autograd.grad(output.pow(2).sum(), x)[0] != 0
    rows, columns = torch.meshgrid(torch.arange(size) % 2, torch.arange(size) % 2, indexing="ij")
    assert bool((seen[0, 0] == (rows == columns)).all())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_keep_channels_and_divide_the_size(name: str, stride: int) -> None:
    module = OPERATIONS[name](4, stride, True, nn.ReLU())
    assert module(torch.rand(2, 4, 7, 7)).shape == (2, 4, *[7 if stride == 1 else 4] * 2)


def test_drop_path_drops_whole_samples_keeps_the_mean_and_rests_in_evaluation() -> None:
    drop, x = DropPath(), torch.ones(4000, 2, 1, 1)
    assert drop(x) is x
    drop.probability = 0.25
    torch.manual_seed(0)
    output = drop(x)
    assert sorted(set(output.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert bool((output[:, 0] == output[:, 1]).all())
    assert float(output.mean()) == pytest.approx(1.0, abs=0.03)
    assert copy.deepcopy(drop).eval()(x) is x


@pytest.mark.parametrize(("side", "bias"), [((1, 1), False), ((1, 1), True), ((2, 3), False)])
def test_a_pointwise_convolution_equals_the_plain_one(side: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = PointwiseConv(6, 5, bias)
    x = torch.randn(4, 6, *side, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn(4, 5, *side, generator=generator)
    found, expected = conv(x), F.conv2d(x, conv.weight, conv.bias)
    assert ("Convolution" in type(found.grad_fn).__name__) == (side != (1, 1))
    torch.testing.assert_close(found, expected)
    inputs = (x, *conv.parameters())
    wanted = torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, upstream), wanted)
    with torch.no_grad():
        assert torch.equal(conv(x), expected)
