"""Seconds and memory of fitting predictors to cells of NAS-Bench-101, and of ranking many of them.

python benchmarks/rank.py [--predictor gaussian-process] [--labels TABLE] [--score validation_accuracy]

Each measurement is a process of its own. Without a table of labels the scores are made up: they rise with the
parameters of a cell, with noise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LABELS = 424
CANDIDATES = (4_000, 40_000, 400_000)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit(predictor: str, labels: int, unlabelled: int) -> tuple[float, float]:
    """Seconds of a fit, and MiB at most."""
    from nasengine.predictor import PREDICTORS
    from nasengine.task import Shapes
    from search_spaces.nasbench101 import NASBench101

    space, shapes = NASBench101(), Shapes((3, 32, 32), 10)
    cells = space.everything(shapes)
    rows = np.random.default_rng(0).permutation(len(cells))
    known, scores = cells[rows[:labels]], made_up(space.costs(cells[rows[:labels]], shapes)[0])
    pool = cells[rows[labels : labels + unlabelled]]
    model = PREDICTORS[predictor](space=space, shapes=shapes)
    start = time.perf_counter()
    model.fit(known, scores, pool if unlabelled else None)
    return time.perf_counter() - start, peak()


def rank(
    predictor: str, labels: str | None, score: str | None, count: int | None, evaluate: bool
) -> tuple[float, float, dict[str, float]]:
    """Seconds of the verb without imports, MiB at most, and seconds by stage."""
    import pandas as pd

    from nasengine.ranking import rank
    from nasengine.task import Shapes
    from search_spaces.nasbench101 import NASBench101

    space, shapes = NASBench101(), Shapes((3, 32, 32), 10)
    cells = space.everything(shapes)
    chosen = cells[np.random.default_rng(1).permutation(len(cells))[:count]] if count else None
    if labels is None:
        known = space.to_table(cells[np.random.default_rng(0).permutation(len(cells))[:LABELS]], shapes)
        table = known.assign(score=made_up(known["parameters"].to_numpy()))
    else:
        table = pd.read_parquet(labels).sample(LABELS, random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        candidates = None
        if chosen is not None:
            candidates = Path(folder) / "candidates.parquet"
            space.to_table(chosen, shapes)[["hash"]].to_parquet(candidates)
        stages: dict[str, list[float]] = {}

        def told(stage: str, done: int, total: int) -> None:
            stages.setdefault(stage, []).append(time.perf_counter())

        start = time.perf_counter()
        rank(
            space,
            table,
            predictor=predictor,
            score=score if labels else "score",
            candidates=candidates,
            settings=[f"rank.evaluate={str(evaluate).lower()}"],
            out=Path(folder) / "out",
            progress=told,
        )
        seconds = time.perf_counter() - start
    return seconds, peak(), {stage: times[-1] - times[0] for stage, times in stages.items()}


def made_up(parameters: NDArray[np.int64]) -> NDArray[np.float64]:
    noise = np.random.default_rng(2).normal(size=len(parameters))
    return 0.9 + 0.01 * np.log(parameters / 1e6) + 0.005 * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", default="gaussian-process")
    parser.add_argument("--labels", help="a parquet table of labelled cells")
    parser.add_argument("--score", default="validation_accuracy")
    given = parser.parse_args()
    spawned = multiprocessing.get_context("spawn").Pool
    for labels, unlabelled in ((100, 0), (LABELS, 10_000), (1_000, 10_000)):
        with spawned(1) as pool:
            seconds, memory = pool.apply(fit, (given.predictor, labels, unlabelled))
        print(f"fit to {labels:,} labels + {unlabelled:,} unlabelled: {seconds:.1f} s, {memory:,.0f} MiB", flush=True)
    for count in (*CANDIDATES, None):
        arguments = (given.predictor, given.labels, given.score, count, count is None)
        with spawned(1) as pool:
            seconds, memory, stages = pool.apply(rank, arguments)
        parts = ", ".join(f"{stage} {taken:.1f}" for stage, taken in stages.items())
        what = f"{count:,} candidates" if count else "all cells, judged by 20 fits"
        print(f"rank {what} by {LABELS} labels: {seconds:.1f} s ({parts}), {memory:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
