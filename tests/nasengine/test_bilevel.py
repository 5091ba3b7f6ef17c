"""Hypergradients against finite differences of the objective that they differentiate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from nasengine.algorithm import Algorithm
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.alphas import Alphas
from nasengine.bilevel import HYPERGRADIENTS, Evaluate, Hypergradient, VirtualStep, exact, first_order, second_order
from nasengine.seeding import generator
from nasengine.supernet import Evaluation
from nasengine.task import Batch
from nasengine.testing import Solvable, place, run_steps, smooth, solvable

PLAIN = VirtualStep(0.3)


class Problem:
    """A toy with alphas, and the unrolled objective as a function of them."""

    def __init__(self, model: Solvable, relaxation: str, std: float) -> None:
        self.model, self.relaxation = model, relaxation
        self.supernet = model.supernet
        self.weights = dict(self.supernet.named_parameters())
        self.alphas = Alphas(self.supernet.choices, generator(0), std, like=next(self.supernet.parameters()))

    def evaluate(self, batch: Batch) -> Evaluate:
        return lambda weights: self.supernet.evaluate(batch, self.alphas.mixture(self.relaxation), weights)

    def solve(self, name: str, virtual: VirtualStep) -> Hypergradient:
        train, valid = self.evaluate(self.model.train), self.evaluate(self.model.valid)
        return HYPERGRADIENTS[name](train, valid, self.weights, list(self.alphas.parameters()), virtual)

    def unrolled(self, virtual: VirtualStep) -> float:
        """L_val(w - rate * (momentum * buffer + grad_w L_train(w) + decay * w)), written out."""
        loss = self.evaluate(self.model.train)(self.weights).loss
        gradients = torch.autograd.grad(loss, list(self.weights.values()), materialize_grads=True)
        moved = {}
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            buffer = (virtual.buffers or {}).get(name, torch.zeros_like(weight))
            step = virtual.momentum * buffer + gradient + virtual.weight_decay * weight
            moved[name] = (weight - virtual.rate * step).detach()
        return float(self.evaluate(self.model.valid)(moved).loss.detach())

    def differences(self, virtual: VirtualStep, width: float = 1e-5) -> Tensor:
        """Central differences of `unrolled`, flat."""
        slopes = []
        for table in self.alphas.parameters():
            for place_ in range(table.numel()):
                ends = []
                for sign in (1, -1):
                    with torch.no_grad():
                        table.view(-1)[place_] += sign * width
                    ends.append(self.unrolled(virtual))
                    with torch.no_grad():
                        table.view(-1)[place_] -= sign * width
                slopes.append((ends[0] - ends[1]) / (2 * width))
        return torch.tensor(slopes, dtype=torch.float64)


def classifier() -> Problem:
    return Problem(smooth(), "softmax", 1.0)


def with_momentum(problem: Problem) -> VirtualStep:
    rng = generator(5)
    draw = {n: torch.randn(w.shape, generator=rng, dtype=w.dtype) for n, w in problem.weights.items()}
    return VirtualStep(0.3, momentum=0.9, weight_decay=0.2, buffers=draw)


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("momentum", [False, True], ids=["plain", "momentum and decay"])
def test_agree_with_finite_differences(momentum: bool) -> None:
    problem = classifier()
    virtual = with_momentum(problem) if momentum else PLAIN
    expected = problem.differences(virtual)
    assert distance(flat(problem.solve("exact", virtual).gradients), expected) < 1e-7
    assert distance(flat(problem.solve("second", virtual).gradients), expected) < 1e-3
    assert distance(flat(problem.solve("first", virtual).gradients), expected) > 0.05

    at_w = problem.differences(VirtualStep(0.0))
    assert distance(flat(problem.solve("first", virtual).gradients), at_w) < 1e-7


def test_momentum_and_decay_matter() -> None:
    problem = classifier()
    full = with_momentum(problem)
    answers = [
        flat(problem.solve("exact", virtual).gradients)
        for virtual in (
            full,
            VirtualStep(full.rate, full.momentum, 0.0, full.buffers),
            VirtualStep(full.rate, full.momentum, full.weight_decay, None),
        )
    ]
    assert distance(answers[1], answers[0]) > 0.01
    assert distance(answers[2], answers[0]) > 0.01


def test_agree_at_rate_zero() -> None:
    problem = classifier()
    answers = [flat(problem.solve(name, VirtualStep(0.0)).gradients) for name in HYPERGRADIENTS]
    assert distance(answers[1], answers[0]) < 1e-12
    assert distance(answers[2], answers[0]) < 1e-12


def test_second_order_is_exact_on_quadratics() -> None:
    problem = Problem(solvable(), "identity", 0.0)
    place(problem.alphas, 2.0)
    virtual = VirtualStep(
        0.2, momentum=0.5, weight_decay=0.1, buffers={"network.w": torch.tensor(0.7, dtype=torch.float64)}
    )
    a, w, xi = 2.0, -2.0, 0.2
    moved = w - xi * (0.5 * 0.7 + 2 * (w - a) + 0.1 * w)
    expected = (moved - 2) + 2 * xi * a
    for name in ("second", "exact"):
        answer = problem.solve(name, virtual)
        assert float(flat(answer.gradients)) == pytest.approx(expected, rel=1e-12)
        assert float(answer.valid.loss) == pytest.approx(a * moved - 2 * a + 1, rel=1e-12)


def test_second_order_without_influence_of_the_weights() -> None:
    """L_val does not depend on w: the finite difference has no direction, and its term is zero."""
    problem = classifier()
    tables: list[Tensor] = list(problem.alphas.parameters())

    def valid(weights: Any) -> Evaluation:
        loss = sum((table**2).sum() for table in tables) + 0.0 * sum(w.sum() for w in weights.values())
        return Evaluation(loss, loss.detach())

    answer = second_order(problem.evaluate(problem.model.train), valid, problem.weights, tables, PLAIN)
    torch.testing.assert_close(flat(answer.gradients), 2 * flat(tables).detach())


@pytest.mark.parametrize("name", list(HYPERGRADIENTS))
def test_leave_no_trace(name: str) -> None:
    problem = classifier()
    before = copy.deepcopy(problem.supernet.state_dict())
    alphas = copy.deepcopy(problem.alphas.state_dict())
    virtual = with_momentum(problem)
    buffers = copy.deepcopy(dict(virtual.buffers or {}))
    answer = problem.solve(name, virtual)
    assert all(torch.equal(value, before[key]) for key, value in problem.supernet.state_dict().items())
    assert all(torch.equal(value, alphas[key]) for key, value in problem.alphas.state_dict().items())
    assert all(torch.equal(value, buffers[key]) for key, value in (virtual.buffers or {}).items())
    assert all(p.grad is None for p in [*problem.supernet.parameters(), *problem.alphas.parameters()])
    assert not any(tensor.requires_grad for tensor in [*answer.gradients, *answer.valid])


def test_names() -> None:
    assert dict(HYPERGRADIENTS) == {"first": first_order, "second": second_order, "exact": exact}


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    [
        (DARTS(order="first"), 2),
        (DARTS(order="second"), 5),
        (DARTS(order="exact"), 3),
        (RARTS(sweep="exact"), 4),
        (RARTS(sweep="stale"), 2),
    ],
    ids=["darts first", "darts second", "darts exact", "rarts exact", "rarts stale"],
)
def test_backward_passes_of_a_step(algorithm: Algorithm[Any], passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = smooth()
    state = algorithm.init(model.supernet, generator(0), 10)
    graphs: list[bool] = []
    plain_grad = torch.autograd.grad

    def counted(
        outputs: Tensor, inputs: list[Tensor], create_graph: bool = False, materialize_grads: bool = False
    ) -> tuple[Tensor, ...]:
        graphs.append(create_graph)
        return plain_grad(outputs, inputs, create_graph=create_graph, materialize_grads=materialize_grads)

    def forbidden(*_: object) -> None:
        raise AssertionError("a pass that is not counted")

    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    run_steps(algorithm, state, model, 1)
    assert len(graphs) == passes
    assert sum(graphs) == (1 if algorithm == DARTS(order="exact") else 0)
