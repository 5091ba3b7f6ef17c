"""Three ways to train an elastic supernet on a small CIFAR-10, at equal training passes: accuracy of its subnets.

    python results/cifar10_elastic.py CIFAR10_DIRECTORY [--runs DIRECTORY] [--workers 2]

A pass is one forward and backward of one network on a batch, a forward alone a third. Four subnets are judged on the
test set with inherited weights and recalibrated batch norm, no training: smallest, two middle ones, largest. None was
chosen by it. Finished runs are not repeated. Writes results/cifar10-elastic.csv and results/cifar10-elastic.md.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

import nasengine
from nasengine.algorithms.deps import DepS
from nasengine.architecture import Architecture, Choice
from nasengine.batches import evaluation_batches
from nasengine.evaluation import evaluating, score
from nasengine.evolution import EvolutionSettings
from nasengine.run_directory import read_record
from nasengine.searching import open_search
from nasengine.task import DataSettings, Task, load_task
from search_spaces.ofa import OFA

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SPACE = OFA(shape="digits", depths=(1, 2), resolutions=())
DATA = DataSettings(train_size=5000, image_size=16, train_portion=0.9)
NO_EVOLUTION = EvolutionSettings(population=2, generations=0)
METHODS = {
    "delayed shrinking (deps)": (DepS(evolution=NO_EVOLUTION), 16),
    "progressive shrinking (once-for-all)": (
        DepS(
            shrinking="progressive",
            teacher="frozen",
            sampling="random",
            hard=1.0,
            warmup=0.3,
            ramp=0.0,
            evolution=NO_EVOLUTION,
        ),
        18,
    ),
    "sandwich rule (BigNAS)": (DepS(warmup=0.0, ramp=0.0, sort=False, evolution=NO_EVOLUTION), 10),
}
SUBNETS = ("smallest", "middle 1", "middle 2", "largest")


@cache
def task_of(cifar10: str) -> Task:
    return load_task(f"cifar10:{cifar10}", DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cifar10", help="directory with CIFAR-10, as for --data cifar10:PATH")
    parser.add_argument("--runs", type=Path, default=HERE / "runs" / "elastic", help="where the run directories go")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    given = parser.parse_args()
    jobs = [(method, seed, given.runs, given.cifar10) for seed in SEEDS for method in METHODS]
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        rows = [row for found in pool.starmap(measure, jobs, chunksize=1) for row in found]
    with (HERE / "cifar10-elastic.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "cifar10-elastic.md").write_text(summary(rows), encoding="utf-8")


def measure(method: str, seed: int, runs: Path, cifar10: str) -> list[dict[str, object]]:
    """Trains a supernet and judges four subnets; one row each."""
    algorithm, epochs = METHODS[method]
    task, out = task_of(cifar10), runs / method.partition(" (")[0].replace(" ", "-") / f"seed-{seed}"
    settings = [f"search.epochs={epochs}", f"search.seed={seed}", "search.eval_size=200", "search.batch_size=64"]
    if not ((out / "run.json").exists() and read_record(out)["status"] == "finished"):
        nasengine.search(SPACE, algorithm, task, settings=settings, out=out, resume=(out / "run.json").exists())
    record = read_record(out)
    job = open_search(out, task)
    supernet, data = algorithm.supernet(job.state), task.dataset
    rows = []
    for name, architecture in zip(SUBNETS, judged(supernet.choices), strict=True):
        network = job.judge.extracted(supernet, architecture)
        with evaluating(network):
            batches = evaluation_batches(task, data.test_inputs, data.test_targets, 500, torch.device("cpu"))
            accuracy = score(network, batches, task.measure)
        rows.append(
            {
                "method": method,
                "seed": seed,
                "epochs": epochs,
                "passes": round(passes(algorithm, epochs * job.steps_per_epoch)),
                "seconds": record["result"]["seconds_in_steps"],
                "subnet": name,
                "test_accuracy": accuracy,
                "architecture": str(architecture),
            }
        )
    return rows


def judged(choices: dict[str, Choice]) -> list[Architecture]:
    """The smallest; middle kernels and expansions at least and at full depth; the largest."""

    def at(kernel: int, expand: int, depth: int) -> Architecture:
        places = {"kernel": kernel, "expand": expand, "depth": depth}
        wanted = {label: places[label.rpartition("/")[2]] for label in choices}
        rows = {label: torch.eye(len(choice.options))[wanted[label]] for label, choice in choices.items()}
        return SPACE.derive(choices, rows)

    return [at(0, 0, 0), at(1, 1, 0), at(1, 1, 1), at(2, 2, 1)]


def passes(algorithm: DepS, steps: int) -> float:
    """Training passes of all steps: one of the full network in the warm-up, then those of the subnets."""
    warm = algorithm.warmup - (algorithm.ramp if algorithm.shrinking == "delayed" else 0.0)
    if algorithm.shrinking == "delayed":
        return steps * (max(0.0, warm) + (1 - max(0.0, warm)) * algorithm.subnets)
    return steps * (warm + (1 - warm) * ((1 + 2 + 4) / 3 + 1 / 3))


def summary(rows: list[dict[str, object]]) -> str:
    lines = [
        f"| method | epochs | passes | seconds | {' | '.join(SUBNETS)} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, (_, epochs) in METHODS.items():
        mine = [row for row in rows if row["method"] == method]
        seconds = statistics.mean(float(str(row["seconds"])) for row in mine)
        words = [method, str(epochs), f"{int(str(mine[0]['passes'])):,}", f"{seconds:.0f}"]
        for subnet in SUBNETS:
            found = [100 * float(str(row["test_accuracy"])) for row in mine if row["subnet"] == subnet]
            words.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %")
        lines.append("| " + " | ".join(words) + " |")
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation"
    return "\n".join([*lines, "", device, ""])


if __name__ == "__main__":
    main()
