"""What delayed epsilon-shrinking sorts, what progressive shrinking trains when, and how both resume."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasengine.algorithm import load_state_dict, state_dict
from nasengine.algorithms import deps
from nasengine.algorithms.deps import DepS, ShrinkingWeights
from nasengine.elastic import Size
from nasengine.layers import ElasticConv1d, put
from nasengine.seeding import generator
from nasengine.testing import SizedSpace, check_algorithm, run_steps, sized
from nasengine.units import importance, order_by, permute
from tests.nasengine.algorithms.shrinking import MUTE, OFA, begin, constant, sampled

# Sorting


def in_order(network: nn.Module) -> dict[Size, Tensor]:
    """By size the units by falling importance."""
    sizes = dict.fromkeys(size for module in network.modules() for size in getattr(module, "features", ()))
    return {size: order_by(importance(network, size)) for size in sizes}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sorting_moves_weights_and_their_momentum_together(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the subnets weigh nothing, the sorted network goes on as the unsorted one does, unit by unit."""
    calls: list[int] = []

    def counted(network: nn.Module, orders: dict[Size, Tensor]) -> None:
        calls.append(1)
        permute(network, orders)

    monkeypatch.setattr(deps, "permute", counted)
    models, infos = [sized(), sized()], []
    weights = ShrinkingWeights(optimizer=optimizer, lr=0.05)  # type: ignore[arg-type]
    for model, sort in zip(models, (True, False), strict=True):
        algorithm = DepS(warmup=0.5, ramp=0.0, sort=sort, teacher="none", hard=MUTE, weights=weights)
        state = begin(algorithm, model, 6)
        run_steps(algorithm, state, model, 3)
        if not sort:
            orders = in_order(model.supernet.network)
        infos.append(run_steps(algorithm, state, model, 3))
        assert state.sorted == sort
    assert len(calls) == 1
    assert any(order.tolist() != sorted(order.tolist()) for order in orders.values())
    for one, other in zip(*infos, strict=True):
        torch.testing.assert_close(one.train_outputs, other.train_outputs, rtol=1e-9, atol=1e-10)
    moved, unsorted = models[0].supernet, models[1].supernet
    assert not torch.allclose(next(moved.parameters()), next(unsorted.parameters()))
    permute(unsorted.network, orders)
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(tensor, unsorted.state_dict()[name], rtol=1e-9, atol=1e-10)


def important(network: nn.Module, scores: list[float]) -> None:
    """Makes the units of the residual stream important by their places."""
    for module in network.modules():
        if isinstance(module, ElasticConv1d):
            put(module.conv.weight, torch.zeros(()))
    put(network.get_parameter("classifier.linear.weight"), torch.tensor(scores).expand(3, 4))


def test_widths_that_are_open_keep_their_units() -> None:
    """Each width is sorted into before it opens: all units, then those in the second width, then those in the third."""
    model = sized(space=SizedSpace(widths=(1, 2, 3, 4)))
    algorithm = DepS(**{**OFA, "teacher": "none"}, warmup=0.0, weights=constant(MUTE))
    network, steps = model.supernet.network, 3 * 145 * 4
    state = begin(algorithm, model, steps)
    marker = network.get_buffer("stem.1.norm.running_mean")
    put(marker, torch.arange(4.0))
    orders = []
    for at in (0, 145 * 4, 2 * 145 * 4, 2 * 145 * 4 + 51, 2 * 145 * 4 + 101):
        state.step = at
        important(network, [1.0, 2.0, 3.0, 4.0])
        run_steps(algorithm, state, model, 1)
        orders.append(marker.tolist())
    assert orders == [[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [2, 1, 3, 0]]
    assert state.sorted == 3


# Progressive shrinking


def test_progressive_shrinking_trains_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sized(space=SizedSpace(widths=(1, 2, 3, 4)))
    algorithm = DepS(warmup=0.25, **OFA)
    state = begin(algorithm, model, 40)
    kinds = ("kernel", "depth", "width", "hidden")
    largest = {"kernel": "3", "depth": "2", "width": "4", "hidden": "4"}
    seen: list[set[str]] = []
    for step in range(40):
        found = sampled(algorithm, state, model, monkeypatch)
        assert len(found) == (0 if step < 10 else 1 if step < 20 else 2 if step < 30 else 4)
        supernet = model.supernet
        smaller = {
            kind
            for architecture in found
            for label in set(architecture) - set(supernet.space.unused(supernet.choices, architecture))
            for kind in kinds
            if label.endswith(kind) and architecture[label] != largest[kind]
        }
        seen.append(smaller)
    parts = [set().union(*seen[begin : begin + 10]) for begin in (0, 10, 20, 30)]
    assert parts == [set(), {"kernel"}, {"kernel", "depth"}, set(kinds)]


def test_the_teacher_is_the_network_of_the_switch() -> None:
    model = sized()
    algorithm = DepS(warmup=0.25, **OFA)
    state = begin(algorithm, model, 12)
    assert state.teacher is not None
    start = copy.deepcopy(state.teacher.state_dict())
    run_steps(algorithm, state, model, 3)
    switch = copy.deepcopy(state.full.state_dict())
    assert not any(state.teacher.state_dict()[name] is tensor for name, tensor in state.full.state_dict().items())
    assert all(torch.equal(tensor, start[name]) for name, tensor in state.teacher.state_dict().items())
    for _ in range(9):
        run_steps(algorithm, state, model, 1)
        assert all(torch.equal(tensor, switch[name]) for name, tensor in state.teacher.state_dict().items())
    assert not all(torch.equal(tensor, switch[name]) for name, tensor in state.full.named_parameters())


# The state


@pytest.mark.parametrize(
    "settings",
    [{"warmup": 0.5, "ramp": 0.2}, {"warmup": 0.25, **OFA}, {"warmup": 0.25, **OFA, "sampling": "sandwich"}],
    ids=["delayed", "progressive", "progressive sandwich"],
)
def test_resumes_in_every_phase(settings: dict[str, Any]) -> None:
    algorithm, steps = DepS(**settings), 12
    model = sized(space=SizedSpace(widths=(1, 2, 3, 4)))
    state = begin(algorithm, model, steps)
    files = []
    for _ in range(steps):
        file = io.BytesIO()
        torch.save(state_dict(state), file)
        files.append(file)
        run_steps(algorithm, state, model, 1)
    for done in (1, 4, 5, 7, 9, 10, 11):
        files[done].seek(0)
        other = sized(seed=1, space=SizedSpace(widths=(1, 2, 3, 4)))
        again = algorithm.init(other.supernet, generator(1), steps)
        load_state_dict(again, torch.load(files[done], weights_only=True))
        run_steps(algorithm, again, model, steps - done)
        for part in ("full", "teacher"):
            if getattr(state, part) is not None:
                end, expected = getattr(again, part).state_dict(), getattr(state, part).state_dict()
                assert all(torch.equal(tensor, expected[name]) for name, tensor in end.items()), (done, part)
        assert torch.equal(again.generator.get_state(), state.generator.get_state())
        assert (again.step, again.sorted, again.frozen) == (state.step, state.sorted, state.frozen)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup": 0.0, "ramp": 0.0, "sort": False},
        {"warmup": 0.3, **OFA},
        {"sampling": "random", "teacher": "none", "warmup": 0.2},
        {"weights": ShrinkingWeights(optimizer="adamw", lr=1e-3), "warmup": 0.3},
    ],
    ids=str,
)
def test_laws(settings: dict[str, Any]) -> None:
    check_algorithm(DepS(**settings))
