"""Training batches: shuffled, augmented and normalised, and the plain ones of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import DataError, SettingError
from nasengine.seeding import generator
from nasengine.task import Augment, Batch, Task

# The last number of a generator's key says what is drawn: equal seeds and steps never share their numbers.
_PERMUTATION, _AUGMENTATION = 102, 103


class Batches:
    """The endless sequence of training batches on a device, each a pure function of (seed, stream, step).

    Every epoch of `len(self)` steps is a new permutation of `indices`, less the last partial batch. Image batches are
    float32 in channels-last memory format, tokens stay int64. The random numbers are drawn on the CPU: every device
    gets the same ones.
    """

    def __init__(
        self,
        task: Task,
        indices: Tensor,
        batch_size: int,
        *,
        seed: int,
        stream: int,
        augment: Augment,
        device: torch.device,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """Takes the training examples at `indices` (N,) int64; streams with different numbers are independent.

        Of `shards` equal parts of every batch, in its order, only the one with the number `shard` is made.

        Raises:
            SettingError: the batch size is not positive or no multiple of `shards`, or the augmentation does not fit
                the data.
            DataError: there are fewer examples than one batch needs.
        """
        if batch_size < 1:
            raise SettingError(f"--batch-size must be 1 or more, not {batch_size}.")
        if batch_size % shards:
            raise SettingError(
                f"--batch-size must be a multiple of the {shards} processes, but is {batch_size}; choose "
                f"{max(1, batch_size // shards) * shards}, say."
            )
        if len(indices) < batch_size:
            raise DataError(
                f"A batch of {batch_size} needs at least as many training examples, but this part of {task.name} has "
                f"{len(indices)}; choose a smaller --batch-size."
            )
        augment.check(task.dataset)
        self._inputs = task.dataset.train_inputs.to(device)
        self._targets = task.dataset.train_targets.to(device)
        self._mean, self._std = (moment.to(device) for moment in task.normalisation)
        self._indices, self._batch_size, self._augment = indices.cpu(), batch_size, augment
        self._seed, self._stream, self._device = seed, stream, device
        self._part = slice(shard * batch_size // shards, (shard + 1) * batch_size // shards)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self._indices) // self._batch_size

    def __getitem__(self, step: int) -> Batch:
        """The batch of a global step, 0 or more, counted over all epochs, or its part."""
        if step < 0:
            raise IndexError(f"A step must be 0 or more, not {step}.")
        epoch, position = divmod(step, len(self))
        chosen = _sent(self._permutation(epoch)[position * self._batch_size :][self._part], self._device)
        inputs = self._inputs[chosen]
        if inputs.dtype == torch.uint8:
            rng = generator(self._seed, self._stream, step, _AUGMENTATION)
            changes = _drawn(self._batch_size, inputs.shape, self._augment, rng)
            changes = _Changes(*(drawn[self._part] for drawn in changes))
            inputs = _augmented(inputs, self._augment, self._mean, self._std, changes)
        else:
            inputs = _normalised(inputs, self._mean, self._std)
        return Batch(inputs, self._targets[chosen])

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            rng = generator(self._seed, self._stream, epoch, _PERMUTATION)
            self._order = epoch, self._indices[torch.randperm(len(self._indices), generator=rng)]
        return self._order[1]


def evaluation_batches(
    task: Task, inputs: Tensor, targets: Tensor, batch_size: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of all `inputs` (as the data set stores them) in order, not augmented; the last one may be smaller."""
    mean, std = (moment.to(device) for moment in task.normalisation)
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        yield Batch(_normalised(inputs[part].to(device), mean, std), targets[part].to(device))


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device; a GPU is not waited for."""
    tensor = tensor.pin_memory() if device.type == "cuda" else tensor
    return tensor.to(device, non_blocking=device.type != "mps")  # there memory that is not pinned may change meanwhile


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    return values.view(1, -1, *[1] * (ndim - 2))


def _normalised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    if inputs.dtype == torch.int64:
        return inputs.clone()
    mean, std = _per_channel(mean, inputs.ndim), _per_channel(std, inputs.ndim)
    standard = inputs.to(torch.float32, copy=True).sub_(mean).div_(std)
    return standard.contiguous(memory_format=torch.channels_last) if inputs.dtype == torch.uint8 else standard


class _Changes(NamedTuple):
    """What is drawn for each image, (B,): the corner of its window, whether it is mirrored, its square's centre."""

    tops: Tensor
    lefts: Tensor
    flips: Tensor
    rows: Tensor
    columns: Tensor


def _drawn(count: int, shape: torch.Size, augment: Augment, rng: torch.Generator) -> _Changes:
    """The changes of `count` images of a batch of `shape` (B, C, H, W)."""
    tops, lefts = torch.randint(2 * augment.crop + 1, (2, count), generator=rng)
    flips = torch.rand(count, generator=rng) < (0.5 if augment.flip else 0.0)
    rows, columns = (torch.randint(length, (count,), generator=rng) for length in shape[2:])
    return _Changes(tops, lefts, flips, rows, columns)


def _augmented(images: Tensor, augment: Augment, mean: Tensor, std: Tensor, changes: _Changes) -> Tensor:
    """Normalised, cropped, flipped and cut-out copies of `images` (B, C, H, W) uint8."""
    height, width = images.shape[2:]
    if augment.crop or augment.flip:
        images = _shifted(images, augment.crop, changes.tops, changes.lefts, changes.flips)
    result = _normalised(images, mean, std)
    if augment.cutout:
        rows, columns = _near(changes.rows, height, augment.cutout), _near(changes.columns, width, augment.cutout)
        square = rows[:, None, :, None] & columns[:, None, None, :]
        result.masked_fill_(_sent(square, result.device), 0.0)
    return result


def _shifted(images: Tensor, padding: int, tops: Tensor, lefts: Tensor, flips: Tensor) -> Tensor:
    """The windows at (tops, lefts) of the zero-padded images, mirrored where `flips`, in one gather."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    along = torch.arange(width)
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.where(flips[:, None], width - 1 - along, along)
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
    return padded.flatten(2).gather(2, _sent(pixels, images.device).expand(-1, channels, -1)).view_as(images)


def _near(centres: Tensor, length: int, side: int) -> Tensor:
    """(B, length) bool: positions within the `side` long interval around each centre."""
    start = (centres - side // 2)[:, None]
    along = torch.arange(length)
    return (along >= start) & (along < start + side)
