"""What a step of a search costs in one process and in several: seconds, exchanges, bytes.

python benchmarks/data_parallel.py [--processes 1,2] [--batch-size 16] [--algo darts] [--set space.channels=16 ...]

The processes share the machine: with as many cores as processes, ideal is 1 / processes of the seconds. Bytes are what
a process hands to the others a step, before what the all-reduce makes of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nasengine.parallel import start
from nasengine.search_plan import plan_search
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.task import Dataset, Task


class Counted:
    """Calls, bytes and seconds of the exchanges between processes."""

    def __init__(self) -> None:
        self.calls, self.bytes, self.weight_bytes, self.seconds_in_exchanges = 0, 0, 0, 0.0

    def watch(self, exchange: Callable[..., Any], place: int) -> Callable[..., Any]:
        """The exchange, counted; the tensor that is handed over is its argument number `place`."""

        def watched(*arguments: Any) -> Any:
            begin = time.perf_counter()
            found = exchange(*arguments)
            tensor: Tensor = arguments[place]
            self.calls += 1
            self.bytes += tensor.nbytes
            self.weight_bytes += tensor.nbytes if tensor.numel() > 10_000 else 0
            self.seconds_in_exchanges += time.perf_counter() - begin
            return found

        return watched


def random_task(side: int) -> Task:
    """Random colour images in 10 classes."""
    images = torch.randint(256, (1024, 3, side, side), dtype=torch.uint8, generator=generator(0))
    targets = torch.arange(1024) % 10
    return Task(
        dataset=Dataset(
            name="random",
            train_inputs=images,
            train_targets=targets,
            test_inputs=images[:10],
            test_targets=targets[:10],
            classes=tuple("0123456789"),
        )
    )


def measured(rank: int, world: int, store: str, arguments: argparse.Namespace) -> None:
    """One of the processes; the first writes what it found beside the store."""
    torch.set_num_threads(1)
    if world > 1:
        wait = timedelta(minutes=5)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=wait)
    ranks, counted = start(), Counted()
    dist.all_reduce, dist.all_gather = counted.watch(dist.all_reduce, 0), counted.watch(dist.all_gather, 1)
    settings = [f"search.batch_size={arguments.batch_size}", "search.device=cpu", *arguments.set]
    plan = plan_search(space="darts", algorithm=arguments.algo, task=random_task(arguments.side), settings=settings)
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, ranks=ranks)
    job.step(0)
    seconds = []
    counted.calls = counted.bytes = counted.weight_bytes = 0
    counted.seconds_in_exchanges = 0.0
    for step in range(1, arguments.steps + 1):
        begin = time.perf_counter()
        job.step(step)
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        weights = sum(p.nbytes for p in job.algorithm.supernet(job.state).parameters())
        found = {"seconds": statistics.median(seconds), "weights": weights, "steps": arguments.steps, **vars(counted)}
        Path(f"{store}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    """Measures and prints a line for every number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--algo", default="darts")
    parser.add_argument("--set", action="append", default=[], help="a setting, as in 'nasengine search'")
    arguments = parser.parse_args()
    print("processes  s/step  exchanges/step  MB/step  of it gradients  share of time in exchanges")
    for world in map(int, arguments.processes.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            store = f"{directory}/store"
            torch.multiprocessing.spawn(measured, (world, store, arguments), nprocs=world)
            found = json.loads(Path(f"{store}.json").read_text())
        steps = found["steps"]
        megabytes, gradients = (found[name] / steps / 1e6 for name in ("bytes", "weight_bytes"))
        share = found["seconds_in_exchanges"] / steps / found["seconds"]
        print(
            f"{world:9}  {found['seconds']:6.2f}  {found['calls'] / steps:14,.0f}  {megabytes:7.2f}  {gradients:15.2f}"
            f"  {share:26.0%}"
        )
    print(f"weights: {found['weights'] / 1e6:.2f} MB; one thread each, torch {torch.__version__}")


if __name__ == "__main__":
    main()
