"""With a predictor and without, at equal seconds: cells of NAS-Bench-201 on a small CIFAR-10.

    python results/cifar10_predictor.py CIFAR10_DIRECTORY TABLE [--runs DIRECTORY] [--workers 2]

Three seeds. All ways begin with the same search and have the same seconds after it: those with a predictor label a
part of the candidates and train those that it ranks best; those without train the search's own choice and then random
ones. The winner is chosen by validation and meets the test set once. Seconds are those of the processor, so that other
work on the machine does not count. Finished ways are not repeated. Writes results/cifar10-predictor.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

import nasengine
from nasengine.architecture import Architecture
from nasengine.seeding import generator
from nasengine.task import DataSettings, Task, load_task
from nasengine.training import score_on_test
from search_spaces.nasbench201 import NASBench201

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SPACE = NASBench201(channels=8, cells=1)
DATA = DataSettings(train_size=5000, image_size=16)
SEARCH = ["search.epochs=10", "search.batch_size=64", "search.eval_size=1000", "algo.alphas.lr=0.01"]
TRAIN = ["train.epochs=20", "train.batch_size=64", "train.lr=0.1", "train.valid_portion=0.2", "train.drop_path=0"]
LABEL = ["collect.epochs=2", "collect.batch_size=64", "collect.lr=0.1"]
CANDIDATES, LABELS, SECONDS = 200, 64, 200.0
METHODS = (
    "predictor, labels by two epochs",
    "predictor, labels by inherited weights",
    "own choice, then candidates at random",
    "own choice, then random cells",
)


@cache
def task_of(cifar10: str) -> Task:
    return load_task(f"cifar10:{cifar10}", DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cifar10", help="directory with CIFAR-10, as for --data cifar10:PATH")
    parser.add_argument("table", help="the table of accuracies, as for --benchmark")
    parser.add_argument("--runs", type=Path, default=HERE / "runs" / "cifar10-predictor", help="where the runs go")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    given = parser.parse_args()
    jobs = [(seed, given.runs, given.cifar10, given.table) for seed in SEEDS]
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        rows = [row for found in pool.starmap(measure, jobs, chunksize=1) for row in found]
    with (HERE / "cifar10-predictor.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "cifar10-predictor.md").write_text(summary(rows), encoding="utf-8")


def measure(seed: int, runs: Path, cifar10: str, table: str) -> list[dict[str, object]]:
    """A row for every way."""
    task, root = task_of(cifar10), runs / f"seed-{seed}"
    record = root / "search" / "run.json"
    if not (record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"):
        shutil.rmtree(root, ignore_errors=True)
        start = time.process_time()
        nasengine.search(SPACE, "rarts", task, settings=[*SEARCH, f"search.seed={seed}"], out=root / "search")
        (root / "seconds.txt").write_text(f"{time.process_time() - start:.1f}\n", encoding="utf-8")
    rows = []
    for number, way in enumerate(METHODS):
        found = root / f"way-{number}" / "row.json"
        if not found.exists():
            shutil.rmtree(found.parent, ignore_errors=True)
            row = go(way, seed, found.parent, root / "search", task, table)
            found.write_text(json.dumps(row), encoding="utf-8")
        rows.append(json.loads(found.read_text(encoding="utf-8")))
    return rows


class Way:
    """One way from a search to a tested network: trainings until the seconds are spent."""

    def __init__(self, seed: int, out: Path, task: Task) -> None:
        self.seed, self.out, self.task, self.start = seed, out, task, time.process_time()
        self.scores: list[tuple[float, Path, Architecture]] = []

    @property
    def spent(self) -> float:
        return time.process_time() - self.start

    def train(self, architectures: Sequence[Architecture]) -> None:
        """Trains one after the other while another training fits into the seconds."""
        before, known = self.spent, set()
        for architecture in architectures:
            mean = (self.spent - before) / max(1, len(self.scores))
            if self.spent + mean > SECONDS:
                break
            if architecture not in known:
                known.add(architecture)
                path = self.out / f"training-{len(self.scores)}"
                settings = [*TRAIN, f"train.seed={self.seed}"]
                trained = nasengine.train(
                    architecture=architecture, space=SPACE, task=self.task, settings=settings, out=path
                )
                assert trained.valid_score is not None
                self.scores.append((trained.valid_score, path, architecture))


def go(way: str, seed: int, out: Path, search: Path, task: Task, table: str) -> dict[str, object]:
    under_way = Way(seed, out, task)
    ORDERS[way](under_way, search)
    seconds = under_way.spent
    valid, path, architecture = max(under_way.scores, key=lambda found: found[0])
    accuracies = SPACE.benchmark(Path(table))
    return {
        "method": way,
        "seed": seed,
        "search_seconds": float((search.parent / "seconds.txt").read_text(encoding="utf-8")),
        "seconds": round(seconds, 1),
        "trained": len(under_way.scores),
        "valid_accuracy": valid,
        "test_accuracy": score_on_test(path, task),
        "own_test_accuracy": own_test(under_way),
        "benchmark_test_accuracy": accuracies(architecture)["cifar10_test_accuracy"],
        "cell": SPACE.write(architecture),
    }


def own_test(way: Way) -> float | None:
    """Of the search's own choice, where it was trained first."""
    first = way.scores[0][1]
    return score_on_test(first, way.task) if way.out.name in ("way-2", "way-3") else None


def predicted(way: Way, search: Path, labels: list[str], inherit: bool) -> None:
    proposed = nasengine.propose(search, count=CANDIDATES, task=way.task, out=way.out / "candidates")
    keys = list(SPACE.table_columns)
    order = torch.randperm(len(proposed.candidates), generator=generator(way.seed, 1)).tolist()
    chosen = proposed.candidates.iloc[[0, *(row for row in order if row)][:LABELS]][keys]
    settings = [*labels, f"collect.seed={way.seed}"]
    nasengine.collect(
        None if inherit else SPACE,
        way.task,
        architectures=chosen,
        inherit=search if inherit else None,
        settings=settings,
        out=way.out / "labels",
    )
    ranked = nasengine.rank(
        SPACE,
        way.out / "labels",
        candidates=way.out / "candidates" / "candidates.csv",
        task=way.task.shapes,
        settings=["rank.top=all", "rank.evaluate=false", f"rank.seed={way.seed}"],
        out=way.out / "ranking",
    )
    way.train(SPACE.from_table(ranked.top))


def by_labels(way: Way, search: Path) -> None:
    predicted(way, search, LABEL, inherit=False)


def by_inherited(way: Way, search: Path) -> None:
    predicted(way, search, [], inherit=True)


def own(search: Path) -> Architecture:
    record = json.loads((search / "run.json").read_text(encoding="utf-8"))
    return Architecture.parse(record["result"]["architecture"])


def at_random(way: Way, search: Path) -> None:
    nasengine.propose(search, count=CANDIDATES, task=way.task, out=way.out / "candidates")
    table = pd.read_csv(way.out / "candidates" / "candidates.csv")
    candidates = SPACE.from_table(table)
    order = torch.randperm(len(table), generator=generator(way.seed, 1)).tolist()
    way.train([own(search), *(candidates[row] for row in order)])


def random_cells(way: Way, search: Path) -> None:
    choices, rng = SPACE.choices(way.task.shapes), generator(way.seed, 2)
    way.train([own(search), *(SPACE.sample(choices, rng) for _ in range(CANDIDATES))])


ORDERS: dict[str, Callable[[Way, Path], None]] = dict(
    zip(METHODS, (by_labels, by_inherited, at_random, random_cells), strict=True)
)


def summary(rows: Sequence[dict[str, object]]) -> str:
    lines = [
        "| method | seconds after the search | trained | test accuracy, n = 3 | of NAS-Bench-201 for the winner |",
        "|---|---|---|---|---|",
    ]
    for way in METHODS:
        mine = [row for row in rows if row["method"] == way]
        seconds = statistics.mean(float(str(row["seconds"])) for row in mine)
        trained = ", ".join(str(row["trained"]) for row in mine)
        lines.append(
            f"| {way} | {seconds:.0f} | {trained} | {spread(mine, 'test_accuracy')} | "
            f"{spread(mine, 'benchmark_test_accuracy')} |"
        )
    alone = [row for row in rows if row["method"] == METHODS[-1]]
    seconds = statistics.mean(float(str(row["search_seconds"])) for row in alone)
    lines.append(f"| own choice alone | | 1, 1, 1 | {spread(alone, 'own_test_accuracy')} | |")
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation"
    return "\n".join([*lines, "", f"{device}; the search took {seconds:.0f} s", ""])


def spread(rows: Sequence[dict[str, object]], name: str) -> str:
    found = [100 * float(str(row[name])) for row in rows]
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %"


if __name__ == "__main__":
    main()
