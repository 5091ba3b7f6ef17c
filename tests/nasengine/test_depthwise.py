"""Compiled depthwise convolutions equal the plain ones, and give way to them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.depthwise import depthwise
from nasengine.separable import by_formula, is_fast

CASES = list(itertools.product((3, 5, 7), (1, 2), ((1, 1), (2, 2), (7, 4), (9, 12)), ((3, 20), (9, 16))))
"""Kernel, stride, side lengths, and images with channels: parts of tiles, and whole ones."""


def inputs(images: int, channels: int, side: tuple[int, int], kernel: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, *side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(channels, 1, kernel, kernel, generator=generator, requires_grad=True)


def plain(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


@pytest.mark.parametrize(("kernel", "stride", "side", "batch"), CASES)
def test_compiled_loops_equal_the_formula(
    kernel: int, stride: int, side: tuple[int, int], batch: tuple[int, int]
) -> None:
    pytest.importorskip("numba")
    x, weight = inputs(*batch, side, kernel)
    assert is_fast(x)
    y, expected = depthwise(x, weight, stride, kernel // 2, 1), plain(x.double(), weight.double(), stride)
    assert "Compiled" in type(y.grad_fn).__name__
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = (y, *torch.autograd.grad(y, (x, weight), upstream))
    wanted = (expected, *torch.autograd.grad(expected, (x, weight), upstream.double()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=1e-5, atol=1e-5 * float(other.detach().abs().max())
        )


def test_bits_do_not_depend_on_threads() -> None:
    x, weight = inputs(40, 24, (5, 5), 5)

    def gradients(threads: int) -> tuple[Tensor, ...]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y = depthwise(x, weight, 1, 2, 1)
            return y, *torch.autograd.grad(y.square().sum(), (x, weight))
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(one, other) for one, other in zip(gradients(1), gradients(2), strict=True))


def test_only_what_is_needed_is_computed() -> None:
    x, weight = inputs(2, 8, (4, 4), 3)
    of_both = torch.autograd.grad(depthwise(x, weight, 1, 1, 1).square().sum(), (x, weight))
    of_x = torch.autograd.grad(depthwise(x, weight.detach(), 1, 1, 1).square().sum(), x)[0]
    of_weight = torch.autograd.grad(depthwise(x.detach(), weight, 1, 1, 1).square().sum(), weight)[0]
    torch.testing.assert_close((of_x, of_weight), of_both, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_second_derivatives_are_those_of_the_formula(layout: torch.memory_format) -> None:
    x, weight = inputs(2, 8, (4, 4), 3)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()

    def second(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))  # type: ignore[arg-type]

    found, wanted = second(depthwise(x, weight, 2, 1, 1)), second(plain(x, weight, 2))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_transforms_of_functions_and_even_kernels_give_way() -> None:
    x, weight = inputs(2, 8, (4, 4), 3)
    wanted = torch.autograd.grad(plain(x, weight, 2).sum(), weight)[0]
    found = torch.func.grad(lambda weight: depthwise(x, weight, 2, 1, 1).sum())(weight)
    torch.testing.assert_close(found, wanted)
    depthwise(x, weight[..., :2, :2], 1, 0, 1).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("dilation", [1, 2])
def test_everything_else_gives_way(dilation: int) -> None:
    x, weight = inputs(2, 8, (6, 6), 3)
    expected = F.conv2d(x, weight, None, 1, dilation, dilation, groups=8)
    with by_formula():
        torch.testing.assert_close(depthwise(x, weight, 1, dilation, dilation), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(depthwise(x, weight, 1, dilation, dilation), expected, rtol=0, atol=0)
    doubled = depthwise(x.double(), weight.double(), 1, dilation, dilation)
    torch.testing.assert_close(doubled.float(), expected)
    torch.testing.assert_close(depthwise(x, weight, 1, dilation, dilation), expected)
