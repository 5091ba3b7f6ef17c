"""What is learnt: a data set in memory, how it is split, the loss, and the measure of success."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import DataError, SettingError
from nasengine.measure import ACCURACY, NEGATIVE_MSE, Measure, mean_squared_error
from nasengine.seeding import generator
from nasengine.settings import setting, validate

_SPLIT = 101  # the last number of a generator's key says what is drawn, and differs from those of the batches
_CHUNK = 1024


class Batch(NamedTuple):
    """Inputs (B, *shape) float32, normalised, or int64 tokens; targets (B,) int64, or (B, k) float32."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Shapes:
    """What a network must accept, without the batch dimension, and how many numbers it must give.

    `outputs` is one number a class, or one a target of a regression. `vocabulary` is how many tokens there are where
    the inputs are int64 tokens, from 0 to `vocabulary` - 1, and 0 where they are float32 numbers.
    """

    input: tuple[int, ...]
    outputs: int
    vocabulary: int = 0

    def zeros(self, count: int) -> Tensor:
        """`count` inputs of the right shape and type, all 0, on the default device."""
        return torch.zeros(count, *self.input, dtype=torch.int64 if self.vocabulary else torch.float32)


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

    def check(self, dataset: Dataset) -> None:
        """Raises SettingError unless the data are images that are large enough, or nothing is to be changed."""
        if not dataset.is_image:
            if self != Augment():
                raise SettingError(f"data.crop, data.flip and data.cutout need images, which {dataset.name} has not.")
            return
        side = min(dataset.train_inputs.shape[2:])
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if value >= side:
                raise SettingError(f"data.{name} must be smaller than the images' {side} pixels, not {value}.")


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set in memory, on the CPU, with the augmentation it recommends.

    Inputs are images (N, C, H, W) uint8, numbers (N, *shape) float32 such as tables (N, F) and signals (N, C, L), or
    tokens (N, *shape) int64. Images and numbers are standardised for the network, tokens are not. Targets are classes
    (N,) int64, or for a regression (N, k) float32, which the network meets as they are: best on a scale of about 1.

    Attributes:
        name: can name a directory.
        classes: the names of the classes, or of the k targets.
        augment: meant for the search.
        final_cutout: in pixels, meant for the final training.
        target_mean, target_std: of each target of a regression, where targets are standardised: those in their own
            units are targets * target_std + target_mean. Empty where they are not.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    augment: Augment = Augment()
    final_cutout: int = 0
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip(".") or "/" in self.name or "\0" in self.name:
            raise DataError(f"A data set must have a name that can name a directory, but got {self.name!r}; rename it.")
        for part in ("train", "test"):
            self._check_part(part, getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets"))
        self._check_alike("inputs", self.train_inputs, self.test_inputs)
        self._check_alike("targets", self.train_targets, self.test_targets)
        sizes = {len(self.target_mean), len(self.target_std)}
        if sizes != {0} and (not self.is_regression or sizes != {len(self.classes)} or min(self.target_std) <= 0):
            raise DataError(
                f"target_mean and target_std of {self.name} must be a number for each target of a regression, with "
                f"deviations above 0, but are {self.target_mean} and {self.target_std}; correct them or leave them out."
            )
        counts = [] if self.is_regression else torch.bincount(self.strata, minlength=len(self.classes)).tolist()
        if 0 in counts:
            name = self.classes[counts.index(0)]
            raise DataError(f"Every class of {self.name} must have a training example, but {name!r} has none.")

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images (uint8), which can be augmented."""
        return self.train_inputs.dtype == torch.uint8

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers (float32) in place of classes."""
        return self.train_targets.is_floating_point()

    @property
    def strata(self) -> Tensor:
        """What a split keeps in proportion, (N,) int64: the classes of the training set, or one for all numbers."""
        return torch.zeros(len(self.train_targets), dtype=torch.int64) if self.is_regression else self.train_targets

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, the largest one and 1 more; 0 where the inputs are no tokens."""
        if self.train_inputs.dtype != torch.int64:
            return 0
        return 1 + int(max(self.train_inputs.max(), self.test_inputs.max()))

    def _check_part(self, part: str, inputs: Tensor, targets: Tensor) -> None:
        where = f"The {part} part of {self.name}"
        for what, tensor in (("inputs", inputs), ("targets", targets)):
            if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
                came = f"on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise DataError(f"{where} must be torch tensors on the CPU, but its {what} are {came}; convert them.")
        plain = inputs.dtype in (torch.float32, torch.int64) and inputs.ndim > 1
        if not plain and (inputs.dtype, inputs.ndim) != (torch.uint8, 4):
            raise DataError(
                f"{where} must be (N, C, H, W) uint8 images, (N, ...) float32 numbers or (N, ...) int64 tokens, not "
                f"{inputs.dtype} of shape {tuple(inputs.shape)}; convert them."
            )
        if inputs.numel() == 0 or _ndim_of_targets(targets) != targets.ndim or len(targets) != len(inputs):
            came = f"inputs of shape {tuple(inputs.shape)} and {targets.dtype} targets of shape {tuple(targets.shape)}"
            raise DataError(
                f"{where} must have one int64 target, or a row (N, k) of float32 targets, for each of at least one "
                f"input, but has {came}; convert or reshape them."
            )
        self._check_values(where, inputs, targets)

    def _check_values(self, where: str, inputs: Tensor, targets: Tensor) -> None:
        for what, tensor in (("inputs", inputs), ("targets", targets)):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(f"{where} must be finite, but has NaN or infinite {what}; remove or replace them.")
        if inputs.dtype == torch.int64 and int(inputs.min()) < 0:
            raise DataError(f"{where} must have tokens of 0 or more, but has {int(inputs.min())}; number them from 0.")
        if targets.is_floating_point():
            if targets.shape[1] != len(self.classes):
                came = f"{targets.shape[1]} for {len(self.classes)} names"
                raise DataError(f"{where} must have one target for each name in classes, but has {came}.")
        elif int(targets.min()) < 0 or int(targets.max()) >= len(self.classes):
            low, high = int(targets.min()), int(targets.max())
            raise DataError(
                f"{where} must have targets 0 to {len(self.classes) - 1}, one for each name in classes, but has {low} "
                f"to {high}; number them from 0."
            )

    def _check_alike(self, what: str, train: Tensor, test: Tensor) -> None:
        if train.dtype != test.dtype:
            came = f"{train.dtype} and {test.dtype}"
            raise DataError(f"Training and test {what} of {self.name} must have one type, but have {came}.")
        if train.shape[1:] != test.shape[1:]:
            came = f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
            raise DataError(f"Training and test {what} of {self.name} must have one shape, but have {came}.")


def _ndim_of_targets(targets: Tensor) -> int | None:
    """How many dimensions targets of this type must have, None for types that are no targets."""
    return {torch.int64: 1, torch.float32: 2}.get(targets.dtype)


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A data set, how it is split and augmented, the loss to minimise and the measure to report.

    Attributes:
        dataset: the data, of the sizes that are used: `load_task` applies train_size and image_size, a Task does not.
        settings: changes to what the data set recommends.
        loss: (outputs, targets) -> 0-dim tensor, the mean over a batch; cross-entropy for classes, the mean squared
            error for a regression unless given.
        measure: the accuracy for classes, minus the mean squared error for a regression unless given.
    """

    dataset: Dataset
    settings: DataSettings = DataSettings()
    # Without a default of their own the two depend on the data; no reader of a Task ever meets a None.
    loss: Callable[[Tensor, Tensor], Tensor] = None  # type: ignore[assignment]
    measure: Measure = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        regression = self.dataset.is_regression
        if self.loss is None:
            object.__setattr__(self, "loss", mean_squared_error if regression else F.cross_entropy)
        if self.measure is None:
            object.__setattr__(self, "measure", NEGATIVE_MSE if regression else ACCURACY)
        if not isinstance(self.measure, Measure):
            came = type(self.measure).__name__
            raise SettingError(f"The measure of a task must be a Measure, but got {came}; write Measure(name, total).")
        self.search_augment.check(self.dataset)
        self.final_augment.check(self.dataset)

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
        """Shape of one input, the number of classes or targets, and the size of the vocabulary."""
        data = self.dataset
        return Shapes(tuple(data.train_inputs.shape[1:]), len(data.classes), data.vocabulary)

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
            DataError: a class, or any example of a regression, would be missing from either part.
        """
        data, portion = self.dataset, self.settings.train_portion
        parts = stratified_split(data.strata, portion, generator(seed, 0, 0, _SPLIT))
        if data.is_regression and min(len(part) for part in parts) == 0:
            raise DataError(
                f"Both parts of the training set of {self.name} must have an example, but get {len(parts[0])} and "
                f"{len(parts[1])}; add examples or change data.train_portion from {portion}."
            )
        if data.is_regression:
            return parts
        counts = [torch.bincount(data.strata[part], minlength=len(data.classes)).tolist() for part in parts]
        for name, train, valid in zip(data.classes, *counts, strict=True):
            if train == 0 or valid == 0:
                raise DataError(
                    f"Both parts of the training set of {self.name} must have every class, but {name!r} gets {train} "
                    f"and {valid} examples; add examples of it or change data.train_portion from {portion}."
                )
        return parts

    def hold_out(self, portion: float) -> tuple[Tensor, Tensor]:
        """Shuffled indices of the training set to train on and to choose between networks by: a part of each class.

        The same ones whatever the seed, so that all trainings are compared on them. Raises DataError if either part is
        empty.
        """
        data = self.dataset
        train, valid = stratified_split(data.strata, 1 - portion, generator(0, 0, 1, _SPLIT))
        if min(len(train), len(valid)) == 0:
            raise DataError(
                f"Both parts of the training set of {self.name} must have an example, but get {len(train)} and "
                f"{len(valid)}; add examples or change train.valid_portion from {portion}."
            )
        return train, valid

    @cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1 where constant) of each channel, (C,) float32, over the training set.

        In the units of the stored inputs (0 to 255 for images); the channel is dimension 1 of any input. Tokens are
        left as they are: 0 and 1.
        """
        inputs = self.dataset.train_inputs
        if inputs.dtype == torch.int64:
            return torch.zeros(inputs.shape[1]), torch.ones(inputs.shape[1])
        mean, std = _channel_moments(inputs)
        constant = std <= torch.finfo(torch.float32).eps * mean.abs()
        return mean.float(), std.masked_fill(constant, 1.0).float()


def load_task(spec: str, settings: DataSettings | None = None) -> Task:
    """The task of a data spec such as "digits", "cifar10:PATH", "sklearn:wine", "file.py:name" or "module:name".

    The name in a file or module is a Dataset, a Task, or a function without arguments that gives one; a Task keeps its
    own settings where none are given here.

    Raises:
        UnknownNameError: nothing has that name.
        DataError: the data are missing or damaged.
        SettingError: a setting does not fit the data, or a file or module cannot be imported.
    """
    from nasengine.data import load  # the loaders import this module

    return load(spec, settings)


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
        deviation = inputs[start : start + _CHUNK].double() - mean.view(1, -1, *[1] * (inputs.ndim - 2))
        total += deviation.square_().sum(other)
    return mean, (total / count).sqrt()
