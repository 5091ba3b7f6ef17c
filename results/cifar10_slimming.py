"""Removing dimensions of a vision transformer on a small CIFAR-10: by SiDT's scores, uniformly, and at random.

    python results/cifar10_slimming.py CIFAR10_DIRECTORY [--workers 2]

For each seed one full network with its scores is trained; then 0, 20 and 40 % of all dimensions are removed in three
ways and every small network is fine-tuned for equally many epochs. Test accuracy before and after the fine-tuning; no
choice was made by it. Scores: one ranking over the network. Uniform: the same share of every layer, the smallest of it.
Random: a ranking of random numbers. Writes results/cifar10-slimming.csv and results/cifar10-slimming.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import time
from collections.abc import Mapping
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from nasengine import cost
from nasengine.algorithm import WeightSettings
from nasengine.algorithms.slimming import Slimming
from nasengine.batches import evaluation_batches
from nasengine.config import SearchSettings, TrainSettings
from nasengine.elastic import Size
from nasengine.evaluation import evaluating, score
from nasengine.gates import GateSettings, kept, sort_units
from nasengine.loop import seeded
from nasengine.penalties import Penalty, Sparsity
from nasengine.searching import TRAIN, SearchJob
from nasengine.seeding import generator
from nasengine.task import DataSettings, Task, load_task
from nasengine.training import TrainJob
from search_spaces.transformer import Transformer

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SPACE = Transformer(embedding=48, depth=3, heads=3, patch=4, options=0, fixed="depth,heads")
DATA = DataSettings(train_size=10000, image_size=16, train_portion=0.9)
EPOCHS, TUNE = 30, 5
SEARCH = Slimming(
    weights=WeightSettings(optimizer="adamw", lr=2e-3, lr_min=0.0, weight_decay=0.05),
    gates=GateSettings(sparsity=Sparsity(penalty=Penalty(weight=3e-3))),
)
FINE_TUNE = TrainSettings(
    epochs=TUNE, batch_size=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, inherit=True, device="cpu"
)
SHARES = (0.0, 0.2, 0.4)
WAYS = ("scores", "uniform", "random")


@cache
def task_of(cifar10: str) -> Task:
    return load_task(f"cifar10:{cifar10}", DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cifar10", help="directory with CIFAR-10, as for --data cifar10:PATH")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    given = parser.parse_args()
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        found = pool.starmap(measure, [(seed, given.cifar10) for seed in SEEDS], chunksize=1)
    rows = [row for part in found for row in part]
    with (HERE / "cifar10-slimming.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "cifar10-slimming.md").write_text(summary(rows), encoding="utf-8")


def measure(seed: int, cifar10: str) -> list[dict[str, object]]:
    """Trains one full network, removes and fine-tunes in every way; one row each."""
    task, start = task_of(cifar10), time.perf_counter()
    job = SearchJob(SPACE, SEARCH, task, SearchSettings(epochs=EPOCHS, batch_size=64, seed=seed, device="cpu"))
    with seeded(seed, TRAIN):
        for step in range(job.epochs * job.steps_per_epoch):
            job.step(step)
    seconds, supernet, choices = time.perf_counter() - start, SEARCH.supernet(job.state), job.state.full.choices
    scores, rng = SEARCH.scores(job.state), generator(seed, 0, 0, 9)
    noise = {size: torch.rand(size.largest, generator=rng) for size in scores}
    full = {label: torch.eye(len(choice.options))[-1] for label, choice in choices.items()}
    rows = []
    for share in SHARES:
        for way in WAYS if share else WAYS[:1]:
            weights = uniform(scores, share) if way == "uniform" else kept(noise if way == "random" else scores, share)
            architecture = SPACE.derive(choices, {**full, **weights})
            network = (sort_units(supernet, noise) if way == "random" else supernet).extract(architecture)
            before = tested(network, task)
            settings = dataclasses.replace(FINE_TUNE, seed=seed)
            tuning = TrainJob(SPACE, architecture, task, settings, network.state_dict())
            with seeded(seed, TRAIN):
                for step in range(tuning.epochs * tuning.steps_per_epoch):
                    tuning.step(step)
            rows.append(
                {
                    "removed": share,
                    "way": way if share else "none",
                    "seed": seed,
                    "parameters": cost.parameters(tuning.network),
                    "before_tuning": before,
                    "test_accuracy": tested(tuning.network, task),
                    "train_seconds": round(seconds, 1),
                    "architecture": str(architecture),
                }
            )
    return rows


def uniform(scores: Mapping[Size, Tensor], share: float) -> dict[str, Tensor]:
    """The same share of the units of every size, by label as weights of the options."""
    return {label: row for size, values in scores.items() for label, row in kept({size: values}, share).items()}


def tested(network: nn.Module, task: Task) -> float:
    data = task.dataset
    with evaluating(network):
        batches = evaluation_batches(task, data.test_inputs, data.test_targets, 500, torch.device("cpu"))
        return score(network, batches, task.measure)


def summary(rows: list[dict[str, object]]) -> str:
    lines = [
        "| removed | by | parameters | test accuracy before fine-tuning | after, n = 3 |",
        "|---|---|---|---|---|",
    ]
    for share in SHARES:
        for way in WAYS if share else ("none",):
            mine = [row for row in rows if float(str(row["removed"])) == share and row["way"] == way]
            words = [f"{100 * share:.0f} %", way]
            words.append(f"{statistics.mean(int(str(row['parameters'])) for row in mine):,.0f}")
            for name in ("before_tuning", "test_accuracy"):
                found = [100 * float(str(row[name])) for row in mine]
                words.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %")
            lines.append("| " + " | ".join(words) + " |")
    seconds = statistics.mean(float(str(row["train_seconds"])) for row in rows)
    device = (
        f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation; the "
        f"full network trained for {seconds:.0f} s"
    )
    return "\n".join([*lines, "", device, ""])


if __name__ == "__main__":
    main()
