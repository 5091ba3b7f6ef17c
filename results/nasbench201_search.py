"""Searches of NAS-Bench-201 on a small CIFAR-10, judged by the table of real accuracies while they go on.

    python results/nasbench201_search.py CIFAR10_DIRECTORY TABLE [--runs DIRECTORY] [--workers 2]

Three seeds of every method, epochs chosen for about equal seconds. Random search trains random cells for one epoch
each and takes the best by validation accuracy. Finished runs are not repeated. Writes results/nasbench201-search.csv
(one row a run and epoch) and results/nasbench201-search.md.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

import nasengine
from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.evaluation import evaluating, score
from nasengine.run import read_record
from nasengine.seeding import generator
from nasengine.space import Benchmark
from nasengine.task import DataSettings, Task, load_task
from search_spaces.nasbench201 import NASBench201

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SPACE = NASBench201(channels=8, cells=1)
DATA = DataSettings(train_size=5000, image_size=16)
SEARCH = ["search.batch_size=64", "search.eval_size=1000"]
QUICK = ["algo.alphas.lr=0.01"]
METHODS: dict[str, tuple[str, list[str], int] | None] = {
    "darts, first order": ("darts", QUICK, 20),
    "darts, second order": ("darts", [*QUICK, "algo.order=second"], 9),
    "rarts, exact sweep": ("rarts", QUICK, 12),
    "darts, first order, alphas at 0.0003": ("darts", [], 20),
    "random search": None,
}
CELLS = 32
"""Cells that random search trains, one epoch each."""


@cache
def task_of(cifar10: str) -> Task:
    return load_task(f"cifar10:{cifar10}", DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cifar10", help="directory with CIFAR-10, as for --data cifar10:PATH")
    parser.add_argument("table", help="the table of accuracies, as for --benchmark")
    parser.add_argument("--runs", type=Path, default=HERE / "runs" / "nasbench201", help="where the runs go")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    given = parser.parse_args()
    jobs = [(method, seed, given.runs, given.cifar10, given.table) for seed in SEEDS for method in METHODS]
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        rows = [row for found in pool.starmap(measure, jobs, chunksize=1) for row in found]
    with (HERE / "nasbench201-search.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "nasbench201-search.md").write_text(summary(rows), encoding="utf-8")


def measure(method: str, seed: int, runs: Path, cifar10: str, table: str) -> list[dict[str, object]]:
    """One row an epoch: the cell of then, its real accuracy, and how many of its 6 edges are skips."""
    chosen = METHODS[method]
    if chosen is None:
        return random_search(seed, task_of(cifar10), table)
    algo, settings, epochs = chosen
    out = runs / method.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    if not ((out / "run.json").exists() and read_record(out)["status"] == "finished"):
        every = [*SEARCH, *settings, f"search.epochs={epochs}", f"search.seed={seed}", f"search.benchmark={table}"]
        resume = (out / "run.json").exists()
        nasengine.search(SPACE, algo, task_of(cifar10), settings=every, out=out, resume=resume)
    with (out / "history.csv").open(encoding="utf-8", newline="") as file:
        return [
            row_of(method, seed, int(row["epoch"]), float(row["seconds"]), row["architecture"], table)
            for row in csv.DictReader(file)
        ]


def random_search(seed: int, task: Task, table: str) -> list[dict[str, object]]:
    """The best so far of random cells, each trained for one epoch of the same batches."""
    device, choices, rng = torch.device("cpu"), SPACE.choices(task.shapes), generator(seed, 0, 0, 9)
    train, valid = task.split(seed)
    batches = Batches(task, train, 64, seed=seed, stream=0, augment=task.search_augment, device=device)
    data, held = task.dataset, valid[:1000]
    best, rows, start = (-1.0, ""), [], time.perf_counter()
    for trial in range(CELLS):
        architecture = SPACE.sample(choices, rng)
        torch.manual_seed(seed)
        network = SPACE.build(architecture, task.shapes).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
        for step in range(len(batches)):
            inputs, targets = batches[step]
            loss = task.loss(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with evaluating(network):
            held_out = evaluation_batches(task, data.train_inputs[held], data.train_targets[held], 128, device)
            found = score(network, held_out, task.measure)
        best = max(best, (found, SPACE.write(architecture)))
        rows.append(row_of("random search", seed, trial + 1, time.perf_counter() - start, best[1], table))
    return rows


@cache
def lookup(table: str) -> Benchmark:
    return SPACE.benchmark(Path(table))


def row_of(method: str, seed: int, epoch: int, seconds: float, text: str, table: str) -> dict[str, object]:
    architecture: Architecture = SPACE.read(text)
    return {
        "method": method,
        "seed": seed,
        "epoch": epoch,
        "seconds": round(seconds, 1),
        "test_accuracy": lookup(table)(architecture)["cifar10_test_accuracy"],
        "skips": sum(option == "skip_connect" for option in architecture.values()),
        "nones": sum(option == "none" for option in architecture.values()),
        "cell": text,
    }


def summary(rows: list[dict[str, object]]) -> str:
    lines = [
        "| method | seconds | looked-up test accuracy, n = 3: after a third | two thirds | all | lowest | skips of 6 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        runs = [[row for row in rows if row["method"] == method and row["seed"] == seed] for seed in SEEDS]
        seconds = statistics.mean(float(str(run[-1]["seconds"])) for run in runs)
        words = [method, f"{seconds:.0f}"]
        for share in (1 / 3, 2 / 3, 1):
            found = [100 * float(str(run[round(share * len(run)) - 1]["test_accuracy"])) for run in runs]
            words.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %")
        words.append(f"{min(100 * float(str(row['test_accuracy'])) for run in runs for row in run):.2f} %")
        words.append(", ".join(str(run[-1]["skips"]) for run in runs))
        lines.append("| " + " | ".join(words) + " |")
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation"
    return "\n".join([*lines, "", device, ""])


if __name__ == "__main__":
    main()
