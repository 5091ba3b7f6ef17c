"""Weighted sums with folded batch norms: the compiled loops and the folding against the plain formulas."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.config import resolve_space
from nasengine.mixing import Statistics, Unnormed, combined, measured, mixed, plain_combined, summed
from nasengine.operations import OPERATIONS
from nasengine.seeding import generator
from nasengine.separable import by_formula
from nasengine.supernet import MixedOp, Supernet
from nasengine.task import Batch, Shapes


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def images(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=generator(seed))
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def terms(count: int, channels: int, sides: tuple[int, int], batch: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    values = [images(seed, batch, channels, *sides) for seed in range(count)]
    scales = torch.randn(count, channels, generator=generator(90)).requires_grad_()
    return values, scales, torch.randn(channels, generator=generator(91)).requires_grad_()


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("channels", [3, 16, 20, 48])
@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (8, 8), (17, 9)])
def test_sums_and_gradients_are_those_of_the_formula(channels: int, sides: tuple[int, int]) -> None:
    values, scales, shift = terms(5, channels, sides)
    double = [
        [v.detach().double().requires_grad_() for v in values],
        *(t.detach().double().requires_grad_() for t in (scales, shift)),
    ]
    found, wanted = combined(values, scales, shift), plain_combined(*double)  # type: ignore[arg-type]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert apart(found, wanted) < 1e-6
    grad = images(80, *found.shape).detach()
    mine = torch.autograd.grad(found, [scales, shift, *values], grad)
    theirs = torch.autograd.grad(wanted, [*double[1:], *double[0]], grad.double())  # type: ignore[list-item]
    assert max(map(apart, mine, theirs)) < 1e-5


def test_only_gradients_that_are_needed_are_computed() -> None:
    values, scales, shift = terms(3, 16, (4, 4))
    values[1] = values[1].detach()
    found = torch.autograd.grad(combined(values, scales.detach(), shift).sum(), [values[0], values[2]])
    wanted = torch.autograd.grad(plain_combined(values, scales.detach(), shift).sum(), [values[0], values[2]])
    assert max(map(apart, found, wanted)) < 1e-6


def test_the_bits_do_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values, scales, shift = terms(4, 24, (19, 23), batch=5)
        total = combined(values, scales, shift)
        found.append([total, *torch.autograd.grad(total.square().sum(), [scales, shift, *values])])
    assert all(torch.equal(one, other) for one, *others in zip(*found, strict=True) for other in others)


def test_second_derivatives() -> None:
    values, scales, shift = terms(3, 4, (3, 3))

    def slope_of(combine: object) -> list[Tensor]:
        total = combine(values, scales, shift)  # type: ignore[operator]
        first = torch.autograd.grad(total.pow(3).sum(), [scales, *values], create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), [scales, shift, *values]))  # type: ignore[arg-type]

    assert max(map(apart, slope_of(combined), slope_of(plain_combined))) < 1e-5


def test_other_tensors_take_the_formula() -> None:
    values, scales, shift = terms(2, 3, (4, 4))
    double = combined([v.double() for v in values], scales.double(), shift.double())
    assert double.dtype == torch.float64
    meta = combined([v.to("meta") for v in values], scales.to("meta"), shift.to("meta"))
    assert meta.is_meta and meta.shape == values[0].shape


def test_nan_goes_through() -> None:
    values, scales, shift = terms(2, 16, (4, 4))
    with torch.no_grad():
        values[1][0, 3, 1, 2] = float("nan")
    found = combined(values, scales, shift)
    assert found.isnan().sum() == 1 and found[0, 3, 1, 2].isnan()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_norms_are_folded(affine: bool, training: bool) -> None:
    norms = [nn.BatchNorm2d(6, affine=affine).train(training) for _ in range(2)]
    for seed, norm in enumerate(norms):
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data.uniform_(0.5, 2, generator=generator(seed))
    plain = copy.deepcopy(norms)
    values, weights = [images(seed, 3, 6, 5, 4) for seed in range(3)], torch.tensor([0.2, 0.5, 0.3]).requires_grad_()
    statistics = Statistics()
    parts = [measured(values[0], norms[0], statistics), Unnormed(values[1]), measured(values[2], norms[1], statistics)]
    statistics.keep()
    found = mixed(parts, weights)
    wanted = weights[0] * plain[0](values[0]) + weights[1] * values[1] + weights[2] * plain[1](values[2])
    assert apart(found, wanted) < 1e-6
    grad = images(80, *found.shape).detach()
    inputs = [weights, *values, *(p for norm in norms for p in norm.parameters())]
    others = [weights, *values, *(p for norm in plain for p in norm.parameters())]
    assert max(map(apart, torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, others, grad))) < 1e-5
    for norm, other in zip(norms, plain, strict=True):
        for mine, theirs in zip(norm.buffers(), other.buffers(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_moments_move_as_those_of_torch(momentum: float | None) -> None:
    norms = [nn.BatchNorm2d(4, momentum=momentum), nn.BatchNorm2d(4)]
    plain = copy.deepcopy(norms)
    for seed in range(3):
        statistics = Statistics()
        for place, (norm, other) in enumerate(zip(norms, plain, strict=True)):
            x = images(10 * place + seed, 2, 4, 3, 3).detach()
            measured(x, norm, statistics)
            other(x)
        statistics.keep()
    for norm, other in zip(norms, plain, strict=True):
        for mine, theirs in zip(norm.buffers(), other.buffers(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-6)


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    norm, x = nn.BatchNorm2d(4), images(0, 1, 4, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        measured(x, norm, Statistics())


# Whole networks


def evaluated(
    supernet: Supernet, batch: Batch, mixture: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradients of the weights and gradients of the mixture."""
    loss = supernet.evaluate(batch, mixture).loss
    weights, shares = list(supernet.parameters()), list(mixture.values())
    found = torch.autograd.grad(loss, [*weights, *shares], materialize_grads=True)
    return loss, list(found[: len(weights)]), list(found[len(weights) :])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("darts", {"channels": "6", "layers": "3", "nodes": "2"}), ("nasbench201", {"channels": "5", "cells": "1"})],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_supernet_in_compiled_loops_is_the_plain_one(name: str, settings: dict[str, str], training: bool) -> None:
    shapes = Shapes((3, 9, 9), 4)
    made = resolve_space(name, {}, settings).supernet(shapes, F.cross_entropy).train(training)
    fast = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain, double = copy.deepcopy(fast), copy.deepcopy(fast).double()
    double.share = plain.share = False
    inputs = images(7, 6, 3, 9, 9).detach()
    targets = torch.arange(6) % 4
    rng = generator(3)
    shares = {label: torch.rand(len(c.options), generator=rng).softmax(0) for label, c in fast.choices.items()}
    found, wanted = (
        evaluated(net, Batch(inputs.to(dtype), targets), {k: v.to(dtype).requires_grad_() for k, v in shares.items()})
        for net, dtype in ((fast, torch.float32), (double, torch.float64))
    )
    assert apart(found[0], wanted[0]) < 1e-5
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        flat = [torch.cat([g.flatten().double() for g in column]) for column in (mine, theirs)]
        assert apart(*flat) < 1e-4


@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolutions_of_derived_networks(name: str, stride: int) -> None:
    module = OPERATIONS[name](6, stride, True, nn.ReLU())
    plain = copy.deepcopy(module)
    x = images(0, 4, 6, 7, 8)
    found = module(x)
    with by_formula():
        wanted = plain(x)
    assert apart(found, wanted) < 1e-5
    grad = images(80, *found.shape).detach()
    mine = torch.autograd.grad(found, [x, *module.parameters()], grad)
    theirs = torch.autograd.grad(wanted, [x, *plain.parameters()], grad)
    assert max(map(apart, mine, theirs)) < 1e-4
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_hard_choice_runs_its_module_alone() -> None:
    from nasengine.supernet import _bound

    ones = [MixedOp(f"e{i}", {"a": nn.Identity(), "b": nn.Conv2d(3, 3, 1)}) for i in range(2)]
    x = images(0, 1, 3, 4, 4)
    with _bound({"e0": 0, "e1": torch.tensor([0.25, 0.75])}, True):
        found = summed(ones, [x, x])
    assert torch.allclose(found, x + 0.25 * x + 0.75 * ones[1].options[1](x), atol=1e-6)
