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

BLOCK: Final = 0.002  # seconds: far above what a clock can tell, and below the time slice of a scheduler
_MOST_WARM_UP: Final = 2.0  # seconds
_STEADY: Final = 0.05
_FLOOR: Final = 0.03
_VISITS: Final = 10
_FASTEST: Final = 5
_LEAST_ROUNDS: Final = 10
_PARTS: Final = 1000


@dataclass(frozen=True)
class Timing:
    """Seconds a call.

    Attributes:
        seconds: what the network takes while other programs leave it alone: the median of the five fastest blocks.
        low, median, high: the quartiles of all blocks, in which other programs are.
        blocks: how many there were.
    """

    seconds: float
    low: float
    median: float
    high: float
    blocks: int

    @classmethod
    def of(cls, blocks: Sequence[float]) -> Timing:
        """The timing of blocks, seconds a call each."""
        low, median, high = np.quantile(blocks, (0.25, 0.5, 0.75))
        return cls(_fast(blocks), float(low), float(median), float(high), len(blocks))


def _fast(blocks: Sequence[float]) -> float:
    return statistics.median(sorted(blocks)[:_FASTEST])


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
    some 2 ms each a round after a call that warms the caches, so that a busy phase of the machine meets all of them and
    not one. What other programs do only ever adds to a block, and blocks are shorter than the turns that programs take:
    the fastest blocks are a floor that stays, where means and medians follow the load. One lucky block does not make a
    floor: it is the median of the five fastest, and the rounds go on for `seconds` a network, and up to `patience`
    times as long until every network has been within 3 % of its floor ten times.

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
            if len(runners) > 1:
                runner(1)  # the others have emptied the caches
            found.append(runner(count) / count)
        spent, rounds = clock() - start, len(blocks[0])
        enough = spent >= least and rounds >= _LEAST_ROUNDS
        done = enough and (spent >= patience * least or all(map(_is_floor, blocks)))
        progress(_PARTS if done else min(_PARTS - 1, int(_PARTS * spent / least)), _PARTS)
        if done:
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


def _is_floor(blocks: Sequence[float]) -> bool:
    most = (1 + _FLOOR) * _fast(blocks)
    return sum(block <= most for block in blocks) >= _VISITS
