"""What the tests of data and batches share: a small data set of each kind, and the tasks made of them."""

from __future__ import annotations

import torch

from nasengine.batches import Batches
from nasengine.seeding import generator
from nasengine.task import Augment, Dataset, DataSettings, Task

CPU = torch.device("cpu")


def image_dataset(count: int = 60, classes: int = 3, side: int = 8) -> Dataset:
    rng = generator(7)
    return Dataset(
        name="toy",
        train_inputs=torch.randint(256, (count, 3, side, side + 2), dtype=torch.uint8, generator=rng),
        train_targets=torch.arange(count) % classes,
        test_inputs=torch.randint(256, (10, 3, side, side + 2), dtype=torch.uint8, generator=rng),
        test_targets=torch.arange(10) % classes,
        classes=tuple(f"c{index}" for index in range(classes)),
        augment=Augment(crop=2, flip=True),
        final_cutout=4,
    )


def float_dataset() -> Dataset:
    inputs = torch.randn(40, 5, generator=generator(8)) * 3 + 100
    inputs[:, 2] = 0.1
    return Dataset(
        name="table",
        train_inputs=inputs,
        train_targets=torch.arange(40) % 2,
        test_inputs=inputs[:6],
        test_targets=torch.arange(6) % 2,
        classes=("a", "b"),
        augment=Augment(),
        final_cutout=0,
    )


def image_task(settings: DataSettings | None = None) -> Task:
    return Task(dataset=image_dataset(), settings=settings or DataSettings())


def batches_of(
    task: Task, size: int = 8, *, seed: int = 1, stream: int = 0, augment: Augment | None = None, count: int = 60
) -> Batches:
    chosen = task.search_augment if augment is None else augment
    return Batches(task, torch.arange(count), size, seed=seed, stream=stream, augment=chosen, device=CPU)


def regression_dataset(count: int = 40) -> Dataset:
    """Rows of 3 numbers with 2 targets, which are linear in them."""
    inputs = torch.randn(count + 10, 3, generator=generator(9))
    targets = torch.stack([inputs[:, 0] - inputs[:, 1], 2 * inputs[:, 2]], dim=1)
    return Dataset(
        name="lines",
        train_inputs=inputs[:count],
        train_targets=targets[:count],
        test_inputs=inputs[count:],
        test_targets=targets[count:],
        classes=("difference", "double"),
    )


def token_dataset(count: int = 40) -> Dataset:
    """Texts of 6 tokens from 0 to 8, in 2 classes: whether the first token is more than 4."""
    inputs = torch.randint(9, (count + 10, 6), generator=generator(10))
    inputs[0], inputs[1, 0] = 8, 0
    targets = (inputs[:, 0] > 4).long()
    return Dataset(
        name="texts",
        train_inputs=inputs[:count],
        train_targets=targets[:count],
        test_inputs=inputs[count:],
        test_targets=targets[count:],
        classes=("low", "high"),
    )
