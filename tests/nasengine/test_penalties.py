from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from nasengine.errors import SettingError
from nasengine.penalties import FLOOR, Penalty, Sparsity
from nasengine.seeding import generator
from nasengine.settings import from_plain, plain

Kind = Literal["l1", "l0", "lp", "tl1", "mcp", "scad"]
Way = Literal["subgradient", "proximal", "splitting", "palm"]
KINDS: tuple[Kind, ...] = ("l1", "l0", "lp", "tl1", "mcp", "scad")
WAYS: tuple[Way, ...] = ("subgradient", "proximal", "splitting", "palm")
CASES = 300


def uniform(seed: int, low: float, high: float, count: int = CASES) -> list[float]:
    drawn = torch.rand(count, generator=generator(seed), dtype=torch.float64)
    return (low + (high - low) * drawn).tolist()


def shapes(kind: Kind, seed: int, count: int = CASES) -> list[float]:
    low, high = {"lp": (0.05, 0.95), "tl1": (0.05, 5.0), "mcp": (1.02, 5.0), "scad": (2.02, 6.0)}.get(kind, (1.0, 1.0))
    return uniform(seed, low, high, count)


def some(kind: Kind, weight: float = 0.7) -> Penalty:
    return Penalty(kind=kind, a={"lp": 0.7, "mcp": 1.6, "scad": 2.5}.get(kind, 1.3), weight=weight)


def line(low: float, high: float, count: int = 4001) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def objective(penalty: Penalty, x: Tensor, v: float, step: float) -> Tensor:
    return (x - v) ** 2 / 2 + step * penalty.value(x)


def brute_force(penalty: Penalty, v: float, step: float) -> tuple[float, float]:
    """The best point of ever finer grids, and its objective."""
    grid, spacing, best = line(-abs(v) - 1, abs(v) + 1), 2 * (abs(v) + 1) / 4000, 0.0
    for _ in range(4):
        grid = torch.cat([grid, torch.tensor([0.0, v, best], dtype=torch.float64)])
        best = float(grid[objective(penalty, grid, v, step).argmin()])
        grid, spacing = line(best - 2 * spacing, best + 2 * spacing, 401), spacing / 100
    return best, float(objective(penalty, torch.tensor(best, dtype=torch.float64), v, step))


@pytest.mark.parametrize("kind", KINDS)
def test_prox_is_the_best_point_of_a_grid(kind: Kind) -> None:
    at_the_point = 0
    drawn = zip(uniform(1, -4, 4), uniform(2, 0, 1.5), uniform(3, 0, 4), shapes(kind, 4), strict=True)
    for v, weight, step, a in drawn:
        penalty = Penalty(kind=kind, a=a, weight=weight)
        point, value = brute_force(penalty, v, step)
        found = penalty.prox(torch.tensor(v, dtype=torch.float64), step)
        assert float(objective(penalty, found, v, step)) <= value + 1e-12, (v, weight, step, a)
        at_the_point += abs(float(found) - point) < 1e-6
    assert at_the_point >= CASES - 1


@pytest.mark.parametrize("kind", KINDS)
def test_subgradient_is_the_slope_of_the_value(kind: Kind) -> None:
    for weight, a in zip(uniform(5, 0.01, 2, 50), shapes(kind, 6, 50), strict=True):
        penalty = Penalty(kind=kind, a=a, weight=weight)
        x, width = line(-8, 8, 2000), 1e-6
        kinks = torch.tensor([0.0, weight, a * weight], dtype=torch.float64)
        smooth = (x.abs()[:, None] - kinks).abs().min(1).values > 1e-3
        slope = (penalty.value(x + width) - penalty.value(x - width)) / (2 * width)
        torch.testing.assert_close(penalty.subgradient(x)[smooth], slope[smooth], rtol=1e-6, atol=1e-8)


def test_published_values() -> None:
    x = torch.tensor([-0.5, 2.0, 10.0], dtype=torch.float64)
    s, a = 0.8, 3.0
    expected: dict[Kind, list[float]] = {
        "l1": [0.4, 1.6, 8.0],
        "l0": [0.8, 0.8, 0.8],
        "tl1": [s * 4 * 0.5 / 3.5, s * 4 * 2 / 5, s * 4 * 10 / 13],
        "mcp": [s * 0.5 - 0.25 / 6, s * 2 - 4 / 6, a * s * s / 2],
        "scad": [s * 0.5, (2 * a * s * 2 - 4 - s * s) / (2 * (a - 1)), s * s * (a + 1) / 2],
    }
    for kind, values in expected.items():
        made = Penalty(kind=kind, a=a, weight=s).value(x)
        torch.testing.assert_close(made, torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(Penalty(kind="lp", a=0.5, weight=s).value(x), s * x.abs().sqrt())


def test_subgradient_of_lp_is_held_below_the_floor() -> None:
    penalty = Penalty(kind="lp", a=0.3, weight=2.0)
    x, at_floor = torch.tensor([1e-30, FLOOR / 2, FLOOR, 2 * FLOOR], dtype=torch.float64), 0.6 * FLOOR**-0.7
    assert penalty.subgradient(x).tolist() == pytest.approx([at_floor, at_floor, at_floor, at_floor * 2**-0.7])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0.3, 1.0, 2.0, 4.0])
def test_prox_is_odd_rising_and_shrinks(kind: Kind, step: float) -> None:
    penalty, v = some(kind), line(0, 6, 20001)
    assert (float(penalty.value(v)[0]), float(penalty.subgradient(v)[0])) == (0, 0)
    made = penalty.prox(v, step)
    assert torch.equal(penalty.prox(-v, step), -made)
    assert (made.diff() >= -1e-12).all()
    assert ((made >= 0) & (made <= v)).all()
    assert 0 < int((made == 0).sum()) < len(v)


@pytest.mark.parametrize("kind", KINDS)
def test_prox_without_step_or_weight_changes_nothing_and_nan_stays(kind: Kind) -> None:
    assert some(kind).prox(torch.tensor([math.nan, 1.0]), 1.0).isnan().tolist() == [True, False]
    v = line(-3, 3, 11)
    torch.testing.assert_close(some(kind).prox(v, 0.0), v)
    torch.testing.assert_close(some(kind, weight=0.0).prox(v, 2.0), v)


JUMPS: list[tuple[Penalty, float, float, float, float]] = [
    # penalty, step, the tie, and the two minimisers at it; with lam = step * weight
    (Penalty(kind="l0", weight=0.5), 4.0, 2.0, 0.0, 2.0),
    (Penalty(kind="lp", a=0.5, weight=0.5), 2.0, 1.5, 0.0, 1.0),
    (Penalty(kind="lp", a=0.25, weight=1.0), 2 / 3, 7 / 6, 0.0, 1.0),
    (Penalty(kind="tl1", a=1.0, weight=0.5), 2.0, 1.5, 0.0, 1.0),
    (Penalty(kind="mcp", a=2.0, weight=0.5), 8.0, 2.0, 0.0, 2.0),
    (Penalty(kind="scad", a=3.0, weight=0.5), 3.0, 1.75, 0.25, 1.75),
    (Penalty(kind="scad", a=3.0, weight=0.5), 9.0, 3.0, 0.0, 3.0),
]


@pytest.mark.parametrize(("penalty", "step", "tie", "low", "high"), JUMPS)
def test_jumps(penalty: Penalty, step: float, tie: float, low: float, high: float) -> None:
    two = objective(penalty, torch.tensor([low, high], dtype=torch.float64), tie, step)
    assert float(two[0]) == pytest.approx(float(two[1]), abs=1e-12)
    around = penalty.prox(torch.tensor([tie - 1e-9, tie + 1e-9], dtype=torch.float64), step)
    assert around.tolist() == pytest.approx([low, high], abs=1e-7)
    if penalty.kind not in ("lp", "tl1"):  # whose ties are not exact in floating point
        at_the_tie = penalty.prox(torch.tensor([-tie, tie], dtype=torch.float64), step)
        assert at_the_tie.tolist() == pytest.approx([-low, low], abs=1e-12)


def test_the_closed_form_of_one_half_is_the_numeric_root() -> None:
    v = line(-5, 5)
    closed = Penalty(kind="lp", a=0.5, weight=0.9).prox(v, 1.3)
    numeric = Penalty(kind="lp", a=0.5 + 1e-12, weight=0.9).prox(v, 1.3)
    torch.testing.assert_close(closed, numeric, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("lam", [1e-8, 1e-3, 1.0, 1e3])
def test_the_numeric_root_is_stationary(p: float, lam: float) -> None:
    jump = (2 * lam * (1 - p)) ** (1 / (2 - p))
    threshold, far = jump * (2 - p) / (2 * (1 - p)), torch.logspace(-9, 4, 500, dtype=torch.float64)
    v = threshold * torch.cat([1 - far[far < 1], 1 + far])
    x = Penalty(kind="lp", a=p, weight=lam).prox(v, 1.0)
    kept = v > threshold
    assert torch.equal(kept, x > 0)
    residual = x[kept] + lam * p * x[kept] ** (p - 1) - v[kept]
    assert (residual.abs() <= 1e-13 * v[kept]).all()
    assert (x[kept] >= jump * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("near", "limit"),
    [
        (Penalty(kind="tl1", a=1e9, weight=0.6), Penalty(kind="l1", weight=0.6)),
        (Penalty(kind="mcp", a=1e9, weight=0.6), Penalty(kind="l1", weight=0.6)),
        (Penalty(kind="scad", a=1e9, weight=0.6), Penalty(kind="l1", weight=0.6)),
        (Penalty(kind="lp", a=1 - 1e-9, weight=0.6), Penalty(kind="l1", weight=0.6)),
        (Penalty(kind="tl1", a=1e-9, weight=0.6), Penalty(kind="l0", weight=0.6)),
        (Penalty(kind="lp", a=1e-9, weight=0.6), Penalty(kind="l0", weight=0.6)),
    ],
)
def test_limits(near: Penalty, limit: Penalty) -> None:
    x = line(-3, 3, 1000)
    torch.testing.assert_close(near.value(x), limit.value(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(near.prox(x, 1.5), limit.prox(x, 1.5), rtol=0, atol=1e-6)
    away = x[x.abs() > 0.1]
    torch.testing.assert_close(near.subgradient(away), limit.subgradient(away), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shapes_and_types_are_kept(kind: Kind, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, generator=generator(7)).to(dtype)

    def made(t: Tensor) -> list[Tensor]:
        return [some(kind).value(t), some(kind).subgradient(t), some(kind).prox(t, 0.5)]

    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    for low, exact in zip(made(x), made(x.double()), strict=True):
        assert (low.shape, low.dtype) == (x.shape, dtype)
        torch.testing.assert_close(low.double(), exact, rtol=tolerance, atol=tolerance)
    assert [tuple(t.shape) for t in made(torch.tensor(0.3, dtype=dtype))] == [()] * 3
    assert [len(t) for t in made(torch.zeros(0, dtype=dtype))] == [0] * 3


@pytest.mark.parametrize("kind", ["tl1", "mcp", "scad"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_wide_shapes_keep_their_digits(kind: Kind, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-2, 2, 101).to(dtype)
    soft = Penalty(kind="l1", weight=0.3).prox(x, 1.0)
    torch.testing.assert_close(Penalty(kind=kind, a=1e6, weight=0.3).prox(x, 1.0), soft, rtol=0, atol=tolerance)


@pytest.mark.parametrize("step", [-0.1, math.nan, math.inf])
def test_steps_are_checked(step: float) -> None:
    message = f"must be a finite number of at least 0, but got {step}; pass the size of the step[.]"
    with pytest.raises(SettingError, match=f"^step {message}$"):
        Penalty().prox(torch.zeros(1), step)
    for by in WAYS:
        with pytest.raises(SettingError, match=f"^rate {message}$"):
            Sparsity(by=by).after([torch.zeros(1)], [torch.zeros(1)], step)


def make(by: Way, weight: float, beta: float = 1.0, kind: Kind = "l1", a: float = 1.0) -> Sparsity:
    return Sparsity(by=by, beta=beta, penalty=Penalty(kind=kind, a=a, weight=weight))


def descend(
    sparsity: Sparsity, target: Tensor, score: Tensor, auxiliary: list[Tensor], rate: float, steps: int = 20000
) -> tuple[Tensor, list[Tensor]]:
    """Gradient descent on (w - target)^2 / 2 until nothing moves."""
    for _ in range(steps):
        before = [score, *auxiliary]
        (gradient,) = sparsity.gradient([score], [score - target], auxiliary)
        (score,), auxiliary = sparsity.after([score - rate * gradient], auxiliary, rate)
        if all((new - old).abs().max() < 1e-13 for new, old in zip([score, *auxiliary], before, strict=True)):
            return score, auxiliary
    raise AssertionError("the iteration did not come to rest")


@pytest.mark.parametrize("alpha", [1.2, 3.0, 20.0])
def test_palm_ends_at_the_closed_form(alpha: float) -> None:
    zero = 0
    for case, (weight, beta) in enumerate(zip(uniform(11, 0.01, 1, 12), uniform(12, 0.1, 8, 12), strict=True)):
        drawn = generator(13, case)
        c = (torch.rand(40, 1, generator=drawn, dtype=torch.float64) * 2 - 1) * 4 * weight * (1 + beta) / beta
        starts = torch.randn(1, 6, generator=drawn, dtype=torch.float64) * 5
        target, score = c.expand(40, 6), starts.expand(40, 6)
        xi = torch.randn(40, 6, generator=drawn, dtype=torch.float64) * 5
        sparsity = make("palm", weight, beta)
        score, (xi,) = descend(sparsity, target, score, [xi], 1 / alpha)

        kept = target.abs() > weight * (1 + beta) / beta
        sign = target.sign()
        expected = torch.where(kept, target - sign * weight, target / (1 + beta))
        expected_xi = torch.where(kept, target - sign * (weight + weight / beta), torch.zeros_like(target))
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(xi, expected_xi, rtol=0, atol=1e-9)
        assert torch.equal(sparsity.deployed([score], [xi])[0], torch.where(kept, score, torch.zeros_like(score)))
        zero += int((~kept).sum())
    assert 0 < zero < 12 * 240


def test_palm_is_one_step_of_the_published_equations() -> None:
    drawn = generator(14)
    w, g, xi = (torch.randn(9, generator=drawn, dtype=torch.float64) for _ in range(3))
    rate, weight, beta = 0.05, 0.3, 2.5
    alpha = 1 / rate
    sparsity = make("palm", weight, beta, kind="mcp", a=3.0)
    assert sparsity.gradient([w], [g], [xi])[0].tolist() == g.tolist()
    (score,), (sparse,) = sparsity.after([w - rate * g], [xi], rate)
    expected = (alpha * (w - g / alpha) + beta * xi) / (alpha + beta)
    torch.testing.assert_close(score, expected)
    middle = (alpha * xi + beta * expected) / (alpha + beta)
    torch.testing.assert_close(sparse, sparsity.penalty.prox(middle, 1 / (alpha + beta)))
    (score,), (sparse,) = sparsity.after([w], [xi], 0.0)
    assert (score.tolist(), sparse.tolist()) == (w.tolist(), xi.tolist())


@pytest.mark.parametrize(("lam", "beta"), [(0.5, 1.0), (0.02, 4.0), (1.3, 0.25)])
def test_splitting_with_l0_ends_where_it_must(lam: float, beta: float) -> None:
    threshold = math.sqrt(2 * lam / beta)
    sparsity = make("splitting", lam, beta, kind="l0")
    shares = torch.tensor([0.2, 0.6, 0.95, 1.05, 1 + beta / 2, 0.98 * (1 + beta), 1.02 * (1 + beta), 3 * (1 + beta)])
    c = torch.cat([shares, -shares]).double() * threshold
    zero_exists = c.abs() <= (1 + beta) * threshold
    kept_exists = c.abs() > threshold
    assert int((zero_exists & kept_exists).sum()) >= 4
    # where both exist, the start decides
    for start, kept in ((torch.zeros_like(c), ~zero_exists), (c + 1.5 * threshold * c.sign(), kept_exists)):
        w, auxiliary = descend(sparsity, c, start, sparsity.start([start]), 0.5 / (1 + beta))
        torch.testing.assert_close(w, torch.where(kept, c, c / (1 + beta)), rtol=0, atol=1e-9)
        (u,) = sparsity.deployed([w], auxiliary)
        assert torch.equal(u, torch.where(kept, w, torch.zeros_like(c)))


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_never_raises_its_objective(kind: Kind) -> None:
    penalty, beta, rate = some(kind, weight=0.3), 0.8, 0.3
    sparsity = Sparsity(by="splitting", penalty=penalty, beta=beta)
    c = torch.randn(50, generator=generator(15), dtype=torch.float64)
    w = torch.randn(50, generator=generator(16), dtype=torch.float64) * 2
    auxiliary, values = sparsity.start([w]), []
    for _ in range(60):
        u = auxiliary[0]
        values.append((w - c) ** 2 / 2 + penalty.value(u) + beta / 2 * (w - u) ** 2)
        (gradient,) = sparsity.gradient([w], [w - c], auxiliary)
        (w,), auxiliary = sparsity.after([w - rate * gradient], auxiliary, rate)
    assert (torch.stack(values).diff(dim=0) <= 1e-12).all()
    assert float(values[-1].sum()) < float(values[0].sum()) - 1


@pytest.mark.parametrize("kind", ["l1", "l0", "mcp"])
def test_proximal_rests_at_a_proximal_point(kind: Kind) -> None:
    c = line(-3, 3, 41)
    sparsity = Sparsity(by="proximal", penalty=some(kind, weight=0.5))
    score, auxiliary = descend(sparsity, c, torch.zeros_like(c), [], 1.0)
    assert auxiliary == []
    torch.testing.assert_close(score, sparsity.penalty.prox(c, 1.0))
    assert (score == 0).any()
    assert torch.equal(sparsity.deployed([score], [])[0], score)


def test_l1_alone_sends_scores_linearly_to_zero() -> None:
    weight, rate = 0.25, 0.5
    sparsity, score = make("proximal", weight), torch.tensor([1.0, -0.75, 0.1875])
    start = score
    for step in range(10):
        assert torch.equal(score, start.sign() * (start.abs() - step * weight * rate).clamp(min=0))
        (gradient,) = sparsity.gradient([score], [torch.zeros_like(score)], [])
        (score,), _ = sparsity.after([score - rate * gradient], [], rate)
    assert score.tolist() == [0, 0, 0]


def test_subgradient_and_splitting_change_the_gradient() -> None:
    w, g, u = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.0, -1.5, 0.25])
    assert make("subgradient", 0.25).gradient([w], [g], [])[0].tolist() == [0.75, 0.25, 0.5]
    assert make("splitting", 0.25, beta=2.0).gradient([w], [g], [u])[0].tolist() == [2.5, -0.5, 0.0]
    for by in ("proximal", "palm"):
        assert make(by, 0.25).gradient([w], [g], [u])[0].tolist() == g.tolist()
    (after,), auxiliary = make("subgradient", 0.25).after([w], [], 0.1)
    assert (after.tolist(), auxiliary) == (w.tolist(), [])
    assert make("subgradient", 0.25).deployed([w], [])[0].tolist() == w.tolist()


def test_starts() -> None:
    scores = [torch.tensor([1.0, -0.1]), torch.tensor(2.0)]
    assert make("subgradient", 0.5).start(scores) == make("proximal", 0.5).start(scores) == []
    assert [u.tolist() for u in make("splitting", 0.5, beta=2.0).start(scores)] == [[0.75, 0.0], 1.75]
    xi = make("palm", 0.5).start(scores)
    assert [x.tolist() for x in xi] == [x.tolist() for x in scores]
    assert xi[0].data_ptr() != scores[0].data_ptr()


def test_the_mask_of_palm_is_where_its_copy_is_zero() -> None:
    score, xi = torch.tensor([0.5, 0.0, -0.25, 1.0]), torch.tensor([0.0, 1.0, -1e-30, -0.0])
    assert make("palm", 0.5).deployed([score], [xi])[0].tolist() == [0.0, 0.0, -0.25, 0.0]


@pytest.mark.parametrize("by", WAYS)
def test_nothing_builds_a_graph_or_changes_its_arguments(by: Way) -> None:
    scores = [torch.nn.Parameter(torch.tensor([0.5, -1.0])), torch.nn.Parameter(torch.tensor([[2.0]]))]
    gradients = [torch.ones(2), torch.ones(1, 1)]
    sparsity = make(by, 0.25)
    auxiliary = sparsity.start(scores)
    kept = [t.detach().clone() for t in (*scores, *gradients, *auxiliary)]
    new, new_auxiliary = sparsity.after(scores, auxiliary, 0.5)
    made = [*new, *new_auxiliary, *sparsity.deployed(scores, auxiliary)]
    made += sparsity.gradient(scores, gradients, auxiliary)
    made += [sparsity.penalty.value(scores[0]), sparsity.penalty.subgradient(scores[0])]
    assert not any(t.requires_grad for t in made)
    assert all(torch.equal(now, then) for now, then in zip((*scores, *gradients, *auxiliary), kept, strict=True))
    assert len(new_auxiliary) == len(auxiliary) == (2 if by in ("splitting", "palm") else 0)


LP = "penalty.a must be more than 0 and less than 1 for lp, but got 1.0; set 0.5, say."
L0 = "palm for penalty l0, whose gradient is 0, but got 'subgradient'; set one of these."


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Penalty, {"kind": "lp"}, LP),
        (Penalty, {"kind": "mcp"}, "penalty.a must be more than 1 for mcp, but got 1.0; set 10000, say."),
        (Penalty, {"kind": "scad", "a": 2.0}, "penalty.a must be more than 2 for scad, but got 2.0; set 10000, say."),
        (Penalty, {"kind": "tl1", "a": 0.0}, "penalty.a must be more than 0, but got 0.0."),
        (Penalty, {"weight": -1.0}, "penalty.weight must be at least 0, but got -1.0."),
        (Penalty, {"kind": "l2"}, "penalty.kind must be l1 or l0 or lp or tl1 or mcp or scad, but got 'l2'."),
        (Sparsity, {"by": "x"}, "by must be subgradient or proximal or splitting or palm, but got 'x'."),
        (Sparsity, {"beta": 0.0}, "beta must be more than 0, but got 0.0."),
        (Sparsity, {"penalty": Penalty(kind="l0")}, f"by must be proximal, splitting or {L0}"),
    ],
)
def test_settings_are_checked(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        kind(**values)
    assert str(caught.value) == f"algo.gates.sparsity.{message}"


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("kind", ["l1", "lp", "scad"])
def test_settings_come_back(by: Way, kind: Kind) -> None:
    sparsity = Sparsity(by=by, penalty=some(kind), beta=2.5)
    data = json.loads(json.dumps(plain(sparsity)))
    assert from_plain(Sparsity, data, "algo.gates.sparsity") == sparsity
    assert from_plain(Sparsity, {}, "algo.gates.sparsity") == Sparsity()
