"""RARTS on the solvable model, where its Lagrangian is a quadratic with a closed-form minimum."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from nasengine.algorithm import AlphaSettings, WeightSettings
from nasengine.algorithms.rarts import RARTS, RARTSState
from nasengine.bilevel import VirtualStep, first_order
from nasengine.seeding import generator
from nasengine.testing import Solvable, place, run_steps, smooth, solvable

Sweep = Literal["exact", "stale"]
STILL = AlphaSettings(optimizer="sgd", lr=1e-300, weight_decay=0.0)


def plain_descent(lam: float, beta: float, weight_rate: float, alpha_rate: float, sweep: Sweep = "exact") -> RARTS:
    weights = WeightSettings(lr=weight_rate, lr_min=weight_rate, momentum=0.0, weight_decay=0.0, clip=0.0)
    alphas = AlphaSettings(optimizer="sgd", lr=alpha_rate, weight_decay=0.0)
    return RARTS(lam=lam, beta=beta, sweep=sweep, relaxation="identity", weights=weights, alphas=alphas)


def start(algorithm: RARTS, y: float = -2.0) -> tuple[Solvable, RARTSState]:
    model = solvable()
    state = algorithm.init(model.supernet, generator(0), 1)
    place(state.alphas, 2.0)
    place(state.valid_copy, y)
    return model, state


def point(state: RARTSState) -> tuple[float, float, float]:
    """(a, w, y)"""
    (a,), (w,), (y,) = state.alphas.parameters(), state.train_copy.parameters(), state.valid_copy.parameters()
    return a.item(), w.item(), y.item()


def closed_form(lam: float, beta: float) -> tuple[float, float, float]:
    """(a, w, y) where the three derivatives of y a - 2 a + 1 + lam (w - a)^2 + beta/2 (y - w)^2 vanish."""
    a = 4 * lam * beta / (4 * lam * beta - 2 * lam - beta)
    return a, a * (1 - 1 / (2 * lam)), 2 - a


def solve(algorithm: RARTS, steps: int) -> tuple[Solvable, RARTSState]:
    model, state = start(algorithm)
    state.steps = steps
    run_steps(algorithm, state, model, steps)
    return model, state


TABLE = {
    (1.0, 1.0): (4.0, 2.0, -2.0),
    (1.0, 10.0): (1.428571, 0.714286, 0.571429),
    (10.0, 1.0): (2.105263, 2.0, -0.105263),
    (10.0, 10.0): (1.081081, 1.027027, 0.918919),
}


@pytest.mark.parametrize("sweep", ["exact", "stale"])
@pytest.mark.parametrize(("lam", "beta"), list(TABLE))
def test_ends_at_the_closed_form(lam: float, beta: float, sweep: Sweep) -> None:
    assert closed_form(lam, beta) == pytest.approx(TABLE[lam, beta], abs=1e-6)
    scale, steps = (1.0, 600) if sweep == "exact" else (0.5, 1500)
    algorithm = plain_descent(lam, beta, scale / (2 * lam + beta), scale / (2 * lam), sweep)
    _, state = solve(algorithm, steps)
    assert point(state) == pytest.approx(closed_form(lam, beta), abs=1e-6)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (-2.0, {100: (0.3522, 0.2838, 0.2015), 500: (1.0426, 0.9878, 0.8811), 1000: (1.0801, 1.0260, 0.9180)}),
        (0.0, {100: (0.7021, 0.6405, 0.5458), 1000: (1.0806, 1.0265, 0.9184)}),
    ],
)
def test_trajectory(y: float, expected: dict[int, tuple[float, float, float]]) -> None:
    algorithm = plain_descent(10.0, 10.0, 0.01, 0.01)
    model, state = start(algorithm, y)
    state.steps = 2000
    for index in range(max(expected) + 1):
        algorithm.step(state, model.train, model.valid)
        if index in expected:
            assert point(state) == pytest.approx(expected[index], abs=6e-5)


def test_one_sweep_by_hand() -> None:
    """Each block sees what the ones before it in the sweep have become."""
    lam, beta, rate, slope = 3.0, 2.0, 0.01, 0.02
    algorithm = plain_descent(lam, beta, rate, slope)
    model, state = start(algorithm, y=0.5)
    algorithm.step(state, model.train, model.valid)
    a, w, y = 2.0, -2.0, 0.5
    w = w - rate * (lam * 2 * (w - a) + beta * (w - y))
    y = y - rate * (a + beta * (y - w))
    a = a - slope * (lam * -2 * (w - a) + (y - 2))
    assert point(state) == pytest.approx((a, w, y), rel=1e-12)


def rises(lam: float, beta: float, share: float) -> bool:
    """Whether a sweep raises the Lagrangian at block steps `share` / L_block."""
    algorithm = plain_descent(lam, beta, share / (2 * lam + beta), share / (2 * lam))
    model, state = start(algorithm)
    values = [algorithm.lagrangian(state, model.train, model.valid)]
    for _ in range(200):
        algorithm.step(state, model.train, model.valid)
        values.append(algorithm.lagrangian(state, model.train, model.valid))
    return any(float(after - before) > 1e-12 for before, after in pairwise(values))


@pytest.mark.parametrize(("lam", "beta"), list(TABLE))
def test_lagrangian_never_rises_below_the_stable_steps(lam: float, beta: float) -> None:
    assert not rises(lam, beta, 0.5)
    assert not rises(lam, beta, 1.95)
    assert rises(lam, beta, 2.5)


def test_lagrangian_by_hand() -> None:
    algorithm = plain_descent(3.0, 5.0, 0.1, 0.1)
    model, state = start(algorithm, y=0.5)
    expected = (2 * 0.5 - 4 + 1) + 3 * (-4.0) ** 2 + 2.5 * 2.5**2
    assert float(algorithm.lagrangian(state, model.train, model.valid)) == pytest.approx(expected, rel=1e-12)


def trained(parameters: list[Tensor], loss: object, steps: int, scale: float) -> list[Tensor]:
    """Plain momentum descent on `scale` times a loss."""
    assert callable(loss)
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=3e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * loss()).backward()
        optimizer.step()
    return parameters


def test_without_penalty_the_copies_are_trained_apart() -> None:
    algorithm = RARTS(lam=0.7, beta=0.0, weights=WeightSettings(lr=0.05, lr_min=0.05, clip=0.0), alphas=STILL)
    model = smooth()
    state = algorithm.init(model.supernet, generator(0), 5)
    run_steps(algorithm, state, model, 5)

    mixture = algorithm.mixture(state)
    for copy, batch, scale in ((state.train_copy, model.train, 0.7), (state.valid_copy, model.valid, 1.0)):
        net = smooth().supernet
        expected = trained(list(net.parameters()), lambda n=net, b=batch: n.evaluate(b, mixture).loss, 5, scale)
        for ours, theirs in zip(copy.parameters(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_without_training_loss_alpha_moves_as_in_first_order_darts(lam: float) -> None:
    algorithm = RARTS(lam=lam, beta=0.5, alphas=AlphaSettings(optimizer="sgd", lr=1.0, weight_decay=0.0))
    model = smooth()
    state = algorithm.init(model.supernet, generator(0), 5)
    run_steps(algorithm, state, model, 2)
    before = [table.detach().clone() for table in state.alphas.parameters()]
    run_steps(algorithm, state, model, 1)
    moved = [old - new.detach() for old, new in zip(before, state.alphas.parameters(), strict=True)]

    with torch.no_grad():
        for table, old in zip(state.alphas.parameters(), before, strict=True):
            table.copy_(old)
    y = dict(state.valid_copy.named_parameters())
    expected = first_order(
        lambda at: state.train_copy.evaluate(model.train, state.alphas.mixture("softmax"), at),
        lambda at: state.valid_copy.evaluate(model.valid, state.alphas.mixture("softmax"), at),
        y,
        list(state.alphas.parameters()),
        VirtualStep(0.1),
    ).gradients
    equal = [torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12) for ours, theirs in zip(moved, expected, strict=True)]
    assert all(equal) == (lam == 0.0)


@pytest.mark.parametrize("beta", [5.0, 10.0, 20.0])
def test_the_copies_part_by_the_validation_gradient_over_beta(beta: float) -> None:
    lam = 10.0
    algorithm = plain_descent(lam, beta, 1 / (2 * lam + beta), 1 / (2 * lam))
    model, state = solve(algorithm, 600)
    mixture = algorithm.mixture(state)
    (w,), (y,) = state.train_copy.parameters(), state.valid_copy.parameters()
    (on_valid,) = torch.autograd.grad(state.valid_copy.evaluate(model.valid, mixture).loss, y)
    (on_train,) = torch.autograd.grad(state.train_copy.evaluate(model.train, mixture).loss, w)
    assert abs(y.item() - w.item()) == pytest.approx(abs(float(on_valid)) / beta, rel=1e-6)
    assert float(lam * on_train + on_valid) == pytest.approx(0.0, abs=1e-6)


def test_copies_start_equal_and_are_not_the_same() -> None:
    algorithm = RARTS()
    model = smooth()
    state = algorithm.init(model.supernet, generator(0), 5)
    pairs = list(zip(state.train_copy.parameters(), state.valid_copy.parameters(), strict=True))
    assert all(torch.equal(w, y) and w is not y for w, y in pairs)
    run_steps(algorithm, state, model, 1)
    assert any(not torch.equal(w, y) for w, y in pairs)
    assert algorithm.supernet(state) is state.train_copy is model.supernet


@pytest.mark.parametrize("sweep", ["exact", "stale"])
def test_seeds(sweep: Sweep) -> None:
    ends = []
    for seed in (0, 0, 1):
        model, algorithm = smooth(), RARTS(sweep=sweep)
        state = algorithm.init(model.supernet, generator(seed), 5)
        run_steps(algorithm, state, model, 5)
        parts = (state.alphas, state.train_copy, state.valid_copy)
        ends.append(torch.cat([p.flatten() for part in parts for p in part.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
