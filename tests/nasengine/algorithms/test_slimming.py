"""Slimming: its steps written out, what its ranking removes, and the network that is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import WeightSettings
from nasengine.algorithms.slimming import Slimming, SlimmingState
from nasengine.budget import CostModel, Limits
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.gates import GateSettings
from nasengine.penalties import Penalty, Sparsity
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Shapes
from nasengine.testing import Solvable, check_algorithm, run_steps, sized, smooth
from tests.nasengine.elastic_spaces import UNITS, hidden, weights_of

STILL = WeightSettings(lr=1e-300, lr_min=0.0, momentum=0.0, weight_decay=0.0, clip=0.0)
PLAIN = WeightSettings(lr=0.2, lr_min=0.2, momentum=0.0, weight_decay=0.0, clip=0.0)
NORMS = {
    "width": ["stem.1", "norm"],
    "block1/hidden": ["blocks.layers.0.inside.1"],
    "block2/hidden": ["blocks.layers.1.inside.1"],
}
"""Of the toy, by label: the batch norms on a size."""


def sparse(weight: float, by: str = "subgradient", kind: str = "l1", a: float = 1.0, beta: float = 1.0) -> Sparsity:
    penalty = Penalty(kind=kind, weight=weight, a=a)  # type: ignore[arg-type]
    return Sparsity(by=by, penalty=penalty, beta=beta)  # type: ignore[arg-type]


def begin(algorithm: Slimming, model: Solvable, steps: int = 10) -> SlimmingState:
    return algorithm.init(model.supernet, generator(0), steps)


def scales(supernet: Supernet, part: str = "weight") -> dict[str, list[nn.Parameter]]:
    """The scales (or the biases) of the norms by label of their size."""
    network = supernet.network
    return {label: [network.get_parameter(f"{n}.norm.{part}") for n in names] for label, names in NORMS.items()}


def fill(targets: list[Tensor], *rows: list[float]) -> None:
    with torch.no_grad():
        for target, row in zip(targets, rows, strict=True):
            target.copy_(torch.tensor(row))


# A step on gates


def test_one_step_written_out() -> None:
    """Weights and gates on the gradients of one loss, at the old values of both; the gates on the penalty as well."""
    model = hidden()
    algorithm = Slimming(weights=PLAIN, gates=GateSettings(lr=0.3, sparsity=sparse(0.01)))
    state = begin(algorithm, model)
    fill(list(state.gates.values), [1.0, -0.5, 0.25, 2.0])
    weights, (inputs, targets) = weights_of(model.supernet), model.train
    gates = state.gates.values[0].detach().clone().requires_grad_()
    a, c, b, d = weights.values()
    loss = F.cross_entropy((torch.tanh(inputs @ a.T + c) * gates) @ b.T + d, targets)
    slopes = torch.autograd.grad(loss, [*weights.values(), gates])

    (info,) = run_steps(algorithm, state, model, 1)
    torch.testing.assert_close(info.train_loss, loss.detach())
    assert info.valid_loss is None
    for new, old, slope in zip(model.supernet.parameters(), weights.values(), slopes, strict=False):
        torch.testing.assert_close(new.detach(), (old - 0.2 * slope).detach(), rtol=1e-12, atol=1e-14)
    expected = gates - 0.3 * (slopes[-1] + 0.01 * gates.sign())
    torch.testing.assert_close(state.gates.values[0].detach(), expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("by", ["subgradient", "proximal"])
def test_l1_alone_sends_scores_linearly_to_zero(by: str) -> None:
    """A classifier that reads nothing gives the gates no other gradient: they fall by weight * lr a step."""
    model = sized()
    algorithm = Slimming(weights=STILL, gates=GateSettings(lr=0.5, sparsity=sparse(0.3, by)))
    state = begin(algorithm, model)
    with torch.no_grad():
        model.supernet.network.get_parameter("classifier.linear.weight").zero_()
    for step in range(1, 7):
        run_steps(algorithm, state, model, 1)
        for value in state.gates.values:
            torch.testing.assert_close(value.detach(), torch.full_like(value, 1 - 0.15 * step))
    assert algorithm.indicators(state)["score"] < 0.2
    run_steps(algorithm, state, model, 1)
    assert (algorithm.indicators(state)["zero_scores"] > 0.7) == (by == "proximal")


def test_gates_of_one_train_the_full_network() -> None:
    """Before the scores move, a step is one of the network without scores."""
    model, other = sized(), sized()
    settings = GateSettings(lr=1e-300)
    algorithm = Slimming(weights=PLAIN, gates=settings)
    state = begin(algorithm, model)
    mixture = {**other.supernet.full(), "last": state.operations.values[0].detach().clone()}
    run_steps(algorithm, state, model, 2)
    optimizer = torch.optim.SGD(other.supernet.parameters(), lr=0.2)
    for _ in range(2):
        optimizer.zero_grad()
        other.supernet.evaluate(other.train, mixture).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for ours, theirs in zip(model.supernet.parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for one, two in zip(model.supernet.buffers(), other.supernet.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


# A step on the scales of norms


@pytest.mark.parametrize(
    ("kind", "a", "slope"),
    [
        ("l1", 1.0, lambda g: 0.02 * g.sign()),
        ("tl1", 0.5, lambda g: 0.02 * 0.5 * 1.5 * g.sign() / (0.5 + g.abs()) ** 2),
        ("mcp", 100.0, lambda g: g.sign() * (0.02 - g.abs() / 100).clamp(min=0)),
    ],
)
def test_network_slimming_adds_the_subgradient_to_that_of_the_scales(
    kind: str, a: float, slope: Callable[[Tensor], Tensor]
) -> None:
    """Before momentum and weight decay, as published (arXiv:1708.06519, arXiv:2010.01242); the biases are spared."""
    weights = WeightSettings(lr=0.1, lr_min=0.02, momentum=0.9, weight_decay=1e-2, clip=0.0)
    algorithm = Slimming(
        on="norms", weights=weights, gates=GateSettings(lr=1e-300, sparsity=sparse(0.02, kind=kind, a=a))
    )
    model, other = sized(), sized()
    state = begin(algorithm, model, 4)
    assert list(state.gates.parameters()) == []
    mixture = {**other.supernet.full(), "last": state.operations.values[0].detach().clone()}
    run_steps(algorithm, state, model, 4)

    optimizer = torch.optim.SGD(other.supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4, eta_min=0.02)
    for _ in range(4):
        optimizer.zero_grad()
        other.supernet.evaluate(other.train, mixture).loss.backward()  # type: ignore[no-untyped-call]
        for gamma in (scale for found in scales(other.supernet).values() for scale in found):
            assert gamma.grad is not None
            gamma.grad += slope(gamma.detach())
        for parameter in other.supernet.parameters():  # torch passes over weights without gradient
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(model.supernet.parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_proximal_step_follows_the_descent_of_the_scales() -> None:
    algorithm = Slimming(on="norms", weights=PLAIN, gates=GateSettings(lr=1e-300, sparsity=sparse(2.0, "proximal")))
    plain = Slimming(on="norms", weights=PLAIN, gates=GateSettings(lr=1e-300, sparsity=sparse(0.0)))
    models = [sized(), sized()]
    for method, model in zip((algorithm, plain), models, strict=True):
        run_steps(method, begin(method, model), model, 1)
    for label, found in scales(models[0].supernet).items():
        for ours, moved in zip(found, scales(models[1].supernet)[label], strict=True):
            expected = moved.sign() * (moved.abs() - 0.2 * 2.0).clamp(min=0)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_the_score_of_a_size_is_the_mean_over_its_norms() -> None:
    algorithm, model = Slimming(on="norms"), sized()
    state = begin(algorithm, model)
    fill(list(scales(model.supernet)["width"]), [1.0, -2.0, 0.5, 0.0], [3.0, 2.0, -0.5, 0.0])
    scores = {size.label: score for size, score in algorithm.scores(state).items()}
    assert scores["width"].tolist() == [2.0, 2.0, 0.5, 0.0]
    assert list(scores) == list(NORMS)


# What is removed


def test_one_ranking_removes_over_all_sizes() -> None:
    algorithm, model = Slimming(gates=GateSettings(remove=0.5)), sized(space=UNITS)
    state = begin(algorithm, model)
    fill(list(state.gates.values), [4.0, -3.0, 2.0, -5.0], [0.1, 0.2, 0.3, 6.0], [-0.7, 0.6, 0.5, 7.0])
    fill(list(state.operations.values), [0.1, -0.5, 0.3])
    expected = "width=4 depth=2 block1/hidden=1 block1/kernel=3 block2/hidden=1 block2/kernel=3 last=sigmoid"
    assert str(algorithm.derive(state)) == expected


@pytest.mark.parametrize("training", [False, True])
def test_what_is_left_computes_what_the_scored_network_did(training: bool) -> None:
    algorithm, model = Slimming(gates=GateSettings(remove=0.0)), sized(space=UNITS)
    state = begin(algorithm, model)
    fill(list(state.gates.values), [0.7, 0.0, -2.0, 0.5], [0.0, 0.0, 0.3, -1.5], [0.0, 1.2, 0.0, 0.0])
    architecture = algorithm.derive(state)
    assert [architecture[label] for label in NORMS] == ["3", "2", "1"]
    inputs = model.train.inputs
    full = model.supernet.train(training)
    scored = full(inputs, {**full.hard(architecture), **state.gates.mixture()})
    sculpted = algorithm.supernet(state)
    torch.testing.assert_close(sculpted.extract(architecture)(inputs), scored, rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in sculpted.extract(architecture).parameters()) < 100


@pytest.mark.parametrize("on", ["gates", "norms"])
def test_the_sculpted_network_under_its_mixture_is_the_trained_one(on: str) -> None:
    algorithm, model = Slimming(on=on, weights=PLAIN, gates=GateSettings(lr=0.5)), sized()  # type: ignore[arg-type]
    state = begin(algorithm, model)
    run_steps(algorithm, state, model, 3)
    trained = {**model.supernet.full(), **state.operations.mixture(), **state.gates.mixture()}
    for training in (False, True):
        expected = model.supernet.train(training)(model.valid.inputs, trained)
        sculpted = algorithm.supernet(state).train(training)
        outputs = sculpted(model.valid.inputs, algorithm.mixture(state))
        torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
        assert sculpted is not model.supernet


def test_units_whose_norm_is_zero_are_cut_without_a_trace() -> None:
    algorithm, model = Slimming(on="norms", gates=GateSettings(remove=0.0)), sized(space=UNITS)
    state = begin(algorithm, model)
    for part in ("weight", "bias"):
        found = scales(model.supernet, part)
        fill(list(found["block1/hidden"]), [0.0, -0.4, 0.0, 2.0])
        fill(list(found["block2/hidden"]), [0.0, 0.0, 1.1, 0.0])
    architecture = algorithm.derive(state)
    assert [architecture[label] for label in NORMS] == ["4", "2", "1"]
    largest = model.supernet.space.largest(model.supernet.choices).replace("last", architecture["last"])
    for training in (False, True):
        full = model.supernet.train(training)(model.valid.inputs, model.supernet.hard(largest))
        small = algorithm.supernet(state).train(training).extract(architecture)
        torch.testing.assert_close(small(model.valid.inputs), full, rtol=1e-10, atol=1e-10)


def test_in_proximal_network_slimming_a_unit_goes_where_its_copy_is_zero() -> None:
    sparsity = sparse(0.5, "palm", beta=0.5)
    algorithm = Slimming(on="norms", weights=PLAIN, gates=GateSettings(remove=0.0, sparsity=sparsity))
    model = sized(space=UNITS)
    fill(list(scales(model.supernet)["block1/hidden"]), [0.02, 1.5, -0.05, 2.0])
    state = begin(algorithm, model)
    assert algorithm.derive(state)["block1/hidden"] == "4"
    run_steps(algorithm, state, model, 1)
    (gamma,) = scales(model.supernet)["block1/hidden"]
    assert (gamma != 0).all()
    scores = {size.label: score for size, score in algorithm.scores(state).items()}
    assert scores["block1/hidden"].ne(0).tolist() == [False, True, False, True]
    assert algorithm.derive(state)["block1/hidden"] == "2"
    kept = scales(algorithm.supernet(state))["block1/hidden"][0]
    torch.testing.assert_close(
        kept.abs(), gamma.detach().abs().sort(descending=True).values * torch.tensor([1, 1, 0, 0])
    )


def test_limits_remove_more() -> None:
    algorithm, model = Slimming(gates=GateSettings(remove=0.1)), sized(space=UNITS)
    state = begin(algorithm, model)
    costs = CostModel(UNITS, Shapes((2, 5), 3))
    before = costs.of(algorithm.derive(state)).parameters
    budget = Budget(Limits(before // 2), costs, None, generator(0))
    assert before // 4 < costs.of(algorithm.derive(state, budget)).parameters <= before // 2


# Operations


def test_operations_keep_the_strongest_score() -> None:
    """On cells the scores are those of the operations (arXiv:1811.01567): one step by autograd, then the choice."""
    model, other = smooth(), smooth()
    algorithm = Slimming(weights=PLAIN, gates=GateSettings(lr=0.3, sparsity=sparse(0.05)))
    state = begin(algorithm, model)
    fill(list(state.operations.values), [0.2, 0.7, -0.1], [0.3, 0.3, -0.9])
    rows = [value.detach().clone().requires_grad_() for value in state.operations.values]
    loss = other.supernet.evaluate(other.train, {"layer/0": rows[0], "layer/1": rows[1]}).loss
    run_steps(algorithm, state, model, 1)
    for row, slope, new in zip(rows, torch.autograd.grad(loss, rows), state.operations.values, strict=True):
        expected = row - 0.3 * (slope + 0.05 * row.sign())
        torch.testing.assert_close(new.detach(), expected.detach(), rtol=1e-12, atol=1e-14)
    assert str(algorithm.derive(state)) == "layer/0=gate layer/1=skip"
    assert list(state.gates.parameters()) == []


# All penalties, the state, the settings

PENALTIES = {
    "l1": (1.0, 0.1),
    "l0": (1.0, 3.0),
    "lp": (0.5, 0.1),
    "tl1": (1.0, 0.1),
    "mcp": (20.0, 0.1),
    "scad": (20.0, 0.1),
}
"""By kind: a, and a weight that moves scores of about 1 in three steps."""
WAYS = ("subgradient", "proximal", "splitting", "palm")


@pytest.mark.parametrize("on", ["gates", "norms"])
@pytest.mark.parametrize(
    ("kind", "by"), [(kind, by) for kind in PENALTIES for by in WAYS if (kind, by) != ("l0", "subgradient")]
)
def test_every_penalty_runs_in_every_way(kind: str, by: str, on: str) -> None:
    a, strength = PENALTIES[kind]
    ends = []
    for weight in (0.0, strength):
        gates = GateSettings(lr=0.1, sparsity=sparse(weight, by, kind, a))
        algorithm, model = Slimming(on=on, weights=PLAIN, gates=gates), sized()  # type: ignore[arg-type]
        state = begin(algorithm, model)
        run_steps(algorithm, state, model, 3)
        ends.append(algorithm.indicators(state))
        model.supernet.space.check(model.supernet.choices, algorithm.derive(state))
        assert torch.isfinite(algorithm.supernet(state)(model.valid.inputs, algorithm.mixture(state))).all()
    assert ends[1]["score"] < ends[0]["score"] < 3


def test_indicators() -> None:
    algorithm, model = Slimming(), hidden()
    state = begin(algorithm, model)
    assert algorithm.indicators(state) == {"score": 1.0, "zero_scores": 0.0}
    fill(list(state.gates.values), [0.0, -2.0, 1.0, 0.0])
    assert algorithm.indicators(state) == {"score": 0.75, "zero_scores": 0.5}


@pytest.mark.parametrize("by", ["subgradient", "splitting", "palm"])
@pytest.mark.parametrize("on", ["gates", "norms"])
def test_laws(on: Any, by: str) -> None:
    algorithm = Slimming(on=on, gates=GateSettings(lr=0.1, sparsity=sparse(0.1, by)))
    check_algorithm(algorithm, toys=(sized,)) if on == "norms" else check_algorithm(algorithm)


def test_scales_need_norms() -> None:
    with pytest.raises(
        SettingError, match=r"algo\.on=norms needs widths with norms, but space .* has none; set algo\.on=gates"
    ):
        begin(Slimming(on="norms"), hidden())
