"""How long networks take, on machines that others use as well."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

Runner = Callable[[int], float]
"""Runs a network so many times in a row, and gives the seconds that this took in all."""

BLOCK: Final = 0.02  # seconds, far above what a clock can tell
_MOST_WARM_UP: Final = 2.0  # seconds
_STEADY: Final = 0.05
_AGREED: Final = 0.03
_LEAST_ROUNDS: Final = 8


@dataclass(frozen=True)
class Timing:
    """Seconds a call.

    Attributes:
        median: of the faster half of the blocks.
        low, high: the quartiles of all blocks.
        blocks: how many there were.
    """

    median: float
    low: float
    high: float
    blocks: int

    @classmethod
    def of(cls, blocks: Sequence[float]) -> Timing:
        """The timing of blocks, seconds a call each."""
        low, high = np.quantile(blocks, (0.25, 0.75))
        return cls(fast(blocks), float(low), float(high), len(blocks))


def fast(blocks: Sequence[float]) -> float:
    """The median of the faster half."""
    return statistics.median(sorted(blocks)[: (len(blocks) + 1) // 2])


def measure(
    runners: Sequence[Runner],
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], object] = lambda done, total: None,
    block: float = BLOCK,
    patience: float = 4.0,
) -> list[Timing]:
    """Times networks so that the medians repeat although other programs take turns with them.

    Each is warmed up until a block is no longer faster than the ones before. Then all of them run in turns, a block of
    some 20 ms each a round, so that a busy phase of the machine meets all of them and not one. What other programs do
    only ever adds to a block: the median of its faster half is what the network takes while they leave it alone, and,
    unlike the minimum, does not hang on one lucky block. The rounds go on for `seconds` a network, and up to `patience`
    times as long while the first and the second half of the rounds do not agree within 3 % on every network.

    Args:
        runners: of the networks.
        seconds: to spend on each, at least.
        clock: what tells the time, in seconds.
        progress: is called with the share that is done as (done, all).
        block: seconds that a block should last.
        patience: how much longer it may take, at least 1.
    """
    counts = [_warmed_up(runner, block) for runner in runners]
    blocks: list[list[float]] = [[] for _ in runners]
    start, least = clock(), seconds * len(runners)
    while True:
        for runner, count, found in zip(runners, counts, blocks, strict=True):
            found.append(runner(count) / count)
        spent, rounds = clock() - start, len(blocks[0])
        progress(min(int(1000 * spent), int(1000 * least)), int(1000 * least))
        enough = spent >= least and rounds >= _LEAST_ROUNDS
        if enough and (spent >= patience * least or all(map(_agrees, blocks))):
            return [Timing.of(found) for found in blocks]


def _warmed_up(runner: Runner, block: float) -> int:
    """Runs until it is steady, and gives how many calls make a block."""
    count, best, spent = 1, runner(1), 0.0
    while spent < _MOST_WARM_UP:
        taken = runner(count) / count
        spent += taken * count
        if spent > block and taken > (1 - _STEADY) * best:
            break
        best = min(best, taken)
        count = max(1, min(2 * count, round(block / max(best, 1e-9))))
    return max(1, round(block / max(min(best, taken), 1e-9)))


def _agrees(blocks: Sequence[float]) -> bool:
    half = len(blocks) // 2
    one, other = fast(blocks[:half]), fast(blocks[half:])
    return abs(one - other) <= _AGREED * min(one, other)
