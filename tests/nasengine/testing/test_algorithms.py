"""The contract tests of algorithms find what they are there to find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from nasengine.algorithm import StepInfo
from nasengine.algorithms.darts import DARTS, DARTSState
from nasengine.architecture import Architecture
from nasengine.evolution import Budget
from nasengine.supernet import Supernet
from nasengine.task import Batch
from nasengine.testing import check_algorithm, place


@dataclass(frozen=True, kw_only=True)
class Remembering(DARTS):
    """Keeps a count of its own."""

    seen: list[int] = field(default_factory=list)

    def step(self, state: DARTSState, train: Batch, valid: Batch) -> StepInfo:
        self.seen.append(1)
        with torch.no_grad():
            next(state.alphas.parameters()).add_(len(self.seen))
        return super().step(state, train, valid)


class Deaf(DARTS):
    """Starts alike whatever the generator."""

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> DARTSState:
        state = super().init(supernet, generator, steps)
        place(state.alphas, 0.0)
        return state


class Nosy(DARTS):
    """Looks at the validation batch once more, and moves the batch-norm statistics."""

    def step(self, state: DARTSState, train: Batch, valid: Batch) -> StepInfo:
        state.supernet.evaluate(valid, self.mixture(state))
        return super().step(state, train, valid)


class Meddling(DARTS):
    """Changes the state when it is asked for an answer."""

    def derive(self, state: DARTSState, budget: Budget | None = None) -> Architecture:
        state.step += 1
        return super().derive(state, budget)


class Leaking(DARTS):
    """Its mixture carries gradient."""

    def mixture(self, state: DARTSState) -> dict[str, Tensor]:
        return state.alphas.mixture(self.relaxation)


class Unsaved(DARTS):
    """Keeps what it needs outside the fields of its state."""

    def step(self, state: DARTSState, train: Batch, valid: Batch) -> StepInfo:
        count = getattr(state.supernet, "extra", 0) + 1
        state.supernet.extra = count  # type: ignore[assignment]
        with torch.no_grad():
            next(state.alphas.parameters()).add_(count)
        return super().step(state, train, valid)


class Lavish(DARTS):
    """Does not look at the budget."""

    def derive(self, state: DARTSState, budget: Budget | None = None) -> Architecture:
        return state.supernet.space.largest(state.supernet.choices)


class Thawed:
    """Not a frozen dataclass, though it does what DARTS does."""


@pytest.mark.parametrize(
    ("algorithm", "law"),
    [
        (Remembering(), "equal seeds must give equal states"),
        (Deaf(), "another seed must give another search"),
        (Nosy(), "statistics once at most"),
        (Meddling(), "must change nothing"),
        (Leaking(), "mixture must carry no gradient"),
        (Unsaved(), "must continue bit for bit"),
        (Lavish(), "must keep the limits of the budget"),
        (Thawed(), "must be a dataclass"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_algorithms_do_not_pass(algorithm: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        check_algorithm(algorithm)
