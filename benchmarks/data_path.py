"""Images per second of the training data path (gather, crop, flip, normalise, cutout), and its share of a step.

python benchmarks/data_path.py [--data cifar10:PATH] [--batch-size 64] [--device cpu] [--threads 2] [--steps 5]

The shares are those of a first-order step of a DARTS search (16 channels, 8 cells), which needs two batches, and of a
training step of DARTS_V2 (36 channels, 20 cells), with 16 and 64 images of 3x32x32 pixels on the CPU: in one run, a
step takes turns with the making of its batches. `--steps 0` leaves them out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peers.contest import Step, final_step, search_step

from nasengine.algorithms.darts import DARTS
from nasengine.batches import Batches
from nasengine.task import Augment, Dataset, DataSettings, Task, load_task

_AUGMENT = Augment(crop=4, flip=True, cutout=16)


def _synthetic() -> Task:
    """20,000 random 3x32x32 images of 10 classes."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20_000, 3, 32, 32), dtype=torch.uint8, generator=rng)
    targets = torch.arange(20_000) % 10
    dataset = Dataset(
        name="synthetic",
        train_inputs=images,
        train_targets=targets,
        test_inputs=images[:10],
        test_targets=targets[:10],
        classes=tuple("0123456789"),
        augment=_AUGMENT,
        final_cutout=16,
    )
    return Task(dataset=dataset, settings=DataSettings())


def _rate(batches: Batches, first: int, steps: int, batch_size: int, device: torch.device) -> float:
    start = time.perf_counter()
    for step in range(first, first + steps):
        batches[step]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return steps * batch_size / (time.perf_counter() - start)


def _batches(task: Task, batch_size: int, stream: int, device: torch.device) -> Batches:
    indices = torch.arange(len(task.dataset.train_targets))
    return Batches(task, indices, batch_size, seed=0, stream=stream, augment=_AUGMENT, device=device)


def _share(task: Task, step: Step, streams: int, batch_size: int, steps: int) -> str:
    """Seconds of making the batches of a step, and of the step: medians of so many, taken in turns."""
    both = [_batches(task, batch_size, stream, torch.device("cpu")) for stream in range(streams)]
    made, taken = [], []
    for number in range(steps + 1):
        start = time.perf_counter()
        batches = [one[number] for one in both]
        between = time.perf_counter()
        step(batches[0], batches[-1])
        made.append(between - start)
        taken.append(time.perf_counter() - between)
    making, stepping = statistics.median(made[1:]), statistics.median(taken[1:])
    return f"{1e3 * making:.2f} ms to make, {1e3 * stepping:,.0f} ms a step: {100 * making / stepping:.2f} %"


def _print_shares(task: Task, steps: int) -> None:
    kinds: dict[str, tuple[Callable[[], Step], int]] = {
        "search step, first order, 2 batches": (lambda: search_step(DARTS(order="first")), 2),
        "final training step, 1 batch": (final_step, 1),
    }
    for name, (make, streams) in kinds.items():
        step = make()
        for batch_size in (16, 64):
            print(f"{name} of {batch_size}: {_share(task, step, streams, batch_size, steps)}", flush=True)


def main() -> None:
    """Measures and prints the median of several repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data spec such as cifar10:PATH (default: random images)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each kind, for the shares")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    task = load_task(arguments.data) if arguments.data else _synthetic()
    loaded = time.perf_counter() - start
    device = torch.device(arguments.device)
    batches = _batches(task, arguments.batch_size, 0, device)
    _rate(batches, 0, 10, arguments.batch_size, device)
    steps = max(1, 6400 // arguments.batch_size)
    rates = [
        _rate(batches, steps * repetition, steps, arguments.batch_size, device)
        for repetition in range(arguments.repetitions)
    ]
    print(f"{task.name}: loaded in {loaded:.1f} s; crop 4, flip, cutout 16, batches of {arguments.batch_size}")
    print(f"{statistics.median(rates):,.0f} images/s (median of {len(rates)}; {min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if arguments.steps:
        _print_shares(task, arguments.steps)


if __name__ == "__main__":
    main()
