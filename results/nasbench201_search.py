"""Searches of NAS-Bench-201 on a small CIFAR-10, judged by the table of real accuracies while they go on.

    python results/nasbench201_search.py CIFAR10_DIRECTORY TABLE [--runs DIRECTORY] [--workers 2]

Three seeds of every method, epochs chosen for about equal seconds. Random search trains random cells for one epoch
each and takes the best by validation accuracy. Finished runs are not repeated. Writes results/nasbench201-search.csv
(one row for every epoch that changed the cell, and the last) and results/nasbench201-search.md.
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
from torch import nn

import nasengine
from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.evaluation import evaluating, score
from nasengine.run_directory import read_record
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
    "darts, first order": ("darts", QUICK, 90),
    "darts, first order, weight decay 0.0081": ("darts", [*QUICK, "algo.weights.weight_decay=0.0081"], 90),
    "darts, first order, alphas at 0.0003": ("darts", [], 90),
    "darts, second order": ("darts", [*QUICK, "algo.order=second"], 38),
    "rarts, exact sweep": ("rarts", QUICK, 51),
    "random search": None,
}
CELLS, CELLS_A_ROW = 460, 4
"""Cells that random search trains, one epoch each; after every fourth the best so far is looked up."""


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
    """One row for every change of the cell and the last epoch: its real accuracy, its skips and nones on 6 edges."""
    out = runs / method.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    task, history, chosen = task_of(cifar10), out / "history.csv", METHODS[method]
    if chosen is None:
        if not history.exists():
            random_search(seed, task, history)
    elif not ((out / "run.json").exists() and read_record(out)["status"] == "finished"):
        algo, settings, epochs = chosen
        every = [*SEARCH, *settings, f"search.epochs={epochs}", f"search.seed={seed}", f"search.benchmark={table}"]
        nasengine.search(SPACE, algo, task, settings=every, out=out, resume=(out / "run.json").exists())
    with history.open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    before = [None, *(row["architecture"] for row in epochs)]
    return [
        row_of(method, seed, int(row["epoch"]), float(row["seconds"]), row["architecture"], table)
        for row, old in zip(epochs, before, strict=False)
        if row["architecture"] != old or row is epochs[-1]
    ]


def random_search(seed: int, task: Task, history: Path) -> None:
    """Writes the best so far of random cells, each trained for one epoch of the same batches."""
    choices, rng = SPACE.choices(task.shapes), generator(seed, 0, 0, 9)
    batches = Batches(
        task, task.split(seed)[0], 64, seed=seed, stream=0, augment=task.search_augment, device=torch.device("cpu")
    )
    best, lines, start = (-1.0, ""), ["epoch,seconds,architecture"], time.perf_counter()
    for trial in range(1, CELLS + 1):
        architecture = SPACE.sample(choices, rng)
        torch.manual_seed(seed)
        network = SPACE.build(architecture, task.shapes).to(memory_format=torch.channels_last)
        best = max(best, (validated(network, task, batches, seed), SPACE.write(architecture)))
        if trial % CELLS_A_ROW == 0:
            lines.append(f"{trial},{time.perf_counter() - start:.1f},{best[1]}")
    history.parent.mkdir(parents=True, exist_ok=True)
    history.write_text("\n".join([*lines, ""]), encoding="utf-8")


def validated(network: nn.Module, task: Task, batches: Batches, seed: int) -> float:
    """Accuracy on the first 1,000 validation images after an epoch of training."""
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    for step in range(len(batches)):
        inputs, targets = batches[step]
        loss = task.loss(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data, held = task.dataset, task.split(seed)[1][:1000]
    with evaluating(network):
        held_out = evaluation_batches(task, data.train_inputs[held], data.train_targets[held], 128, torch.device("cpu"))
        return score(network, held_out, task.measure)


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


def at(run: list[dict[str, object]], share: float) -> dict[str, object]:
    """The row that holds after a share of the epochs."""
    last = share * int(str(run[-1]["epoch"]))
    return [row for row in run if int(str(row["epoch"])) <= last + 1e-9][-1]


def summary(rows: list[dict[str, object]]) -> str:
    lines = [
        "| method | epochs, cells | seconds | test accuracy after 1/6, n = 3 | after 1/2 | end | skips of 6 | nones |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        runs = [[row for row in rows if row["method"] == method and int(str(row["seed"])) == seed] for seed in SEEDS]
        seconds = statistics.mean(float(str(run[-1]["seconds"])) for run in runs)
        words = [method, str(runs[0][-1]["epoch"]), f"{seconds:.0f}"]
        for share in (1 / 6, 1 / 2, 1):
            found = [100 * float(str(at(run, share)["test_accuracy"])) for run in runs]
            words.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %")
        words += [", ".join(str(run[-1][kind]) for run in runs) for kind in ("skips", "nones")]
        lines.append("| " + " | ".join(words) + " |")
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation"
    return "\n".join([*lines, "", device, ""])


if __name__ == "__main__":
    main()
