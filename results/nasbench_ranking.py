"""How well predictors rank NAS-Bench-101 and NAS-Bench-201 from few labels.

    python results/nasbench_ranking.py --nasbench101 TABLE --nasbench201 TABLE [--workers 2]

Five draws of labels of every size; 10,000 other architectures are unlabelled, and all that have no label are the test.
The tables are parquet or CSV files as for `nasengine rank --labels`; their scores are the columns named below. Rows
that nasbench-ranking.csv has already are kept. Writes results/nasbench-ranking.csv (one row a fit) and
results/nasbench-ranking.md.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nasengine.encoding import Graphs
from nasengine.predictor import CIFAR, PREDICTORS
from nasengine.registry import SPACES

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2, 3, 4)
UNLABELLED = 10_000
SCORES = {"nasbench101": "validation_accuracy", "nasbench201": "cifar10_validation_accuracy"}
LABELS = {"nasbench101": (100, 172, 424, 1000, 4236), "nasbench201": (78, 156, 469, 781, 1563)}
SHORT = {"nasbench101": (100, 424), "nasbench201": ()}
"""The sizes at which the steps of the assessor are told apart."""

PLAIN = {"encoding": "matrix", "metric": "equal", "ranking": 0.0, "members": 1}
STEP = {"metric": "equal", "ranking": 0.0, "members": 1}
METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "ridge": ("ridge", {}, True),
    "boosting": ("boosting", {}, True),
    "gaussian-process": ("gaussian-process", {}, True),
    "ensemble": ("ensemble", {}, True),
    "assessor, the paper's form": ("assessor", PLAIN, True),
    "the same without unlabelled": ("assessor", {**PLAIN, "reconstruction": 0.0}, False),
    "assessor": ("assessor", {}, True),
    "assessor without unlabelled": ("assessor", {"reconstruction": 0.0}, False),
}
STEPS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "paper's form + graph features": ("assessor", STEP, True),
    "+ learned metric": ("assessor", {**STEP, "metric": "learned"}, True),
    "+ loss on pairs": ("assessor", {**STEP, "metric": "learned", "ranking": 0.7}, True),
}
"""Each with the one before it; with three members the last is the assessor. PREDICTOR, settings, unlabelled or not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nasbench101", help=f"a table with {SCORES['nasbench101']}")
    parser.add_argument("--nasbench201", help=f"a table with {SCORES['nasbench201']}")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    given = parser.parse_args()
    tables = {name: path for name in LABELS if (path := getattr(given, name))}
    file = HERE / "nasbench-ranking.csv"
    rows: list[dict[str, str]] = list(csv.DictReader(file.open(encoding="utf-8"))) if file.exists() else []
    known = {(row["space"], row["method"], row["labels"], row["seed"]) for row in rows}
    jobs = [job for job in jobs_of(tables) if (job[0], job[2], str(job[3]), str(job[4])) not in known]
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        for row in pool.imap(measure, jobs):
            rows.append(row)
            write(rows, file)
    (HERE / "nasbench-ranking.md").write_text(summary(rows), encoding="utf-8")


def jobs_of(tables: dict[str, str]) -> list[tuple[str, str, str, int, int]]:
    """(space, table, method, labels, seed): the small and fast ones first."""
    return [
        (space, table, method, count, seed)
        for space, table in tables.items()
        for count in LABELS[space]
        for seed in SEEDS
        for method in (*METHODS, *(STEPS if count in SHORT[space] else ()))
    ]


def write(rows: Sequence[dict[str, str]], file: Path) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


@cache
def labelled(space: str, table: str) -> tuple[Graphs, NDArray[np.float64]]:
    """All architectures, encoded once, and their scores."""
    read = pd.read_parquet(table) if table.endswith(".parquet") else pd.read_csv(table, dtype={"adjacency": str})
    plugin = SPACES[space]()
    return plugin.encode(plugin.from_table(read), CIFAR), read[SCORES[space]].to_numpy(np.float64)


def measure(job: tuple[str, str, str, int, int]) -> dict[str, str]:
    """tau on all that have no label; the regret, in points, of the best of 20 among 10,000 of them."""
    space, table, method, count, seed = job
    graphs, scores = labelled(space, table)
    order = np.random.default_rng([seed, count]).permutation(len(scores))
    known, rest = order[:count], order[count:]
    pool, few = rest[:UNLABELLED], rest[-UNLABELLED:]
    name, settings, semi = {**METHODS, **STEPS}[method]
    predictor = PREDICTORS[name](space=space, **settings)
    if "seed" in predictor.get_params():
        predictor.set_params(seed=seed)
    predictor.fit_graphs(graphs.take(known), scores[known], graphs.take(pool) if semi else None)
    guesses = np.empty(len(scores))
    guesses[rest], _ = predictor.predict_graphs(graphs.take(rest), return_std=False)
    top = few[np.argsort(-guesses[few], kind="stable")[:20]]
    points = 100.0 if scores.max() <= 1.0 else 1.0
    return {
        "space": space,
        "method": method,
        "labels": str(count),
        "seed": str(seed),
        "tau": f"{kendalltau(guesses[rest], scores[rest]).statistic:.4f}",
        "regret": f"{points * (scores[few].max() - scores[top].max()):.3f}",
    }


def summary(rows: Sequence[dict[str, str]]) -> str:
    """One table a space: mean and spread of tau, at each number of labels, and the regret at the third."""
    parts = []
    for space in LABELS:
        counts = LABELS[space]
        lines = [
            f"| {space}: Kendall tau, n = {len(SEEDS)} | {' | '.join(map(str, counts))} | regret at {counts[2]} |",
            "|---" * (len(counts) + 2) + "|",
        ]
        for method in (*METHODS, *(STEPS if SHORT[space] else ())):
            own = [row for row in rows if row["space"] == space and row["method"] == method]
            at = {count: [row for row in own if int(row["labels"]) == count] for count in counts}
            taus = [spread([float(row["tau"]) for row in at[count]], 3) for count in counts]
            regret = spread([float(row["regret"]) for row in at[counts[2]]], 2)
            lines.append(f"| {' | '.join([method, *taus, regret])} |")
        parts.append("\n".join(lines))
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} draws; ± is the standard deviation"
    return "\n\n".join([*parts, device + "\n"])


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""


if __name__ == "__main__":
    main()
