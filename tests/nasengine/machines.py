"""A machine for tests on which pieces and networks take what a table says, so that nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nasengine.architecture import Architecture
from nasengine.outline import Outline, Piece
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from nasengine.timing import Timing


def no_progress(done: int, total: int) -> None:
    del done, total


def exactly(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, seconds, 10)


class FakeMachine:
    """A piece takes a millisecond for every 100 characters of its name; a network what `latency` says."""

    def __init__(self, latency: Callable[[nn.Module], float], name: str = "fake") -> None:
        self.latency, self.name = latency, name
        self.timed: list[str] = []
        self.measured = 0

    def machine(self) -> dict[str, Any]:
        return {"device": self.name, "runtime": "torch", "versions": {}, "threads": 1, "batch_size": 1}

    def networks(
        self,
        networks: Sequence[nn.Module],
        seconds: float = 1.0,
        progress: Callable[[int, int], object] = no_progress,
    ) -> list[Timing]:
        self.measured += len(networks)
        return [exactly(self.latency(network)) for network in networks]

    def pieces(self, pieces: Sequence[Piece]) -> list[float]:
        self.timed += [piece.name for piece in pieces]
        return [piece_seconds(piece.name) for piece in pieces]


def piece_seconds(name: str) -> float:
    return 1e-5 * len(name)


def sum_of_pieces(network: nn.Module, shapes: Shapes) -> float:
    """What the pieces of a network take on the fake machine; the network is not usable afterwards."""
    outline = Outline(SizedSpace(), shapes, network=network.to("meta"))
    pieces = outline(Architecture({})).pieces
    return sum(count * piece_seconds(outline.pieces[text].name) for text, count in pieces.items())
