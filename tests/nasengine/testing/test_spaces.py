"""The contract tests of spaces find what they are there to find."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from nasengine import testing
from nasengine.architecture import Architecture, Choice
from nasengine.supernet import MixedOp, Shared, Supernet
from nasengine.task import Shapes
from nasengine.testing import SmoothSpace, check_space

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
        now, before = torch.as_tensor(op(x)), self.before
        self.before = now
        alike = before is not None and (before.shape, before.device) == (now.shape, now.device)
        return now + before.detach() if before is not None and alike else now


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
