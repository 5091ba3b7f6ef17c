"""Gates: their descent, the one ranking of all units, and the physical removal of those that go."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nasengine.budget import CostModel, Limits
from nasengine.elastic import Size
from nasengine.errors import LimitError
from nasengine.evolution import Budget
from nasengine.gates import GateSettings, OptionGates, UnitGates, derive_scores, derive_widths, gate_sizes, kept
from nasengine.penalties import Penalty, Sparsity
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Gates
from nasengine.task import Shapes
from nasengine.testing import SizedSpace, sized, smooth
from nasengine.testing._parts import random_batch, random_mixture, random_supernet
from search_spaces.transformer import Transformer
from tests.nasengine.elastic_spaces import UNITS, Layers

LIKE = torch.zeros(0, dtype=torch.float64)


def units(count: int, label: str = "a") -> Size:
    return Size(label, tuple(range(1, count + 1)))


def values_kept(scores: dict[Size, Tensor], remove: float) -> dict[str, int]:
    weights = kept(scores, remove)
    assert all(float(row.sum()) == float(row.max()) == 1 for row in weights.values())
    return {size.label: size.values[int(weights[size.label].argmax())] for size in scores}


# The ranking


@pytest.mark.parametrize(
    ("remove", "left"), [(0.0, 100), (0.009, 100), (0.01, 99), (0.29, 71), (0.57, 43), (0.58, 42), (0.99, 1)]
)
def test_the_ranking_removes_the_floor_of_the_share(remove: float, left: int) -> None:
    scores = torch.randperm(100, generator=generator(0)).double() + 1
    assert values_kept({units(100): scores}, remove) == {"a": left}


def test_the_ranking_is_one_over_all_sizes_and_of_absolute_values() -> None:
    scores = {units(4): torch.tensor([-4.0, 0.1, 3.0, -0.2]), units(4, "b"): torch.tensor([0.3, 2.0, -5.0, 6.0])}
    assert values_kept(scores, 0.25) == {"a": 2, "b": 4}
    assert values_kept(scores, 0.5) == {"a": 2, "b": 2}  # 2.0 goes before the -4 and the 3 of the other one


def test_units_at_zero_go_whatever_the_share() -> None:
    scores = {units(4): torch.tensor([0.0, 1.0, 0.0, 2.0]), units(3, "b"): torch.tensor([1.0, -0.0, 2.0])}
    assert values_kept(scores, 0.0) == {"a": 2, "b": 2}
    assert values_kept(scores, 0.5) == {"a": 2, "b": 2}
    assert values_kept({units(3): torch.zeros(3)}, 0.0) == {"a": 1}


def test_counts_are_rounded_to_options_and_up_in_the_middle() -> None:
    scores = torch.arange(1.0, 11.0)
    size = Size("a", (2, 4, 10))
    found = {left: values_kept({size: scores}, 1 - left / 10)["a"] for left in range(1, 11)}
    assert found == {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 4, 7: 10, 8: 10, 9: 10, 10: 10}


def test_equal_scores_shrink_all_sizes_alike() -> None:
    scores = {units(10): torch.ones(10), units(20, "b"): torch.ones(20), units(5, "c"): torch.ones(5)}
    assert values_kept(scores, 0.4) == {"a": 6, "b": 12, "c": 3}
    assert values_kept(scores, 0.8) == {"a": 2, "b": 4, "c": 1}


def test_without_scores_nothing_is_decided() -> None:
    assert kept({}, 0.5) == {}


def test_what_is_not_scored_is_at_its_largest() -> None:
    supernet = sized().supernet
    architecture = derive_scores(supernet, {"last": torch.tensor([0.1, 0.7, 0.2])}, {}, 0.4, None)
    assert str(architecture) == (
        "width=4 depth=2 block1/hidden=4 block1/kernel=3 block2/hidden=4 block2/kernel=3 last=sigmoid"
    )


def budget(space: Space, parameters: int) -> Budget:
    return Budget(Limits(parameters), CostModel(space, Shapes((4,), 3)), None, generator(0))


def test_under_limits_the_ranking_removes_as_much_more_as_they_need() -> None:
    space = Layers()
    supernet, costs = random_supernet(space, Shapes((4,), 3), 0), CostModel(space, Shapes((4,), 3))
    sizes = gate_sizes(supernet, True)
    scores = {sizes["a"]: torch.tensor([9.0, 1.0, 8.0, 2.0, 7.0]), sizes["b"]: torch.tensor([3.0, 4.0, 5.0, 6.0])}
    steps = [derive_scores(supernet, {}, scores, removed / 9, None) for removed in range(9)]
    found = [str(architecture) for architecture in steps]
    assert found[:5] == ["a=5 b=4", "a=4 b=4", "a=3 b=4", "a=3 b=3", "a=3 b=2"]
    for before, after in pairwise(steps[:5]):
        limit = costs.of(after).parameters
        assert costs.of(before).parameters > limit
        assert derive_scores(supernet, {}, scores, 0.0, budget(space, limit)) == after
    assert str(derive_scores(supernet, {}, scores, 0.4, budget(space, 10**6))) == "a=3 b=3"
    with pytest.raises(LimitError, match="--max-params 5 is below the"):
        derive_scores(supernet, {}, scores, 0.0, budget(space, 5))


def test_limits_without_scores_take_the_likeliest() -> None:
    space = Layers()
    supernet, costs = random_supernet(space, Shapes((4,), 3), 0), CostModel(space, Shapes((4,), 3))
    alphas = {"a": torch.tensor([0.1, 0.1, 0.1, 0.1, 0.6]), "b": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    found = derive_scores(supernet, alphas, {}, 0.4, budget(space, costs.of(space.smallest(costs.choices)).parameters))
    assert str(found) == "a=1 b=1"


# Removal


def transformer() -> Space:
    return Transformer(embedding=6, heads=2, width=3, depth=2, mlp=5, options=0, patch=2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: UNITS, Shapes((2, 5), 3)),
        (Layers, Shapes((4,), 3)),
        (transformer, Shapes((1, 4, 4), 3)),
    ],
    ids=["convolutions with batch norm", "perceptron", "transformer"],
)
def test_the_network_that_is_left_computes_what_the_gated_one_did(
    make: Callable[[], Space], shapes: Shapes, training: bool
) -> None:
    """Units with gate 0 are cut out of the weights, the other gates are folded in; nothing else changes."""
    space = make()
    supernet, rng = random_supernet(space, shapes, 0), generator(1)
    inputs = random_batch(shapes, 6, rng).inputs
    supernet(inputs, random_mixture(supernet, 0))
    sizes = gate_sizes(supernet, True)
    gates = UnitGates(sizes, GateSettings(remove=0.0), LIKE)
    for value in gates.values:
        gone = torch.randperm(len(value), generator=rng)[: len(value) // 2]
        value.data = torch.randn(len(value), generator=rng, dtype=torch.float64) + 0.1
        value.data[gone] = 0
    assert sum(int((value == 0).sum()) for value in gates.values) > 2

    architecture = derive_widths(supernet, {}, gates, None)
    assert {label: int(architecture[label]) for label in sizes} == {
        label: int((value != 0).sum()) for label, value in zip(sizes, gates.values, strict=True)
    }
    gated = supernet.train(training)(inputs, {**supernet.hard(architecture), **gates.mixture()})
    small = gates.sculpted(supernet).extract(architecture)
    torch.testing.assert_close(small(inputs), gated, rtol=1e-10, atol=1e-10)
    full = space.largest(supernet.choices)
    before = sum(p.numel() for p in supernet.extract(full).parameters())
    assert sum(p.numel() for p in small.parameters()) < before


def test_sculpting_changes_nothing_that_exists() -> None:
    model = sized(space=UNITS)
    gates = UnitGates(gate_sizes(model.supernet, True), GateSettings(), LIKE)
    before = {name: tensor.clone() for name, tensor in model.supernet.state_dict().items()}
    sculpted = gates.sculpted(model.supernet)
    assert sculpted is not model.supernet
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.supernet.state_dict().items())
    none = UnitGates({}, GateSettings(), LIKE)
    assert none.sculpted(model.supernet) is model.supernet
    assert not list(none.parameters()) and not none.mixture() and not none.whole()


def test_gates_are_for_units_alone() -> None:
    """Not for kernels, depths or operations; and none where they are not wanted."""
    supernet = sized().supernet
    assert list(gate_sizes(supernet, True)) == ["width", "block1/hidden", "block2/hidden"]
    assert gate_sizes(supernet, False) == {}


# Descent


def descent(sparsity: Sparsity, lr: float, steps: int, start: float, count: int = 3) -> list[Tensor]:
    """The path of gates that nothing but the penalty moves."""
    gates = UnitGates({"a": units(count)}, GateSettings(lr=lr, sparsity=sparsity), LIKE)
    gates.values[0].data.fill_(start)
    path = [gates.values[0].detach().clone()]
    for _ in range(steps):
        gates.descend([torch.zeros(count, dtype=torch.float64)])
        path.append(gates.values[0].detach().clone())
    return path


@pytest.mark.parametrize("by", ["subgradient", "proximal"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_l1_alone_sends_scores_linearly_to_zero(by: str, sign: float) -> None:
    """At the rate weight * lr a step (arXiv:2204.07722, S1); the proximal step ends at 0 exactly."""
    sparsity = Sparsity(by=by, penalty=Penalty(weight=0.3))  # type: ignore[arg-type]
    path = descent(sparsity, 0.5, 9, sign)
    for step, scores in enumerate(path):
        expected = sign * (1 - 0.15 * step) if step < 7 else 0.0
        slack = 0.15 if by == "subgradient" and step >= 7 else 1e-12
        torch.testing.assert_close(scores, torch.full_like(scores, expected), rtol=0, atol=slack)
    assert (float(path[-1].abs().max()) == 0.0) == (by == "proximal")


def test_gates_start_at_one_and_follow_the_gradient() -> None:
    gates = UnitGates({"a": units(2), "b": units(3, "b")}, GateSettings(lr=0.1, sparsity=no_penalty()), LIKE)
    assert all(torch.equal(value, torch.ones_like(value)) for value in gates.values)
    slopes = [torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0, 1.0])]
    gates.descend([slope.double() for slope in slopes])
    for value, slope in zip(gates.values, slopes, strict=True):
        torch.testing.assert_close(value.detach(), 1 - 0.1 * slope.double())
    mixture = gates.mixture()
    assert list(mixture) == ["a", "b"] and all(isinstance(gate, Gates) for gate in mixture.values())
    assert gates.whole() == {"a": 1, "b": 2}
    assert list(gates.by_size()) == [units(2), units(3, "b")]


def no_penalty() -> Sparsity:
    return Sparsity(penalty=Penalty(weight=0.0))


def test_the_sparse_copy_is_what_is_kept() -> None:
    sparsity = Sparsity(by="splitting", penalty=Penalty(kind="l0", weight=0.02), beta=1.0)  # cuts below 0.2
    gates = UnitGates({"a": units(3)}, GateSettings(lr=1e-9, sparsity=sparsity), LIKE)
    gates.values[0].data = torch.tensor([0.1, -0.3, 0.19], dtype=torch.float64)
    gates.descend([torch.zeros(3, dtype=torch.float64)])
    assert gates.deployed()[0].ne(0).tolist() == [False, True, False]
    assert gates.values[0].ne(0).all()


@pytest.mark.parametrize("by", ["subgradient", "proximal", "splitting", "palm"])
def test_the_penalty_joins_the_objective(by: str) -> None:
    sparsity = Sparsity(by=by, penalty=Penalty(weight=0.3), beta=2.0)  # type: ignore[arg-type]
    gates = UnitGates({"a": units(2), "b": units(1, "b")}, GateSettings(sparsity=sparsity), LIKE)
    with torch.no_grad():
        gates.values[0].copy_(torch.tensor([0.5, -1.5]))
        for buffer, value in zip(gates.buffers(), ((0.25, 0.0), (1.0,)), strict=False):
            buffer.copy_(torch.tensor(value))
    if by in ("subgradient", "proximal"):
        expected = 0.3 * (0.5 + 1.5 + 1.0)
    else:
        expected = 0.3 * (0.25 + 1.0) + 2.0 / 2 * (0.25**2 + 1.5**2)
    assert float(gates.penalty()) == pytest.approx(expected, rel=1e-12)
    assert float(UnitGates({}, GateSettings(), LIKE).penalty()) == 0.0


@pytest.mark.parametrize("by", ["splitting", "palm"])
def test_sparse_copies_are_saved(by: str) -> None:
    sparsity = Sparsity(by=by, penalty=Penalty(weight=0.3))  # type: ignore[arg-type]
    first, second = (UnitGates({"a": units(3)}, GateSettings(lr=0.1, sparsity=sparsity), LIKE) for _ in range(2))
    slope = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    first.descend([slope])
    second.load_state_dict(first.state_dict())
    for gates in (first, second):
        gates.descend([slope])
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())
    assert not torch.equal(first.deployed()[0], torch.ones(3, dtype=torch.float64))


# Operations


def test_options_start_about_equal_and_sum_to_about_one() -> None:
    supernet = smooth().supernet
    gates = OptionGates(supernet.choices, GateSettings(), generator(0), LIKE)
    assert list(gates.mixture()) == ["layer/0", "layer/1"]
    for row in gates.mixture().values():
        assert row.dtype == torch.float64
        torch.testing.assert_close(row.detach(), torch.full_like(row, 1 / 3), rtol=0, atol=0.002)
        assert len(set(row.tolist())) == 3
    other = OptionGates(supernet.choices, GateSettings(), generator(1), LIKE)
    assert not torch.equal(other.mixture()["layer/0"], gates.mixture()["layer/0"])


def test_options_have_no_gates_for_sizes() -> None:
    gates = OptionGates(sized(space=SizedSpace()).supernet.choices, GateSettings(), generator(0), LIKE)
    assert list(gates.mixture()) == ["last"]
    gates.values[0].data = torch.tensor([-3.0, 1.0, 2.0], dtype=torch.float64)
    assert gates.sizes()["last"].tolist() == [3.0, 1.0, 2.0]
