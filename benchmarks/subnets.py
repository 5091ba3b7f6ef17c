"""Subnets judged a minute, inside the supernet and by extracted networks, in turns in one run.

    python benchmarks/subnets.py [--spaces ofa,transformer] [--task digits] [--subnets 20] [--threads 1]

What `Judge.subnet` does for evolution, random search and the ends of epochs: inherited weights, recalibrated
statistics, the measure over half of the training set. Weights are random; so are the subnets, the same on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from nasengine.allocator import keep_pages
from nasengine.architecture import Architecture
from nasengine.judging import Judge
from nasengine.search_plan import plan_search
from nasengine.seeding import generator
from nasengine.supernet import Supernet

_RECALIBRATION = 4


def prepared(space: str, task: str) -> tuple[Judge, Supernet]:
    """A judge, and a supernet of a space in the memory format of a search."""
    plan = plan_search(space=space, algorithm="deps", task=task, settings=["search.device=cpu"])
    supernet: Supernet = plan.space.supernet(plan.task.shapes, plan.task.loss).to(
        memory_format=torch.channels_last  # type: ignore[call-overload]
    )
    order = torch.randperm(len(plan.task.dataset.train_inputs), generator=generator(0))
    train, valid = order.chunk(2)
    return Judge(plan.task, plan.settings, train, valid, _RECALIBRATION, torch.device("cpu")), supernet


def seconds(judged: Callable[[Supernet, Architecture], float], supernet: Supernet, architecture: Architecture) -> float:
    """Of one subnet."""
    start = time.perf_counter()
    judged(supernet, architecture)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", default="ofa,transformer")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_pages()
    for space in arguments.spaces.split(","):
        judge, supernet = prepared(space, arguments.task)
        rng = generator(1)
        drawn = [supernet.space.sample(supernet.choices, rng) for _ in range(arguments.subnets)]
        same = sum(judge.subnet(supernet, a) == judge.plain(supernet, a) for a in drawn[:8])
        pairs = [(seconds(judge.subnet, supernet, a), seconds(judge.plain, supernet, a)) for a in drawn]
        inside, plain = (60 / statistics.mean(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(other / one for one, other in pairs)
        print(
            f"{space:12s} {inside:7,.0f} subnets a minute inside the supernet, {plain:7,.0f} extracted, "
            f"{ratio:.2f} times as fast; {same} of {min(8, len(drawn))} scores are equal"
        )


if __name__ == "__main__":
    main()
