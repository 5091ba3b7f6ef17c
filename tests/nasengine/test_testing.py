"""The contract tests find what they are there to find."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nasengine import testing
from nasengine.algorithm import StepInfo
from nasengine.algorithms.darts import DARTS, DARTSState
from nasengine.architecture import Architecture, Choice
from nasengine.supernet import MixedOp, Shared, Supernet
from nasengine.task import Batch, Shapes
from nasengine.testing import SmoothSpace, check_algorithm, check_space, place, solvable

SHAPES = Shapes((4,), 3)


class Flat(nn.Module):
    """A network of one choice, with `around` for what a bad author writes."""

    def __init__(self, around: Callable[[MixedOp, Tensor], Tensor]) -> None:
        super().__init__()
        self.op = MixedOp("op", {"tanh": nn.Tanh(), "relu": nn.ReLU()})
        self.head = nn.Linear(4, 3)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.around(self.op, x))
        return logits


@dataclass(frozen=True, kw_only=True)
class FlatSpace(SmoothSpace):
    around: Callable[[MixedOp, Tensor], Tensor] = lambda op, x: op(x)

    def network(self, shapes: Shapes) -> nn.Module:
        return Flat(self.around)


def all_options(op: MixedOp, x: Tensor) -> Tensor:
    for option in getattr(op, "options", ()):
        option(x)
    return torch.as_tensor(op(x))


class Memory:
    """Remembers the output of the call before."""

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, op: MixedOp, x: Tensor) -> Tensor:
        now = torch.as_tensor(op(x))
        output = now if self.before is None else now + self.before.detach()
        self.before = now
        return output


class Doubling(nn.Module):
    """Not the same function the second time: sharing it changes the result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * float(self.calls)


def impure(op: MixedOp, x: Tensor) -> Tensor:
    shared = Shared(Doubling())
    return torch.as_tensor(op(x)) + torch.as_tensor(shared(x) + shared(x))


class BadText(SmoothSpace):
    def write(self, architecture: Architecture) -> str:
        return str(architecture.replace("layer/0", "skip"))


class BadNeighbours(SmoothSpace):
    def neighbours(self, choices: Mapping[str, Choice], architecture: Architecture) -> list[Architecture]:
        return [architecture]


class BadSample(SmoothSpace):
    options: ClassVar[Iterator[str]] = itertools.cycle(["dense", "gate"])

    def sample(self, choices: Mapping[str, Choice], generator: torch.Generator) -> Architecture:
        return super().sample(choices, generator).replace("layer/0", next(self.options))


class BadChoices(SmoothSpace):
    def choices(self, shapes: Shapes) -> dict[str, Choice]:
        return {**super().choices(shapes), "layer/2": Choice("layer/2", ("dense",))}


class BadExtract(SmoothSpace):
    def supernet(self, shapes: Shapes, loss: Callable[[Tensor, Tensor], Tensor]) -> Supernet:
        class Forgetful(Supernet):
            def extract(self, architecture: Architecture) -> nn.Module:
                return self.space.build(architecture, shapes).double()

        return Forgetful(self, self.network(shapes), loss)


def test_good_spaces_pass() -> None:
    check_space(SmoothSpace(), SHAPES)
    check_space(SmoothSpace(width=3), Shapes((7,), 2))
    check_space(FlatSpace(), SHAPES)


@pytest.mark.parametrize(
    ("space", "law"),
    [
        (BadText(), r"space.read\(space.write\(a\)\) must be a"),
        (BadNeighbours(), "must differ in one choice"),
        (BadSample(), "must depend on the generator alone"),
        (BadChoices(), "space.choices must be the choices of its network"),
        (BadExtract(), "extracted network must equal hard"),
        (FlatSpace(around=all_options), "chosen options alone"),
        (FlatSpace(around=Memory()), "one-hot must equal hard"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_spaces_do_not(space: SmoothSpace, law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        check_space(space, SHAPES)


def test_sharing_what_is_not_the_same_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="Sharing must change neither"):
        testing.check_sharing(FlatSpace(around=impure), SHAPES)


def test_a_call_that_leaks_is_found() -> None:
    with pytest.raises(AssertionError, match="Two calls in one graph"):
        testing.check_reentrancy(FlatSpace(around=Memory()), SHAPES)


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

    def derive(self, state: DARTSState) -> Architecture:
        state.step += 1
        return super().derive(state)


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
        (Thawed(), "must be a dataclass"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_algorithms_do_not_pass(algorithm: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        check_algorithm(algorithm)


def test_the_solvable_model() -> None:
    supernet, train, valid = solvable()
    (w,) = supernet.parameters()
    for a, at in ((2.0, -2.0), (0.5, 3.0)):
        place(supernet, at)
        mixture = {"a": torch.tensor([a], dtype=torch.float64)}
        assert w.item() == at
        assert supernet.evaluate(train, mixture).loss.item() == (at - a) ** 2
        assert supernet.evaluate(valid, mixture).loss.item() == a * at - 2 * a + 1
