"""Sparsity penalties on scores (gates, batch-norm scales), and the four ways to descend on them.

One convention holds for all of them: `Penalty.value` is the whole term of the objective, weight included; `subgradient`
is its derivative; `prox` with a step is the exact minimiser of (x - v)^2 / 2 + step * value(x), at every step. The
weight s multiplies l1, l0, lp and tl1; mcp and scad have it as their scale, P(x) = s^2 P_1(x / s), as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from nasengine.errors import SettingError
from nasengine.settings import group, setting, validate

FLOOR: Final = 1e-4
"""Below this size of a score, the subgradient of lp is the one at this size."""

_NEWTON_STEPS: Final = 8  # the error depends on p and r / jump alone; 6 reach rounding in double precision


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A penalty, elementwise on tensors of any shape and floating type; nothing here builds a graph.

    With s the weight, r = |x|:

        l1    s r                      l0    s [r > 0]
        lp    s r^a, 0 < a < 1         tl1   s (a + 1) r / (a + r), a > 0; l1 as a -> inf, l0 as a -> 0
        mcp   s r - r^2 / (2 a) up to r = a s, flat beyond, a > 1
        scad  s r up to r = s, (2 a s r - r^2 - s^2) / (2 (a - 1)) up to r = a s, flat beyond, a > 2

    mcp and scad spare scores above a * weight: small weights want large a. Half-precision tensors are computed in
    single precision. Raises SettingError if `a` is out of the range of its kind.

    References: Bui et al., arXiv:2010.01242 (network slimming with lp, tl1, mcp and scad).

    Differs from the paper: the subgradient of lp, which is unbounded at 0, is held at its value at `FLOOR` below it.
    """

    kind: Literal["l1", "l0", "lp", "tl1", "mcp", "scad"] = setting("l1", "form of the penalty")
    a: float = setting(1.0, "lp: exponent; tl1: width; mcp, scad: flat beyond a * weight; else unused", above=0)
    weight: float = setting(1e-4, "strength; mcp and scad: slope at 0", low=0)

    def __post_init__(self) -> None:
        validate(self, "algo.gates.sparsity.penalty")
        low, high, example = _RANGES.get(self.kind, (0.0, math.inf, 1.0))
        if not low < self.a < high:
            bounds = f"more than {low:g}" + (f" and less than {high:g}" if high < math.inf else "")
            if self.kind in ("mcp", "scad") and self.weight:
                example = max(example, 1 / self.weight)  # gates start at 1: flat there, it would do nothing
            raise SettingError(
                f"algo.gates.sparsity.penalty.a must be {bounds} for {self.kind}, but got {self.a}; set "
                f"{example:g}, say."
            )

    def value(self, x: Tensor) -> Tensor:
        """P(x) of every element, weight included, in the shape of `x`."""
        with torch.no_grad():
            return _FORMULAS[self.kind].value(_wide(x).abs(), self.weight, self.a).to(x.dtype)

    def subgradient(self, x: Tensor) -> Tensor:
        """dP/dx of every element, weight included, in the shape of `x`; 0 at 0, and 0 everywhere for l0."""
        with torch.no_grad():
            wide = _wide(x)
            return (wide.sign() * _FORMULAS[self.kind].slope(wide.abs(), self.weight, self.a)).to(x.dtype)

    def prox(self, v: Tensor, step: float) -> Tensor:
        """argmin_x (x - v)^2 / 2 + step * P(x) of every element, in the shape of `v`.

        Of two minimisers the one nearer to 0, which is 0 itself but for scad. Raises SettingError unless `step` is
        finite and not negative.
        """
        _require_step("step", step)
        with torch.no_grad():
            wide = _wide(v)
            return (wide.sign() * _FORMULAS[self.kind].shrink(wide.abs(), self.weight, self.a, step)).to(v.dtype)


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """How scores descend on loss + penalty, as pure functions around the step of an optimiser.

    A step is: `gradient`, the optimiser's step with what it gives, `after` at the optimiser's learning rate. With f the
    loss, w the scores, eta the rate:

        subgradient   w <- w - eta (grad f + dP(w))                                             (network slimming)
        proximal      w <- prox_{eta P}(w - eta grad f)
        splitting     w <- w - eta (grad f + beta (w - u)),  u <- prox_{P / beta}(w)            (arXiv:1812.05719)
        palm          w <- (alpha (w - eta grad f) + beta xi) / (alpha + beta),  alpha = 1 / eta,
                      xi <- prox_{P / (alpha + beta)}((alpha xi + beta w) / (alpha + beta))     (arXiv:2307.00684)

    The equations hold for plain gradient descent; momentum and weight decay of the optimiser act outside of them.
    Splitting is stable while eta (beta + curvature of f) < 2; palm needs 1 / eta above the curvature alone.

    References: Dinh, Xin, arXiv:1812.05719 (relaxed variable splitting); Bui et al., arXiv:2307.00684 (proximal
    network slimming).

    Differs from the paper: (splitting) w is not normalised after its step; (palm) xi starts at the scores and not
    beside them at random, any penalty may stand for l1, and a score is removed where xi, not the score, is 0.
    """

    by: Literal["subgradient", "proximal", "splitting", "palm"] = setting("subgradient", "how scores descend on it")
    penalty: Penalty = group(Penalty, "the penalty on the scores")
    beta: float = setting(1.0, "splitting, palm: coupling of the scores and their sparse copy", above=0)

    def __post_init__(self) -> None:
        validate(self, "algo.gates.sparsity")
        if self.by == "subgradient" and self.penalty.kind == "l0":
            raise SettingError(
                "algo.gates.sparsity.by must be proximal, splitting or palm for penalty l0, whose gradient is 0, "
                "but got 'subgradient'; set one of these."
            )

    def start(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """The auxiliary tensors before the first step, one per score: u, xi, or none."""
        if self.by == "splitting":
            return [self.penalty.prox(score, 1 / self.beta) for score in scores]
        return [score.detach().clone() for score in scores] if self.by == "palm" else []

    def gradient(
        self, scores: Sequence[Tensor], gradients: Sequence[Tensor], auxiliary: Sequence[Tensor]
    ) -> list[Tensor]:
        """What to hand to the optimiser in place of the loss's gradients, each in the shape of its score."""
        with torch.no_grad():
            if self.by == "subgradient":
                return [g + self.penalty.subgradient(w) for w, g in zip(scores, gradients, strict=True)]
            if self.by == "splitting":
                return [g + self.beta * (w - u) for w, g, u in zip(scores, gradients, auxiliary, strict=True)]
        return list(gradients)

    def after(
        self, scores: Sequence[Tensor], auxiliary: Sequence[Tensor], rate: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Scores and auxiliary tensors that follow an optimiser's step at learning rate `rate`.

        Changes none of its arguments. Raises SettingError unless `rate` is finite and not negative.
        """
        _require_step("rate", rate)
        if self.by == "proximal":
            return [self.penalty.prox(score, rate) for score in scores], []
        if self.by == "splitting":
            return [score.detach() for score in scores], self.start(scores)
        if self.by == "palm":
            pairs = [self._palm(w, xi, rate) for w, xi in zip(scores, auxiliary, strict=True)]
            return [w for w, _ in pairs], [xi for _, xi in pairs]
        return [score.detach() for score in scores], []

    def deployed(self, scores: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """The scores of the network that is kept: u; the scores where xi is not 0 and 0 elsewhere; the scores."""
        if self.by == "splitting":
            return [u.detach() for u in auxiliary]
        if self.by == "palm":
            pairs = zip(scores, auxiliary, strict=True)
            return [score.detach().masked_fill(xi.detach() == 0, 0) for score, xi in pairs]
        return [score.detach() for score in scores]

    def _palm(self, score: Tensor, xi: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        pull = rate * self.beta  # all is divided by alpha: a rate of 0 must change nothing rather than divide by it
        with torch.no_grad():
            score = (score + pull * xi) / (1 + pull)
            return score, self.penalty.prox((xi + pull * score) / (1 + pull), rate / (1 + pull))


class _Formulas(NamedTuple):
    """On sizes r >= 0, with the weight s and the shape a: value, derivative, and proximal point at a step t."""

    value: Callable[[Tensor, float, float], Tensor]
    slope: Callable[[Tensor, float, float], Tensor]
    shrink: Callable[[Tensor, float, float, float], Tensor]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _require_step(name: str, step: float) -> None:
    if not (math.isfinite(step) and step >= 0):
        raise SettingError(f"{name} must be a finite number of at least 0, but got {step}; pass the size of the step.")


def _zero_up_to(threshold: float, r: Tensor, beyond: Tensor) -> Tensor:
    # r <= threshold, and not its negation, keeps NaN a NaN
    return torch.where(r <= threshold, torch.zeros_like(r), beyond)


def _soft(r: Tensor, threshold: float) -> Tensor:
    return (r - threshold).clamp(min=0)


def _lp_shrink(r: Tensor, s: float, p: float, t: float) -> Tensor:
    lam = t * s
    jump = (2 * lam * (1 - p)) ** (1 / (2 - p))
    threshold = jump * (2 - p) / (2 * (1 - p))
    return _zero_up_to(threshold, r, _half_root(r, lam) if p == 0.5 else _lp_root(r, lam, p))


def _half_root(r: Tensor, lam: float) -> Tensor:
    angle = torch.acos((lam / 4 * (r / 3) ** -1.5).clamp(max=1))
    return 2 / 3 * r * (1 + torch.cos(2 / 3 * (math.pi - angle)))


def _lp_root(r: Tensor, lam: float, p: float) -> Tensor:
    # x + lam p x^(p-1) is convex and its slope beyond the jump is 1 - p/2 or more: from r, Newton cannot overshoot
    x = r
    for _ in range(_NEWTON_STEPS):
        pull = lam * p * x ** (p - 1)
        x = x - (x + pull - r) / (1 - (1 - p) * pull / x)
    return x


def _tl1_shrink(r: Tensor, s: float, a: float, t: float) -> Tensor:
    lam = t * s
    jumps = lam > a * a / (2 * (a + 1))
    threshold = math.sqrt(2 * lam * (a + 1)) - a / 2 if jumps else lam * (a + 1) / a
    # cos(phi/3) of the published root in half angles, which does not cancel for large a
    sine = torch.sqrt(27 / 4 * lam * a * (a + 1) / (a + r) ** 3).clamp(max=1)
    root = r - 4 / 3 * (a + r) * torch.sin(torch.asin(sine) / 3) ** 2
    return _zero_up_to(threshold, r, root.clamp(min=0))


def _mcp_value(r: Tensor, s: float, a: float) -> Tensor:
    sloped = r.clamp(max=a * s)
    return s * sloped - sloped**2 / (2 * a)


def _mcp_shrink(r: Tensor, s: float, a: float, t: float) -> Tensor:
    if t >= a:
        return _zero_up_to(s * math.sqrt(a * t), r, r)
    return torch.minimum(_soft(r, t * s) * (a / (a - t)), r)


def _scad_value(r: Tensor, s: float, a: float) -> Tensor:
    sloped = r.clamp(max=a * s)
    return torch.where(sloped <= s, s * sloped, (2 * a * s * sloped - sloped**2 - s * s) / (2 * (a - 1)))


def _scad_shrink(r: Tensor, s: float, a: float, t: float) -> Tensor:
    soft = _soft(r, t * s)
    if t >= a - 1:
        tie = s * (a + 1 + t) / 2 if t < a + 1 else s * math.sqrt(t * (a + 1))
        return torch.where(r <= tie, soft, r)
    between = torch.minimum(((a - 1) * r - t * a * s) / (a - 1 - t), r)
    return torch.where(r <= s * (1 + t), soft, between)


_FORMULAS: Final[Mapping[str, _Formulas]] = {
    "l1": _Formulas(
        lambda r, s, a: s * r,
        lambda r, s, a: torch.full_like(r, s),
        lambda r, s, a, t: _soft(r, t * s),
    ),
    "l0": _Formulas(
        lambda r, s, a: s * r.sign(),
        lambda r, s, a: torch.zeros_like(r),
        lambda r, s, a, t: _zero_up_to(math.sqrt(2 * t * s), r, r),
    ),
    "lp": _Formulas(
        lambda r, s, a: s * r**a,
        lambda r, s, a: s * a * r.clamp(min=FLOOR) ** (a - 1),
        _lp_shrink,
    ),
    "tl1": _Formulas(
        lambda r, s, a: s * (a + 1) * r / (a + r),
        lambda r, s, a: s * a * (a + 1) / (a + r) ** 2,
        _tl1_shrink,
    ),
    "mcp": _Formulas(
        _mcp_value,
        lambda r, s, a: (s - r / a).clamp(min=0),
        _mcp_shrink,
    ),
    "scad": _Formulas(
        _scad_value,
        lambda r, s, a: ((a * s - r) / (a - 1)).clamp(min=0, max=s),
        _scad_shrink,
    ),
}

_RANGES: Final[Mapping[str, tuple[float, float, float]]] = {
    "lp": (0.0, 1.0, 0.5),
    "tl1": (0.0, math.inf, 1.0),
    "mcp": (1.0, math.inf, 3.0),
    "scad": (2.0, math.inf, 3.7),
}
