"""What is learnt: a data set in memory, its splits, its augmented batches, its loss and its measure of success."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import DataError, SettingError
from nasengine.seeding import generator
from nasengine.settings import setting, validate

# The last number of a generator's key says what is drawn: equal seeds and steps never share their numbers.
_SPLIT, _PERMUTATION, _AUGMENTATION, _SUBSET = 101, 102, 103, 104
_CHUNK = 1024


class Batch(NamedTuple):
    """Inputs (B, *shape) float32, normalised, and targets (B,) int64."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Shapes:
    """What a network must accept (without the batch dimension) and how many classes it must tell apart."""

    input: tuple[int, ...]
    classes: int


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images: zero padding before a random crop, horizontal flips, a zeroed square.

    `crop` is the padding and `cutout` the side of the square, both in pixels; 0 is none.
    """

    crop: int = setting(0, "zero padding before a random crop", low=0)
    flip: bool = setting(False, "horizontal flips")
    cutout: int = setting(0, "side of the zeroed square", low=0)

    def __post_init__(self) -> None:
        validate(self, "augment")


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A labelled data set in memory, with the augmentation it recommends.

    Images are (N, C, H, W) uint8, other inputs (N, *shape) float32, targets (N,) int64. `augment` is meant for the
    search, `final_cutout` (pixels) for the final training.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    augment: Augment
    final_cutout: int

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            self._check_part(part, getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets"))
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            shapes = f"{tuple(self.train_inputs.shape[1:])} and {tuple(self.test_inputs.shape[1:])}"
            raise DataError(f"Training and test inputs of {self.name} must have one shape, but have {shapes}.")
        counts = torch.bincount(self.train_targets, minlength=len(self.classes)).tolist()
        if 0 in counts:
            name = self.classes[counts.index(0)]
            raise DataError(f"Every class of {self.name} must have a training example, but {name!r} has none.")

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images (uint8), which can be augmented."""
        return self.train_inputs.dtype == torch.uint8

    def _check_part(self, part: str, inputs: Tensor, targets: Tensor) -> None:
        where = f"The {part} part of {self.name}"
        if (inputs.dtype, inputs.ndim) != (torch.uint8, 4) and (inputs.dtype != torch.float32 or inputs.ndim < 2):
            came = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
            raise DataError(f"{where} must be (N, C, H, W) uint8 images or (N, ...) float32 arrays, not {came}.")
        if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1] or len(targets) == 0:
            came = f"{len(inputs)} inputs and {targets.dtype} targets of shape {tuple(targets.shape)}"
            raise DataError(f"{where} must have one int64 target for each of at least one input, but has {came}.")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(f"{where} must have targets 0 to {len(self.classes) - 1}, but has {low} to {high}.")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise DataError(f"{where} must be finite, but has NaN or infinite inputs; remove or replace them.")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What may be changed about the data; unset is what the data set recommends.

    `train_portion` of each class trains the weights in a search, the rest the architecture; sizes are in pixels.
    """

    train_portion: float = setting(0.5, "part of each class that trains the weights in a search", above=0.0, high=1.0)
    train_size: int | None = setting(None, "use only so many training examples, the classes in proportion", low=2)
    image_size: int | None = setting(None, "resize images to this many pixels", low=1)
    crop: int | None = setting(None, "pixels of zero padding before a random crop", low=0)
    flip: bool | None = setting(None, "flip training images horizontally at random")
    cutout: int | None = setting(None, "side in pixels of the zeroed square, 0 for none", low=0)

    def __post_init__(self) -> None:
        validate(self, "data")
        if self.train_portion == 1.0:
            raise SettingError(
                "data.train_portion must be less than 1, but got 1.0; the architecture needs a part too."
            )

    def override(self, recommended: Augment) -> Augment:
        """`recommended`, with whatever is set here in its place."""
        return Augment(
            crop=recommended.crop if self.crop is None else self.crop,
            flip=recommended.flip if self.flip is None else self.flip,
            cutout=recommended.cutout if self.cutout is None else self.cutout,
        )


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many rows of `logits` (B, classes) have their maximum at the target (B,), as a 0-dim int64 tensor."""
    return (logits.argmax(dim=1) == targets).sum()


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A data set, how it is split and augmented, the loss to minimise and the count of right answers."""

    dataset: Dataset
    settings: DataSettings
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    correct: Callable[[Tensor, Tensor], Tensor] = count_correct

    def __post_init__(self) -> None:
        _check_augment(self.search_augment, self.dataset)
        _check_augment(self.final_augment, self.dataset)

    @property
    def name(self) -> str:
        """The data set's name, which can name a directory."""
        return self.dataset.name

    @cached_property
    def fingerprint(self) -> str:
        """Sizes and a checksum of the data: equal for equal data."""
        data, checksum = self.dataset, 0
        for part in (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets):
            checksum = zlib.crc32(part.contiguous().numpy().data, checksum)
        return f"{len(data.train_targets)} + {len(data.test_targets)} of {self.shapes.input}, crc32 {checksum:08x}"

    @property
    def shapes(self) -> Shapes:
        """Shape of one input, and the number of classes."""
        return Shapes(tuple(self.dataset.train_inputs.shape[1:]), len(self.dataset.classes))

    @property
    def search_augment(self) -> Augment:
        """The augmentation of the training images in a search."""
        return self.settings.override(self.dataset.augment)

    @property
    def final_augment(self) -> Augment:
        """The augmentation in the final training: that of the search and the data set's cutout."""
        base = self.dataset.augment
        return self.settings.override(Augment(crop=base.crop, flip=base.flip, cutout=self.dataset.final_cutout))

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Shuffled indices of the training set for the weights and for the architecture, stratified by class.

        Raises:
            DataError: a class would be missing from either part.
        """
        targets, portion = self.dataset.train_targets, self.settings.train_portion
        parts = stratified_split(targets, portion, generator(seed, 0, 0, _SPLIT))
        counts = [torch.bincount(targets[part], minlength=self.shapes.classes).tolist() for part in parts]
        for name, train, valid in zip(self.dataset.classes, *counts, strict=True):
            if train == 0 or valid == 0:
                raise DataError(
                    f"Both parts of the training set of {self.name} must have every class, but {name!r} gets {train} "
                    f"and {valid} examples; add examples of it or change data.train_portion from {portion}."
                )
        return parts

    @cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1 where constant) of each channel, (C,) float32, over the training set.

        In the units of the stored inputs (0 to 255 for images); the channel is dimension 1 of any input.
        """
        mean, std = _channel_moments(self.dataset.train_inputs)
        constant = std <= torch.finfo(torch.float32).eps * mean.abs()
        return mean.float(), std.masked_fill(constant, 1.0).float()


def load_task(spec: str, settings: DataSettings | None = None) -> Task:
    """The task of a data spec such as "digits" or "cifar10:PATH".

    Raises:
        UnknownNameError: no scheme has that name.
        DataError: the data are missing or damaged.
        SettingError: a setting does not fit the data.
    """
    from nasengine.data import load_dataset  # the loaders import this module

    settings = settings or DataSettings()
    dataset = load_dataset(spec, settings.image_size)
    if settings.train_size is not None:
        dataset = _fewer(dataset, settings.train_size)
    return Task(dataset=dataset, settings=settings)


def stratified_split(targets: Tensor, portion: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two shuffled index tensors, the first with `portion` of each class (rounded) of `targets` (N,) int64."""
    order = torch.randperm(len(targets), generator=rng)
    shuffled = targets[order]
    counts = torch.bincount(targets)
    by_class = shuffled.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[shuffled[by_class]]
    first = rank < (counts * portion).round().long()[shuffled]
    return order[first], order[~first]


def _fewer(dataset: Dataset, size: int) -> Dataset:
    """`dataset` with `size` training examples, the same for every seed, with the classes in proportion."""
    count = len(dataset.train_targets)
    if not len(dataset.classes) <= size <= count:
        raise SettingError(
            f"data.train_size must be from {len(dataset.classes)}, one a class, to the {count} examples of "
            f"{dataset.name}, but got {size}."
        )
    kept = stratified_split(dataset.train_targets, size / count, generator(0, 0, 0, _SUBSET))[0]
    return dataclasses.replace(
        dataset, train_inputs=dataset.train_inputs[kept], train_targets=dataset.train_targets[kept]
    )


class Batches:
    """The endless sequence of training batches on a device, each a pure function of (seed, stream, step).

    Every epoch of `len(self)` steps is a new permutation of `indices`, less the last partial batch. Image batches are
    float32 in channels-last memory format. The random numbers are drawn on the CPU: every device gets the same ones.
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
    ) -> None:
        """Takes the training examples at `indices` (N,) int64; streams with different numbers are independent.

        Raises:
            SettingError: the batch size is not positive, or the augmentation does not fit the data.
            DataError: there are fewer examples than one batch needs.
        """
        if batch_size < 1:
            raise SettingError(f"--batch-size must be 1 or more, not {batch_size}.")
        if len(indices) < batch_size:
            raise DataError(
                f"A batch of {batch_size} needs at least as many training examples, but this part of {task.name} has "
                f"{len(indices)}; choose a smaller --batch-size."
            )
        _check_augment(augment, task.dataset)
        self._inputs = task.dataset.train_inputs.to(device)
        self._targets = task.dataset.train_targets.to(device)
        self._mean, self._std = (moment.to(device) for moment in task.normalisation)
        self._indices, self._batch_size, self._augment = indices.cpu(), batch_size, augment
        self._seed, self._stream, self._device = seed, stream, device
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self._indices) // self._batch_size

    def __getitem__(self, step: int) -> Batch:
        """The batch of a global step, 0 or more, counted over all epochs."""
        if step < 0:
            raise IndexError(f"A step must be 0 or more, not {step}.")
        epoch, position = divmod(step, len(self))
        chosen = self._permutation(epoch)[position * self._batch_size :][: self._batch_size].to(self._device)
        inputs = self._inputs[chosen]
        if inputs.dtype == torch.uint8:
            rng = generator(self._seed, self._stream, step, _AUGMENTATION)
            inputs = _augmented(inputs, self._augment, self._mean, self._std, rng)
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


def _check_augment(augment: Augment, dataset: Dataset) -> None:
    if not dataset.is_image:
        if augment != Augment():
            raise SettingError(f"data.crop, data.flip and data.cutout need images, which {dataset.name} has not.")
        return
    side = min(dataset.train_inputs.shape[2:])
    for name, value in (("crop", augment.crop), ("cutout", augment.cutout)):
        if value >= side:
            raise SettingError(f"data.{name} must be smaller than the images' {side} pixels, not {value}.")


def _channel_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of dimension 1 as (C,) float64, in two passes over small chunks."""
    count = inputs.numel() // inputs.shape[1]
    other = [dim for dim in range(inputs.ndim) if dim != 1]
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    starts = range(0, len(inputs), _CHUNK)
    for start in starts:
        total += inputs[start : start + _CHUNK].double().sum(other)
    mean, total = total / count, torch.zeros_like(total)
    for start in starts:
        deviation = inputs[start : start + _CHUNK].double() - _per_channel(mean, inputs.ndim)
        total += deviation.square_().sum(other)
    return mean, (total / count).sqrt()


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    return values.view(1, -1, *[1] * (ndim - 2))


def _normalised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    mean, std = _per_channel(mean, inputs.ndim), _per_channel(std, inputs.ndim)
    standard = inputs.to(torch.float32, copy=True).sub_(mean).div_(std)
    return standard.contiguous(memory_format=torch.channels_last) if inputs.dtype == torch.uint8 else standard


def _augmented(images: Tensor, augment: Augment, mean: Tensor, std: Tensor, rng: torch.Generator) -> Tensor:
    """Normalised, cropped, flipped and cut-out copies of `images` (B, C, H, W) uint8."""
    count, height, width = len(images), *images.shape[2:]
    tops, lefts = torch.randint(2 * augment.crop + 1, (2, count), generator=rng)
    flips = torch.rand(count, generator=rng) < (0.5 if augment.flip else 0.0)
    centre_rows = torch.randint(height, (count,), generator=rng)
    centre_columns = torch.randint(width, (count,), generator=rng)
    if augment.crop or augment.flip:
        images = _shifted(images, augment.crop, tops, lefts, flips)
    result = _normalised(images, mean, std)
    if augment.cutout:
        rows, columns = _near(centre_rows, height, augment.cutout), _near(centre_columns, width, augment.cutout)
        square = rows[:, None, :, None] & columns[:, None, None, :]
        result.masked_fill_(square.to(result.device), 0.0)
    return result


def _shifted(images: Tensor, padding: int, tops: Tensor, lefts: Tensor, flips: Tensor) -> Tensor:
    """The windows at (tops, lefts) of the zero-padded images, mirrored where `flips`, in one gather."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    along = torch.arange(width)
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.where(flips[:, None], width - 1 - along, along)
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).to(images.device)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


def _near(centres: Tensor, length: int, side: int) -> Tensor:
    """(B, length) bool: positions within the `side` long interval around each centre."""
    start = (centres - side // 2)[:, None]
    along = torch.arange(length)
    return (along >= start) & (along < start + side)
