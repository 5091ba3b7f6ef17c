"""Images per second of the training data path: gather, crop, flip, normalise, cutout.

python benchmarks/data_path.py [--data cifar10:PATH] [--batch-size 64] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

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


def main() -> None:
    """Measures and prints the median of several repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data spec such as cifar10:PATH (default: random images)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    start = time.perf_counter()
    task = load_task(arguments.data) if arguments.data else _synthetic()
    loaded = time.perf_counter() - start
    device, indices = torch.device(arguments.device), torch.arange(len(task.dataset.train_targets))
    batches = Batches(task, indices, arguments.batch_size, seed=0, stream=0, augment=_AUGMENT, device=device)
    _rate(batches, 0, 10, arguments.batch_size, device)
    steps = max(1, 6400 // arguments.batch_size)
    rates = [
        _rate(batches, steps * repetition, steps, arguments.batch_size, device)
        for repetition in range(arguments.repetitions)
    ]
    print(f"{task.name}: loaded in {loaded:.1f} s; crop 4, flip, cutout 16, batches of {arguments.batch_size}")
    print(f"{statistics.median(rates):,.0f} images/s (median of {len(rates)}; {min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
