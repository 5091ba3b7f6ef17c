"""What the tests of delayed epsilon-shrinking share."""

from __future__ import annotations

from typing import Any

import pytest

from nasengine.algorithms.deps import DepS, DepSState, ShrinkingWeights
from nasengine.architecture import Architecture
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.testing import Solvable, run_steps

OFA: dict[str, Any] = {
    "shrinking": "progressive",
    "teacher": "frozen",
    "sampling": "random",
    "hard": 1.0,
    "ramp": 0.0,
}
"""Progressive shrinking of once-for-all."""

MUTE = 1e-300
"""Weight of a loss, or a rate, at which nothing moves in double precision."""


def constant(rate: float) -> ShrinkingWeights:
    """Plain descent at one rate."""
    return ShrinkingWeights(lr=rate, lr_min=rate, momentum=0.0, weight_decay=0.0, nesterov=False)


def begin(algorithm: DepS, model: Solvable, steps: int, at: int = 0) -> DepSState:
    state = algorithm.init(model.supernet, generator(2), steps)
    state.step = at
    return state


def sampled(algorithm: DepS, state: DepSState, model: Solvable, monkeypatch: pytest.MonkeyPatch) -> list[Architecture]:
    """The subnets of the next step."""
    found: list[Architecture] = []
    plain = Supernet.hard

    def hard(self: Supernet, architecture: Architecture) -> dict[str, int]:
        found.append(architecture)
        return plain(self, architecture)

    with monkeypatch.context() as patch:
        patch.setattr(Supernet, "hard", hard)
        run_steps(algorithm, state, model, 1)
    return found
