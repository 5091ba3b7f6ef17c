"""DARTS on the solvable model, where every order has a known end; its weights' path against plain training."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from nasengine.algorithm import AlphaSettings, WeightSettings
from nasengine.algorithms.darts import DARTS, DARTSState
from nasengine.errors import SettingError
from nasengine.seeding import generator
from nasengine.testing import place, run_steps, smooth, solvable

Order = Literal["first", "second", "exact"]


def plain_descent(order: Order, xi: float, rate: float) -> DARTS:
    """No momentum, decay or clipping; the weights' learning rate is xi at every step."""
    weights = WeightSettings(lr=xi, lr_min=xi, momentum=0.0, weight_decay=0.0, clip=0.0)
    alphas = AlphaSettings(optimizer="sgd", lr=rate, weight_decay=0.0)
    return DARTS(order=order, relaxation="identity", weights=weights, alphas=alphas)


def point(state: DARTSState) -> tuple[float, float]:
    """(a, w)"""
    (a,), (w,) = state.alphas.parameters(), state.supernet.parameters()
    return a.item(), w.item()


def solve(algorithm: DARTS, steps: int) -> tuple[float, float]:
    model = solvable()
    state = algorithm.init(model.supernet, generator(0), steps)
    place(state.alphas, 2.0)
    run_steps(algorithm, state, model, steps)
    return point(state)


def test_first_order_ends_at_the_wrong_point() -> None:
    assert solve(plain_descent("first", 0.25, 0.1), 400) == pytest.approx((2.0, 2.0), abs=1e-6)


@pytest.mark.parametrize("order", ["second", "exact"])
@pytest.mark.parametrize("xi", [0.1, 0.25, 0.5])
def test_unrolled_orders_end_at_the_closed_form(order: Order, xi: float) -> None:
    end = 2 / (1 + 2 * xi)
    assert solve(plain_descent(order, xi, 0.1), 400) == pytest.approx((end, end), abs=1e-6)


def test_one_step_by_hand() -> None:
    """Alpha first, on the old w; then w on the new alpha."""
    a, w, xi, rate = 2.0, -2.0, 0.1, 0.01
    for order, slope in (("first", w - 2), ("second", (w - 2 * xi * (w - a)) - 2 + 2 * xi * a)):
        new_a = a - rate * slope
        new_w = w - 2 * xi * (w - new_a)
        algorithm = plain_descent("first" if order == "first" else "second", xi, rate)
        assert solve(algorithm, 1) == pytest.approx((new_a, new_w), rel=1e-12)


@pytest.mark.parametrize("order", ["second", "exact"])
def test_the_virtual_step_is_the_next_step_of_the_optimiser(order: Order) -> None:
    """Its rate falls with the cosine, and it carries the momentum and the weight decay."""
    momentum, decay, rate = 0.8, 0.3, 0.05
    weights = WeightSettings(lr=0.2, lr_min=0.1, momentum=momentum, weight_decay=decay, clip=0.0)
    alphas = AlphaSettings(optimizer="sgd", lr=rate, weight_decay=0.0)
    a, w, buffer = 2.0, -2.0, 0.0
    for xi in (0.2, 0.15):
        ahead = w - xi * (momentum * buffer + 2 * (w - a) + decay * w)
        a = a - rate * (ahead - 2 + 2 * xi * a)
        buffer = momentum * buffer + 2 * (w - a) + decay * w
        w = w - xi * buffer
    algorithm = DARTS(order=order, relaxation="identity", weights=weights, alphas=alphas)
    assert solve(algorithm, 2) == pytest.approx((a, w), rel=1e-12)


def test_step_reports_losses_before_the_update() -> None:
    model = solvable()
    algorithm = plain_descent("first", 0.1, 0.01)
    state = algorithm.init(model.supernet, generator(0), 1)
    place(state.alphas, 2.0)
    info = algorithm.step(state, model.train, model.valid)
    assert info.valid_loss is not None and float(info.valid_loss) == 2.0 * -2.0 - 2 * 2.0 + 1
    assert float(info.train_loss) == pytest.approx((-2.0 - 2.04) ** 2)
    assert state.step == 1


def test_weights_follow_clipped_momentum_descent_on_a_cosine() -> None:
    """With alphas that do not move, the weights' path is that of plain training."""
    still = AlphaSettings(optimizer="sgd", lr=1e-300, weight_decay=0.0)
    algorithm = DARTS(weights=WeightSettings(lr=0.5, lr_min=0.1, clip=0.05), alphas=still)
    model, other = smooth(), smooth()
    state = algorithm.init(model.supernet, generator(0), 4)
    run_steps(algorithm, state, model, 4)

    mixture = algorithm.mixture(state)
    parameters = list(other.supernet.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4, eta_min=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        other.supernet.evaluate(other.train, mixture).loss.backward()  # type: ignore[no-untyped-call]
        assert float(torch.nn.utils.clip_grad_norm_(parameters, 0.05)) > 0.05
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(model.supernet.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", ["first", "second", "exact"])
def test_seeds(order: Order) -> None:
    ends = []
    for seed in (0, 0, 1):
        model, algorithm = smooth(), DARTS(order=order)
        state = algorithm.init(model.supernet, generator(seed), 5)
        run_steps(algorithm, state, model, 5)
        ends.append(torch.cat([p.flatten() for p in [*state.alphas.parameters(), *model.supernet.parameters()]]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_search_lowers_the_training_loss() -> None:
    model, algorithm = smooth(), DARTS(order="second", alphas=AlphaSettings(lr=0.05), weights=WeightSettings(lr=0.1))
    state = algorithm.init(model.supernet, generator(0), 60)
    infos = run_steps(algorithm, state, model, 60)
    assert float(infos[-1].train_loss) < 0.75 * float(infos[0].train_loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DARTS(order="third"), "algo.order must be first or second or exact, but got 'third'"),  # type: ignore[arg-type]
        (lambda: WeightSettings(lr=0.0), "algo.weights.lr must be more than 0, but got 0.0"),
        (lambda: WeightSettings(momentum=1.0), "algo.weights.momentum must be at least 0 and at most 0.999"),
        (lambda: AlphaSettings(beta1=-0.1), "algo.alphas.beta1 must be at least 0"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
