"""What leaves a state, computed together in compiled loops, against the plain modules."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.config import resolve_space
from nasengine.edges import added
from nasengine.operations import OPERATIONS, DropPath, FactorizedReduce, relu_conv_norm
from nasengine.seeding import generator
from nasengine.separable import by_formula
from nasengine.supernet import MixedOp, Shared, Supernet, _bound
from nasengine.task import Batch, Shapes


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def images(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=generator(seed))
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach() - wanted.detach()).norm() / wanted.detach().norm())


def mixtures(channels: int, stride: int, affine: bool = False) -> nn.ModuleList:
    """Two edges from one state that have a rectifier and a pooling in common."""
    relu = Shared(nn.ReLU())
    pool = Shared(nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.BatchNorm2d(channels, affine=affine)))

    def options() -> dict[str, nn.Module]:
        names = ("none", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
        return {"pool": pool, **{name: OPERATIONS[name](channels, stride, affine, relu) for name in names}}

    made = nn.ModuleList(MixedOp(f"e{place}", options()) for place in range(2))
    rng = generator(5)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.data.uniform_(0.5, 2, generator=rng)
    return made


def weights() -> list[Tensor]:
    return [torch.rand(7, generator=generator(place)).softmax(0).requires_grad_() for place in range(2)]


def computed(
    modules: Sequence[nn.Module], x: Tensor, totals: Sequence[Tensor | None], shares: Sequence[Tensor]
) -> list[Tensor]:
    with _bound({f"e{place}": share for place, share in enumerate(shares)}, True):
        return added(modules, x, totals)


def all_of(modules: nn.ModuleList, x: Tensor, total: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of everything."""
    outputs = computed(list(modules), x, [total, None], shares)
    grads = [images(80 + place, *each.shape).detach().to(x.dtype) for place, each in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, [x, total, *shares, *modules.parameters()], grads)]


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("channels", "sides", "stride"), [(6, (7, 6), 1), (6, (7, 6), 2), (20, (8, 8), 2), (16, (9, 4), 1)]
)
def test_all_is_as_the_modules_give_it(
    channels: int, sides: tuple[int, int], stride: int, training: bool, affine: bool
) -> None:
    modules, x = mixtures(channels, stride, affine).train(training), images(0, 4, channels, *sides)
    total = images(1, 4, channels, *(-(-side // stride) for side in sides))
    plain, shares = copy.deepcopy(modules).double(), weights()
    found = all_of(modules, x, total, shares)
    other = doubled([x, total, *shares])
    wanted = all_of(plain, other[0], other[1], other[2:])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert max(map(apart, found[:2], wanted[:2])) < 1e-5
    assert max(map(apart, found[2:], wanted[2:])) < 2e-4
    for mine, theirs in zip(modules.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wanted", ["x", "total", "shares", "weights"])
def test_only_gradients_that_are_needed_are_computed(wanted: str) -> None:
    modules, x, total, shares = mixtures(8, 1), images(0, 3, 8, 6, 6), images(1, 3, 8, 6, 6), weights()
    groups = {"x": [x], "total": [total], "shares": shares, "weights": list(modules.parameters())}
    expected = dict(zip(("x", "total", "shares"), ([0], [1], [2, 3]), strict=True))
    whole = all_of(modules, x, total, shares)[2:]
    for name, group in groups.items():
        for tensor in group:
            tensor.requires_grad_(name == wanted)
    outputs = computed(list(modules), x, [total, None], shares)
    grads = [images(80 + place, *each.shape).detach() for place, each in enumerate(outputs)]
    used = outputs[:1] if wanted == "total" else outputs
    found = torch.autograd.grad(used, groups[wanted], grads[: len(used)])
    places = expected.get(wanted, range(4, len(whole)))
    assert all(torch.equal(one, whole[place]) for one, place in zip(found, places, strict=True))


def test_one_output_alone() -> None:
    modules, x, shares = mixtures(8, 1), images(0, 3, 8, 6, 6), weights()
    inputs = [x, *shares, *modules.parameters()]
    found = [
        torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
        for output in (computed(list(modules), x, [None, None], shares)[1], formula(modules[1], x, shares))
    ]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None) or (one is not None and not one.any())
        assert one is None or other is None or apart(one, other) < 2e-4


def formula(module: nn.Module, x: Tensor, shares: Sequence[Tensor]) -> Tensor:
    with _bound({f"e{place}": share for place, share in enumerate(shares)}, False):
        output: Tensor = module(x)
        return output


def test_the_bits_do_not_depend_on_threads() -> None:
    modules, found = mixtures(12, 1), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(all_of(copy.deepcopy(modules), images(0, 5, 12, 9, 7), images(1, 5, 12, 9, 7), weights()))
    assert all(torch.equal(one, other) for one, *others in zip(*found, strict=True) for other in others)


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives(stride: int) -> None:
    modules, x, total, shares = (
        mixtures(4, stride),
        images(0, 3, 4, 6, 6),
        images(1, 3, 4, 6 // stride, 6 // stride),
        weights(),
    )
    plain, other = copy.deepcopy(modules).double(), doubled([x, total, *shares])

    def slopes(modules: nn.ModuleList, x: Tensor, total: Tensor, shares: Sequence[Tensor]) -> list[Tensor]:
        inputs = [x, total, *shares, *modules.parameters()]
        outputs = computed(list(modules), x, [total, None], shares)
        first = torch.autograd.grad(
            torch.stack([each.pow(3).sum() for each in outputs]).sum(), inputs, create_graph=True
        )
        return list(torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), inputs))

    assert max(map(apart, slopes(modules, x, total, shares), slopes(plain, other[0], other[1], other[2:]))) < 1e-3


def test_other_tensors_take_the_modules() -> None:
    modules, shares = mixtures(4, 1), weights()
    double = computed(
        list(copy.deepcopy(modules).double()), images(0, 2, 4, 5, 5).double(), [None] * 2, doubled(shares)
    )
    assert double[0].dtype == torch.float64
    meta = computed(
        list(modules.to("meta")), torch.empty(2, 4, 5, 5, device="meta"), [None] * 2, [s.to("meta") for s in shares]
    )
    assert meta[1].is_meta and meta[1].shape == (2, 4, 5, 5)


def test_nan_goes_through() -> None:
    modules, x = mixtures(4, 1).eval(), images(0, 2, 4, 9, 9)
    with torch.no_grad():
        x[0, 3, 4, 4] = float("nan")
    found = computed(list(modules), x, [None, None], weights())[0]
    assert found[0].isnan().any() and not found[1].isnan().any()


def test_modules_may_change_between_calls() -> None:
    modules, x, shares = mixtures(6, 1), images(0, 4, 6, 5, 5), weights()
    computed(list(modules), x, [None, None], shares)
    modules.eval()
    assert apart(computed(list(modules), x, [None, None], shares)[0], formula(modules[0], x, shares)) < 1e-5
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.mul_(1.5)
    assert apart(computed(list(modules), x, [None, None], shares)[0], formula(modules[0], x, shares)) < 1e-5
    for place in range(1, 7):
        modules[0].options[place] = nn.Identity()  # type: ignore[index, union-attr]
    assert apart(computed(list(modules), x, [None, None], shares)[0], formula(modules[0], x, shares)) < 1e-5


def test_a_hard_choice_runs_its_module_alone() -> None:
    ones = [MixedOp(f"e{i}", {"a": nn.Identity(), "b": nn.Conv2d(3, 3, 1)}) for i in range(2)]
    x = images(0, 1, 3, 4, 4)
    with _bound({"e0": 0, "e1": torch.tensor([0.25, 0.75])}, True):
        found = added(ones, x, [None, x])
    assert torch.equal(found[0], x)
    assert torch.allclose(found[1], x + 0.25 * x + 0.75 * ones[1].options[1](x), atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [lambda: FactorizedReduce(6, 9, True, nn.ReLU()), lambda: relu_conv_norm(6, 20, True)])
@pytest.mark.parametrize("sides", [(7, 8), (6, 5), (1, 3)])
def test_modules_alone(make: object, sides: tuple[int, int], training: bool) -> None:
    module, x = make().train(training), images(0, 4, 6, *sides)  # type: ignore[operator]
    plain = copy.deepcopy(module)
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


@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("sides", [(7, 5), (8, 8)])
def test_dropped_paths(sides: tuple[int, int], probability: float) -> None:
    names = ("sep_conv_3x3", "dil_conv_5x5", "avg_pool_3x3", "skip_connect")
    modules = nn.ModuleList(nn.Sequential(OPERATIONS[name](6, 2, True, nn.ReLU()), DropPath()) for name in names)
    for module in modules:
        module[1].probability = probability  # type: ignore[index, union-attr, assignment]
    for place, parameter in enumerate(modules.parameters()):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator(place)) / 4)
    plain, x = copy.deepcopy(modules), images(0, 6, 6, *sides)
    found = []
    for each in (modules, plain):
        with torch.random.fork_rng(), by_formula() if each is plain else nullcontext():
            torch.manual_seed(3)
            outputs = added(list(each), x, [None] * len(each))
            grads = [images(80 + place, *output.shape).detach() for place, output in enumerate(outputs)]
            found.append([*outputs, *torch.autograd.grad(outputs, [x, *each.parameters()], grads)])
    assert max(map(apart, *found)) < 1e-4
    if probability:
        assert any(not output[image].any() for output in found[0][:4] for image in range(6))
    x = images(0, 6, 6, *sides)
    second = []
    for each in (modules, plain):
        with torch.random.fork_rng(), by_formula() if each is plain else nullcontext():
            torch.manual_seed(3)
            total = torch.stack([output.square().sum() for output in added(list(each), x, [None] * len(each))]).sum()
            first = torch.autograd.grad(total, x, create_graph=True)[0]
            second.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert apart(*second) < 1e-3


def test_what_is_known_of_a_network_goes_with_it() -> None:
    module = mixtures(6, 1)
    kept = weakref.ref(module[0]), weakref.ref(module[0].options[2])  # type: ignore[index, union-attr, arg-type]
    computed(list(module), images(0, 2, 6, 5, 5), [None, None], weights())
    alone = nn.Sequential(FactorizedReduce(6, 6, True, nn.ReLU()), DropPath())
    gone = weakref.ref(alone)
    added([alone], images(0, 2, 6, 5, 5), [None])
    del module, alone
    gc.collect()
    assert not any(each() for each in (*kept, gone))


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
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of some weights a rectifier falls on the other side of its kink
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
