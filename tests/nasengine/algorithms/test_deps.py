"""Delayed epsilon-shrinking: its schedule, its gradient written out, what it sorts, and progressive shrinking."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithms import deps
from nasengine.algorithms.deps import DepS, DepSState, ShrinkingWeights
from nasengine.architecture import Architecture
from nasengine.budget import CostModel, Limits
from nasengine.errors import SettingError
from nasengine.evolution import Budget, EvolutionSettings
from nasengine.seeding import generator
from nasengine.shrinking import stage_at
from nasengine.supernet import Mixture
from nasengine.task import Shapes
from nasengine.testing import SizedSpace, Solvable, run_steps, sized, smooth
from tests.nasengine.algorithms.shrinking import OFA, begin, constant, sampled
from tests.nasengine.elastic_spaces import hidden, hidden_outputs, weights_of

# The rate of the subnets


def published(epochs: float) -> float:
    """The cosine of the 270 epochs on ImageNet."""
    return DepS(weights=ShrinkingWeights(lr=2.6)).weights.rate(round(626 * epochs), 626 * 270)


def test_epsilon_of_the_published_schedule() -> None:
    """Subnets begin in epoch 145 of 270 and are at the full rate from 150 on; the public code refers to the rate of
    151, which is 0.986 of that of 150."""
    algorithm, batches, steps = DepS(warmup=150 / 270, ramp=5 / 270, weights=ShrinkingWeights(lr=2.6)), 626, 626 * 270
    late = published(151) / published(150)
    assert late == pytest.approx(0.986, abs=5e-4)
    assert algorithm.epsilon(0, steps) == algorithm.epsilon(145 * batches - 1, steps) == 0.0
    assert late * algorithm.epsilon(145 * batches, steps) == pytest.approx(0.0003, abs=5e-5)
    assert late * algorithm.epsilon(round(147.5 * batches), steps) == pytest.approx(0.477, abs=5e-4)
    assert late * algorithm.epsilon(150 * batches - 1, steps) == pytest.approx(0.986, abs=5e-4)
    assert algorithm.epsilon(150 * batches, steps) == algorithm.epsilon(steps - 1, steps) == 1.0


@pytest.mark.parametrize(("lr_min", "warmup", "ramp"), [(0.0, 0.5, 0.1), (0.3, 0.7, 0.7), (0.0, 0.03, 0.5)])
def test_the_rate_of_the_subnets_rises_linearly(lr_min: float, warmup: float, ramp: float) -> None:
    algorithm, steps = DepS(warmup=warmup, ramp=ramp, weights=ShrinkingWeights(lr=2.0, lr_min=lr_min)), 200
    epsilons = [algorithm.epsilon(step, steps) for step in range(steps)]
    assert all(a <= b for a, b in pairwise(epsilons)) and max(epsilons) == 1.0
    switch = round(warmup * steps)
    start = switch - min(round(ramp * steps), switch)
    rates = [epsilon * algorithm.weights.rate(step, steps) for step, epsilon in enumerate(epsilons)]
    assert rates[:start] == [0.0] * start
    assert rates[start:switch] == pytest.approx(
        [(place + 1) / (switch - start) * algorithm.weights.rate(switch, steps) for place in range(switch - start)]
    )
    assert epsilons[switch:] == [1.0] * (steps - switch)


def test_epsilon_is_an_indicator_of_the_step_that_was_taken() -> None:
    algorithm, model = DepS(warmup=0.5, ramp=0.5, weights=constant(0.1)), hidden()
    state = begin(algorithm, model, 8)
    seen = [algorithm.indicators(state)["epsilon"]]
    for _ in range(6):
        run_steps(algorithm, state, model, 1)
        seen.append(algorithm.indicators(state)["epsilon"])
    assert seen == pytest.approx([0.25, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


# The gradient of a step


def expected_descent(
    model: Solvable, subnets: list[int], epsilon: float, rate: float, hard: float, taught: bool, full: bool
) -> dict[str, Tensor]:
    """The weights of `Hidden` after a step, by autograd on the written-out networks."""
    weights, (inputs, targets) = weights_of(model.supernet), model.train
    loss: Callable[[Tensor, Tensor], Tensor] = model.supernet.loss
    outputs = hidden_outputs(weights, inputs, 4)
    total = loss(outputs, targets) if full else torch.zeros(())
    for units in subnets:
        inside = hidden_outputs(weights, inputs, units)
        part = hard * loss(inside, targets)
        if taught and targets.is_floating_point():
            part = part + (inside - outputs.detach()).square().mean()
        elif taught:
            part = part - (outputs.detach().softmax(1) * inside.log_softmax(1)).sum(1).mean()
        total = total + epsilon * part
    slopes = torch.autograd.grad(total, list(weights.values()))
    return {name: (w - rate * g).detach() for (name, w), g in zip(weights.items(), slopes, strict=True)}


def drawn(state: DepSState, count: int) -> list[int]:
    """The random subnets of the next step, by a copy of its generator."""
    rng = torch.Generator()
    rng.set_state(state.generator.get_state())
    stage = stage_at(state.full, "delayed", 0.0, 4)
    return [int(stage.random(state.full, rng)["hidden"]) for _ in range(count)]


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize(
    ("settings", "hard", "taught"),
    [
        ({}, 0.0, True),
        ({"hard": 0.7}, 0.7, True),
        ({"teacher": "none"}, 1.0, False),
        ({"teacher": "none", "hard": 0.7}, 0.7, False),
        ({"teacher": "frozen", "hard": 0.7}, 0.7, True),
        ({"sampling": "random"}, 0.0, True),
        ({"sampling": "random", "teacher": "frozen", "hard": 1.0}, 1.0, True),
    ],
    ids=str,
)
@pytest.mark.parametrize(("at", "epsilon"), [(6, 0.25), (8, 0.75), (13, 1.0)])
def test_gradient_is_that_of_the_full_network_and_epsilon_times_those_of_the_subnets(
    at: int, epsilon: float, settings: dict[str, Any], hard: float, taught: bool, regression: bool
) -> None:
    """Their sum and not their mean; the soft labels carry no gradient into the full network."""
    algorithm = DepS(warmup=0.5, ramp=0.2, sort=False, weights=constant(0.3), **settings)
    model = hidden(regression)
    state = begin(algorithm, model, 20, at)
    sandwich = algorithm.sampling == "sandwich"
    subnets = [1, *drawn(state, 2)] if sandwich else drawn(state, 4)
    assert len(set(subnets)) > 1
    expected = expected_descent(model, subnets, epsilon, 0.3, hard, taught, full=sandwich)
    run_steps(algorithm, state, model, 1)
    for name, weight in state.full.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_a_subnet_moves_nothing_outside_its_slice() -> None:
    moved = []
    for subnets in (False, True):
        model = hidden()
        algorithm = DepS(warmup=0.0 if subnets else 1.0, ramp=0.0, sort=False, subnets=2, weights=constant(0.3))
        run_steps(algorithm, begin(algorithm, model, 5), model, 1)
        moved.append(weights_of(model.supernet))
    for name, dim in (("network.0.linear.weight", 0), ("network.0.linear.bias", 0), ("network.2.linear.weight", 1)):
        by_unit = (moved[1][name] - moved[0][name]).movedim(dim, 0).reshape(4, -1)
        assert by_unit[0].abs().max() > 1e-6
        assert by_unit[1:].abs().max() == 0, f"{name}: the smallest subnet has one unit"


@pytest.mark.parametrize("make", [sized, smooth])
def test_without_epsilon_a_step_is_one_of_the_full_network(make: Callable[[], Solvable]) -> None:
    """Bit for bit: weights, momentum and batch-norm statistics; the rates are those of the cosine."""
    model, other = make(), make()
    algorithm = DepS(warmup=1.0, weights=ShrinkingWeights(clip=0.05))
    run_steps(algorithm, begin(algorithm, model, 5), model, 5)
    optimizer = torch.optim.SGD(other.supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-5, nesterov=True)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = algorithm.weights.rate(step, 5)
        optimizer.zero_grad()
        other.supernet.evaluate(other.train, other.supernet.full()).loss.backward()  # type: ignore[no-untyped-call]
        assert float(torch.nn.utils.clip_grad_norm_(other.supernet.parameters(), 0.05)) > 0.05
        optimizer.step()
    for name, tensor in model.supernet.state_dict().items():
        assert torch.equal(tensor, other.supernet.state_dict()[name]), name


def test_subnets_leave_the_statistics_alone() -> None:
    model, other = sized(), sized()
    for toy, warmup in ((model, 0.0), (other, 1.0)):
        algorithm = DepS(warmup=warmup, ramp=0.0, sort=False)
        run_steps(algorithm, begin(algorithm, toy, 5), toy, 1)
    buffers = dict(other.supernet.named_buffers())
    assert buffers and all(torch.equal(tensor, buffers[name]) for name, tensor in model.supernet.named_buffers())


def test_weights_are_continuous_where_subnets_begin() -> None:
    """What the subnets add to the first step of the ramp is a T_eps-th of what they add at the full rate."""
    ends = []
    for settings in ({"warmup": 1.0, "ramp": 0.0}, {"warmup": 0.5, "ramp": 0.4}, {"warmup": 0.0, "ramp": 0.0}):
        model = hidden()
        algorithm = DepS(sort=False, weights=constant(0.3), **settings)  # type: ignore[arg-type]
        run_steps(algorithm, begin(algorithm, model, 100, at=10), model, 1)
        ends.append(torch.cat([w.detach().flatten() for w in model.supernet.parameters()]))
    torch.testing.assert_close(ends[1] - ends[0], (ends[2] - ends[0]) / 40, rtol=1e-9, atol=1e-14)
    assert (ends[2] - ends[0]).norm() > 1e-3


class Counter:
    """Counts passes: forward through a module, with and without gradient, and backward."""

    def __init__(self, patch: pytest.MonkeyPatch, *modules: nn.Module) -> None:
        self.forward = self.blind = self.backward = 0
        for module in modules:
            module.register_forward_hook(self._pass)
        plain = Tensor.backward

        def counted(loss: Tensor, *args: Any) -> None:
            self.backward += 1
            plain(loss, *args)  # type: ignore[no-untyped-call]

        patch.setattr(Tensor, "backward", counted)

    def _pass(self, *_: object) -> None:
        if torch.is_grad_enabled():
            self.forward += 1
        else:
            self.blind += 1

    def take(self) -> tuple[int, int, int]:
        counts = (self.forward, self.backward, self.blind)
        self.forward = self.backward = self.blind = 0
        return counts


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        ({}, [(1, 1, 0)] * 3 + [(4, 4, 0)] * 9),
        ({"subnets": 2}, [(1, 1, 0)] * 3 + [(2, 2, 0)] * 9),
        ({"warmup": 0.0, "ramp": 0.0, "sort": False}, [(4, 4, 0)] * 12),
        ({"warmup": 1.0}, [(1, 1, 0)] * 12),
        ({"sampling": "random"}, [(1, 1, 0)] * 3 + [(4, 4, 1)] * 9),
        ({"sampling": "random", "teacher": "none"}, [(1, 1, 0)] * 3 + [(4, 4, 0)] * 9),
        (OFA, [(1, 1, 0)] * 3 + [(1, 1, 1)] * 3 + [(2, 2, 1)] * 3 + [(4, 4, 1)] * 3),
    ],
    ids=str,
)
def test_passes_of_each_phase(
    settings: dict[str, Any], phases: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 steps the first quarter is the warm-up: 1 network a step; then as many as are asked for."""
    algorithm, model = DepS(**{"warmup": 0.25, "ramp": 0.0, **settings}), sized()
    state = begin(algorithm, model, 12)
    counter = Counter(monkeypatch, state.full.network, *([state.teacher.network] if state.teacher else []))
    seen = []
    for _ in range(12):
        run_steps(algorithm, state, model, 1)
        seen.append(counter.take())
    assert seen == phases


def test_the_plain_sandwich_rule_trains_the_smallest_and_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, model = DepS(warmup=0.0, ramp=0.0, sort=False, subnets=5), sized()
    found = sampled(algorithm, begin(algorithm, model, 10), model, monkeypatch)
    space, choices = model.supernet.space, model.supernet.choices
    assert len(found) == 4
    assert found[0].replace("last", "skip") == space.smallest(choices).replace("last", "skip")
    assert len(set(found)) > 2


def test_on_cells_the_full_network_is_all_operations_and_subnets_keep_one(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, model = DepS(warmup=0.0, ramp=0.0), smooth()
    state = begin(algorithm, model, 10)
    full: Mixture = algorithm.mixture(state)
    assert all(isinstance(row, Tensor) and torch.equal(row, torch.full_like(row, 1 / 3)) for row in full.values())
    found = sampled(algorithm, state, model, monkeypatch)
    assert len(found) == 3
    for architecture in found:
        model.supernet.space.check(model.supernet.choices, architecture)


# The answer


def budget(parameters: int | None, judge: Callable[[Architecture], float] | None, notes: list[str]) -> Budget:
    costs = None if parameters is None else CostModel(SizedSpace(), Shapes((2, 5), 3))
    return Budget(Limits(parameters), costs, judge, generator(0), notes.append)


def test_answers_by_measured_accuracy_within_the_limits() -> None:
    model = sized()
    notes: list[str] = []
    algorithm = DepS(evolution=EvolutionSettings(population=8, generations=4))
    state = begin(algorithm, model, 10)
    largest = model.supernet.space.largest(model.supernet.choices)
    costs = CostModel(SizedSpace(), Shapes((2, 5), 3))

    def judge(architecture: Architecture) -> float:
        return costs.of(architecture).parameters + 0.5 * (architecture["last"] == "sigmoid")

    best = algorithm.derive(state, budget(None, judge, notes))
    assert best == largest.replace("last", "sigmoid")
    assert notes[-1].startswith("generation 4 of 4: best")
    limit = costs.of(best).parameters - 10
    found = algorithm.derive(state, budget(limit, judge, []))
    assert limit - 25 < costs.of(found).parameters <= limit


def test_where_nothing_may_be_measured_the_smallest_is_the_answer() -> None:
    model, algorithm = sized(), DepS()
    state = begin(algorithm, model, 10)
    smallest = model.supernet.space.smallest(model.supernet.choices)
    assert algorithm.derive(state) == algorithm.derive(state, budget(None, None, [])) == smallest
    assert algorithm.supernet(state) is model.supernet


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(SettingError, match=r"algo\.weights\.nesterov needs a momentum above 0"):
        ShrinkingWeights(momentum=0.0)


def test_soft_labels_by_hand() -> None:
    outputs, soft = torch.randn(2, 5, 3, generator=generator(0), dtype=torch.float64).unbind()
    found = deps.distillation(outputs, torch.zeros(5, dtype=torch.int64), soft)
    torch.testing.assert_close(found, -(soft.softmax(1) * outputs.log_softmax(1)).sum(1).mean())
    assert float(deps.distillation(soft, torch.zeros(5, dtype=torch.int64), soft)) < float(found)
    numbers = deps.distillation(outputs, torch.zeros(5, 3).double(), soft)
    torch.testing.assert_close(numbers, F.mse_loss(outputs, soft))
