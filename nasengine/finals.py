"""The final trainings of a pipeline: the best candidates from scratch, from several seeds, and the one that wins."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nasengine.architecture import Architecture
from nasengine.errors import DivergedError
from nasengine.run_directory import read_record
from nasengine.workers import Watch, Work, ended, perform

FOLDER: Final = "final"


@dataclass(frozen=True)
class Finalist:
    """The trainings of one candidate.

    Attributes:
        rank: of the candidate, from 1.
        directories: of its trainings.
        scores: of those that did not diverge, on what they held out; higher is better.
    """

    rank: int
    architecture: Architecture
    directories: tuple[Path, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the trainings, None of fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def final_works(
    root: Path, best: Sequence[Architecture], config: Mapping[str, Any], seeds: int, more: Mapping[str, Any]
) -> dict[tuple[int, int], Work]:
    """The trainings by the rank of their candidate and their number; seeds count on from that of `config`.

    Args:
        root: where their directories are.
        best: architectures, the best first.
        config: that of a training, without its architecture.
        more: further arguments of `train`.
    """
    first = int(config["train"]["seed"])
    return {
        (rank, number): Work(
            root / f"{rank}-seed-{first + number}",
            "nasengine.training:train",
            {
                "config": {
                    **config,
                    "architecture": str(architecture),
                    "train": {**config["train"], "seed": first + number},
                },
                **more,
            },
            device=str(config["train"]["device"]),
        )
        for rank, architecture in enumerate(best, start=1)
        for number in range(seeds)
    }


def train_finals(
    works: Mapping[tuple[int, int], Work], best: Sequence[Architecture], measure: str, workers: int | str, watch: Watch
) -> list[Finalist]:
    """Makes all trainings that have not ended, and gives what came of them, by rank.

    Raises:
        DivergedError: all of them diverged.
    """
    perform(list(works.values()), workers, watch)
    finals = []
    for rank, architecture in enumerate(best, start=1):
        directories = tuple(work.directory for (place, _), work in works.items() if place == rank)
        whole = [read_record(path)["result"] for path in directories if ended(path) == "finished"]
        scores = tuple(float(result[f"valid_{measure}"]) for result in whole)
        finals.append(Finalist(rank, architecture, directories, scores))
    if not any(final.scores for final in finals):
        raise DivergedError(
            f"A final training must stay finite, but all {len(works)} diverged; start a new run with a "
            "smaller train.lr."
        )
    return finals


def winner(finals: Sequence[Finalist], measure: str) -> tuple[Finalist, Path]:
    """The candidate with the best mean score, and the best of its trainings; of equal ones the better ranked."""
    best = max((final for final in finals if final.scores), key=lambda final: final.mean)

    def score(path: Path) -> float:
        return float(read_record(path)["result"][f"valid_{measure}"])

    return best, max((path for path in best.directories if ended(path) == "finished"), key=score)
