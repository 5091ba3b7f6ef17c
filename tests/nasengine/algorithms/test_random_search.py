"""Random search: what a step trains, that draws are uniform, and which architecture is the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from nasengine.algorithm import WeightSettings
from nasengine.algorithms.random_search import RandomSearch, RandomSearchState
from nasengine.architecture import Architecture
from nasengine.budget import CostModel, Limits
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Batch, Shapes
from nasengine.testing import SizedSpace, Solvable, run_steps, sized, smooth
from tests.nasengine.elastic_spaces import weights_of

PLAIN = WeightSettings(lr=0.2, lr_min=0.2, momentum=0.0, weight_decay=0.0, clip=0.0)


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class _Curve(nn.Module):
    """A line through an operation: the parabola can be learnt with one of the three."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MixedOp("first", {"same": nn.Identity(), "square": _Square(), "sine": nn.Tanh()})
        self.line = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        line: Tensor = self.line(self.first(x))
        return line


@dataclass(frozen=True, kw_only=True)
class CurveSpace(Space):
    """One choice with one right answer."""

    name: ClassVar[str] = ""

    def network(self, shapes: Shapes) -> nn.Module:
        del shapes
        return _Curve()


def begin(algorithm: RandomSearch, model: Solvable, steps: int = 10) -> RandomSearchState:
    return algorithm.init(model.supernet, generator(0), steps)


def budget(judge: Callable[[Architecture], float] | None, parameters: int | None = None) -> Budget:
    costs = None if parameters is None else CostModel(SizedSpace(), Shapes((2, 5), 3))
    return Budget(Limits(parameters), costs, judge, generator(0))


def test_finds_the_one_operation_that_fits() -> None:
    """The parabola: the shared line must have been trained under the square, which alone is judged as fitting."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = CurveSpace().supernet(Shapes((1,), 1), nn.functional.mse_loss)
    x = torch.linspace(-2, 2, 21)[:, None]
    batch = Batch(x, x.square())
    algorithm = RandomSearch(samples=20, weights=WeightSettings(lr=0.05, lr_min=0.01, weight_decay=0.0))
    state = algorithm.init(supernet, generator(1), 200)
    for _ in range(200):
        algorithm.step(state, batch, batch)

    def judge(architecture: Architecture) -> float:
        return -supernet.evaluate(batch, supernet.hard(architecture)).loss.item()

    assert algorithm.derive(state, budget(judge)) == Architecture({"first": "square"})


def test_a_step_is_a_step_of_the_drawn_architecture_and_moves_nothing_else() -> None:
    model, other = smooth(), smooth()
    algorithm = RandomSearch(weights=PLAIN)
    state = begin(algorithm, model)
    drawn = algorithm.derive(state)
    before = weights_of(model.supernet)
    (info,) = run_steps(algorithm, state, model, 1)

    evaluation = other.supernet.evaluate(other.train, other.supernet.hard(drawn))
    evaluation.loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(info.train_loss, evaluation.loss.detach()) and info.valid_loss is None
    after, still = weights_of(model.supernet), 0
    for name, weight in other.supernet.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(after[name], before[name] - 0.2 * gradient, rtol=1e-12, atol=1e-14)
        still += weight.grad is None
    assert 0 < still < len(before)


def test_momentum_and_decay_leave_weights_alone_that_were_not_drawn() -> None:
    model = smooth()
    algorithm = RandomSearch()
    state = begin(algorithm, model, 30)
    for _ in range(30):
        drawn, before = algorithm.derive(state), weights_of(model.supernet)
        run_steps(algorithm, state, model, 1)
        after = weights_of(model.supernet)
        for place in range(2):
            for index, option in enumerate(("dense", "gate")):
                name = f"network.layers.{place}.options.{index}.0.weight"
                assert torch.equal(before[name], after[name]) == (drawn[f"layer/{place}"] != option)


def test_draws_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 architectures each has a ninth of 1800 draws: 200, with a deviation of 13."""
    model = smooth()
    algorithm, seen = RandomSearch(weights=PLAIN), Counter[tuple[tuple[str, object], ...]]()
    state, evaluate = begin(algorithm, model, 1800), model.supernet.evaluate
    evaluation = evaluate(model.train, model.supernet.full())

    def counted(batch: Batch, mixture: dict[str, int], weights: object = None) -> object:
        seen[tuple(sorted(mixture.items()))] += 1
        return evaluation._replace(loss=model.supernet.network.classifier.bias.sum())  # type: ignore[union-attr, operator]

    monkeypatch.setattr(model.supernet, "evaluate", counted)
    run_steps(algorithm, state, model, 1800)
    assert len(seen) == 9 and all(abs(count - 200) < 55 for count in seen.values()), seen


def test_answers_by_measured_accuracy_within_the_limits() -> None:
    model, costs = sized(), CostModel(SizedSpace(), Shapes((2, 5), 3))
    algorithm, measured = RandomSearch(samples=40), list[Architecture]()
    state = begin(algorithm, model)

    def judge(architecture: Architecture) -> float:
        measured.append(architecture)
        return costs.of(architecture).parameters

    found = algorithm.derive(state, budget(judge))
    assert 20 < len(measured) <= 40 and len(set(measured)) == len(measured)
    assert costs.of(found).parameters == max(costs.of(a).parameters for a in measured)
    limit = costs.of(found).parameters // 2
    measured.clear()
    cheap = algorithm.derive(state, budget(judge, limit))
    assert max(costs.of(a).parameters for a in measured) == costs.of(cheap).parameters <= limit
    assert algorithm.derive(state, budget(judge, limit)) == cheap
    unmeasured = algorithm.derive(state, budget(None, limit))
    assert costs.of(unmeasured).parameters <= limit


def test_tells_how_far_it_is() -> None:
    model, notes = sized(), list[str]()
    told = Budget(Limits(), None, lambda architecture: 0.5, generator(0), notes.append)
    RandomSearch(samples=30).derive(begin(RandomSearch(), model), told)
    assert notes == ["25 of 29 random architectures: best 0.5000", "29 of 29 random architectures: best 0.5000"]


def test_without_a_judge_the_answer_is_what_the_next_step_trains() -> None:
    model, algorithm = sized(), RandomSearch()
    state = begin(algorithm, model, 12)
    answers = []
    for _ in range(12):
        answers.append(algorithm.derive(state))
        expected = model.supernet.space.sample(model.supernet.choices, _copy(state.generator))
        assert answers[-1] == algorithm.derive(state) == expected
        run_steps(algorithm, state, model, 1)
    assert len(set(answers)) > 6


def _copy(rng: torch.Generator) -> torch.Generator:
    copy = torch.Generator()
    copy.set_state(rng.get_state())
    return copy


def test_proposes_the_best_that_it_measured_and_fills_up() -> None:
    model, costs = sized(), CostModel(SizedSpace(), Shapes((2, 5), 3))
    algorithm, measured = RandomSearch(samples=12), list[Architecture]()
    state = begin(algorithm, model)

    def judge(architecture: Architecture) -> float:
        measured.append(architecture)
        return costs.of(architecture).parameters

    few = algorithm.propose(state, 5, budget(judge))
    assert [candidate.origin for candidate in few] == ["derived", *["random"] * 4]
    sizes = [costs.of(candidate.architecture).parameters for candidate in few]
    assert sizes == sorted((costs.of(a).parameters for a in measured), reverse=True)[:5]
    many = algorithm.propose(state, 30, budget(judge))
    assert len({candidate.architecture for candidate in many}) == len(many) == 30
    assert many[:5] == few and "neighbour" in {candidate.origin for candidate in many}
    assert algorithm.propose(state, 5, budget(None))[0].architecture == algorithm.derive(state, budget(None))


def test_samples_must_be_positive() -> None:
    with pytest.raises(SettingError, match=r"algo\.samples must be at least 1, but got 0"):
        RandomSearch(samples=0)
