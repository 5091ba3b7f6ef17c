"""Fewer examples and images of another size: what the data settings ask of any data."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import SettingError
from nasengine.seeding import generator
from nasengine.task import Augment, Dataset, DataSettings, Task

_CHUNK = 1024
_SUBSET = 104  # the last number of a generator's key says what is drawn


def adjusted(task: Task, settings: DataSettings) -> Task:
    """`task` under other settings; its data shrink to train_size and image_size where they are not that small yet.

    Raises:
        SettingError: a setting does not fit the data.
    """
    dataset = task.dataset
    if settings.image_size is not None:
        dataset = resized(dataset, settings.image_size)
    if settings.train_size not in (None, len(dataset.train_targets)):
        dataset = fewer(dataset, settings.train_size)
    return replace(task, dataset=dataset, settings=settings)


def fewer(dataset: Dataset, size: int) -> Dataset:
    """`dataset` with `size` training examples, the same for every seed, with the classes in proportion.

    Raises:
        SettingError: there are not so many, or one a class would be more.
    """
    count, least = len(dataset.train_targets), 2 if dataset.is_regression else len(dataset.classes)
    if not least <= size <= count:
        reason = "" if dataset.is_regression else ", one a class,"
        raise SettingError(
            f"data.train_size must be from {least}{reason} to the {count} examples of {dataset.name}, but got {size}."
        )
    kept = _in_proportion(dataset.strata, size, generator(0, 0, 0, _SUBSET))
    return replace(dataset, train_inputs=dataset.train_inputs[kept], train_targets=dataset.train_targets[kept])


def _in_proportion(strata: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """`size` shuffled indices of `strata` (N,) int64: of every class its share by largest remainders, one at least."""
    order, counts = torch.randperm(len(strata), generator=rng), torch.bincount(strata)
    shares = counts.double() * size / len(strata)
    wanted = shares.floor().clamp(min=1).minimum(counts)
    while int(wanted.sum()) != size:
        short = int(wanted.sum()) < size
        gap = (shares - wanted) if short else (wanted - shares).masked_fill(wanted <= 1, -torch.inf)
        wanted[gap.argmax()] += 1 if short else -1
    classes = strata[order]
    rank = torch.empty(len(strata))
    for label in range(len(counts)):
        own = classes == label
        rank[own] = torch.arange(int(own.sum()), dtype=rank.dtype)
    return order[rank < wanted[classes]]


def resized(dataset: Dataset, size: int) -> Dataset:
    """`dataset` with square images of `size` pixels and its recommended augmentation in proportion.

    Raises:
        SettingError: the data are no images.
    """
    if not dataset.is_image:
        raise SettingError(f"data.image_size must be left out, not {size}, because {dataset.name} has no images.")
    height, width = dataset.train_inputs.shape[2:]
    if height == width == size:
        return dataset
    scale, augment = size / min(height, width), dataset.augment
    return replace(
        dataset,
        train_inputs=_resize(dataset.train_inputs, size),
        test_inputs=_resize(dataset.test_inputs, size),
        augment=Augment(crop=int(augment.crop * scale), flip=augment.flip, cutout=int(augment.cutout * scale)),
        final_cutout=int(dataset.final_cutout * scale),
    )


def _resize(images: Tensor, size: int) -> Tensor:
    result = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK].float()
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        result[start : start + _CHUNK] = part.round_().clamp_(0, 255)
    return result
