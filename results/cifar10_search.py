"""Search methods on a small CIFAR-10, three seeds each: what they cost and what the networks they find are worth.

    python results/cifar10_search.py CIFAR10_DIRECTORY [--runs DIRECTORY] [--workers 2]

Every search and training is a `nasengine` command, printed before it starts, with one thread a process; finished runs
are not repeated. Writes results/cifar10-search.csv (one row a run) and results/cifar10-search.md (mean and spread).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nasengine.registry import SPACES
from nasengine.seeding import generator
from nasengine.task import Shapes

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
DATA = ["--set", "data.train_size=5000", "--set", "data.image_size=16"]
SMALL = ["--set", "space.channels=8"]
SEARCH = ["--epochs", "3", "--set", "space.layers=3", "--set", "algo.alphas.lr=0.01", *SMALL, *DATA]
TRAIN = ["--epochs", "12", "--set", "space.layers=5", "--set", "train.drop_path=0.1", *SMALL, *DATA]
METHODS = {
    "darts, first order": ("darts", "order=first", 2),
    "darts, second order": ("darts", "order=second", 5),
    "rarts, exact sweep": ("rarts", "sweep=exact", 4),
    "rarts, stale sweep": ("rarts", "sweep=stale", 2),
    "random": None,
}
COLUMNS = ("method", "seed", "passes_per_step", "search_seconds", "seconds_per_step", "derived_validation_accuracy")
COLUMNS += ("test_accuracy", "parameters", "multiply_adds", "skips_normal", "train_seconds", "genotype")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cifar10", help="directory with CIFAR-10, as for --data cifar10:PATH")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="where the run directories go")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    arguments = parser.parse_args()
    jobs = [(method, seed) for seed in SEEDS for method in METHODS]
    with ThreadPoolExecutor(arguments.workers) as pool:
        rows = list(pool.map(lambda job: measure(*job, arguments.runs, f"cifar10:{arguments.cifar10}"), jobs))
    rows.sort(key=lambda row: (list(METHODS).index(str(row["method"])), row["seed"]))
    with (HERE / "cifar10-search.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "cifar10-search.md").write_text(summary(rows), encoding="utf-8")


def measure(method: str, seed: int, runs: Path, data: str) -> dict[str, object]:
    """One search (or random draw) and one training; a row of the table."""
    where = runs / method.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    common = ["--data", data, "--seed", str(seed)]
    chosen, found = METHODS[method], {}
    if chosen is None:
        file = where / "architecture.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        space = SPACES["darts"]()
        choices = space.choices(Shapes((3, 16, 16), 10))
        file.write_text(str(space.sample(choices, generator(seed, 0, 0, 9))), encoding="utf-8")
        source = ["--architecture", str(file), "--out", str(where / "final")]
    else:
        algo, setting, _ = chosen
        run("search", ["--algo", algo, "--set", f"algo.{setting}", *SEARCH, *common], where)
        found = {**record_of(where)["result"], "pace": fastest_epoch(where)}
        source = [str(where), "--out", str(where / "final")]
    run("train", [*source, *TRAIN, *common], where / "final")
    final = record_of(where / "final")["result"]
    return {
        "method": method,
        "seed": seed,
        "passes_per_step": chosen[2] if chosen else 0,
        "search_seconds": found.get("seconds", 0),
        "seconds_per_step": found.get("pace", 0),
        "derived_validation_accuracy": round(found["derived_accuracy"], 4) if found else "",
        "test_accuracy": final["test_accuracy"],
        "parameters": final["parameters"],
        "multiply_adds": final["multiply_adds"],
        "skips_normal": SPACES["darts"]().indicators(SPACES["darts"]().read(final["genotype"]))["skips_normal"],
        "train_seconds": final["seconds"],
        "genotype": final["genotype"],
    }


def run(verb: str, arguments: list[str], out: Path) -> None:
    """Runs a verb to its end in `out`, going on with what is there."""
    record = out / "run.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished":
        return
    place = [] if "--out" in arguments else ["--out", str(out)]
    words = [verb, *arguments, *place, *(["--resume"] if record.exists() else [])]
    print("nasengine", shlex.join(words), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.log").open("ab") as log:
        subprocess.run([sys.executable, "-m", "nasengine", *words], env=environment, stdout=log, stderr=log, check=True)


def record_of(path: Path) -> dict[str, Any]:
    """The run.json of a run directory."""
    return dict(json.loads((path / "run.json").read_text(encoding="utf-8")))


def fastest_epoch(path: Path) -> float:
    """Seconds a step in the fastest epoch, which other work on the machine disturbs least."""
    with (path / "history.csv").open(encoding="utf-8", newline="") as file:
        ends = [0.0, *(float(row["seconds_in_steps"]) for row in csv.DictReader(file))]
    steps = record_of(path)["step"] / (len(ends) - 1)
    return round(min(after - before for before, after in pairwise(ends)) / steps, 3)


def summary(rows: list[dict[str, object]]) -> str:
    lines = [
        "| method | passes a step | seconds a step | search seconds | test accuracy, n = 3 | parameters | skips of 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        words = [method, str(mine[0]["passes_per_step"])]
        for name, form in (("seconds_per_step", "{:.2f}"), ("search_seconds", "{:.0f}")):
            words.append(form.format(statistics.mean(float(str(row[name])) for row in mine)))
        accuracies = [100 * float(str(row["test_accuracy"])) for row in mine]
        words.append(f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} %")
        words.append(f"{statistics.mean(int(str(row['parameters'])) for row in mine):,.0f}")
        words.append(", ".join(f"{float(str(row['skips_normal'])):.0f}" for row in mine))
        lines.append("| " + " | ".join(words) + " |")
    device = f"torch {torch.__version__}, CPU, one thread a process, {len(SEEDS)} seeds; ± is the standard deviation"
    return "\n".join([*lines, "", device, ""])


if __name__ == "__main__":
    main()
