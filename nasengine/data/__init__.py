"""Data sets by name: `load_dataset("digits")`, `load_dataset("cifar10:PATH")`; everything is read from local files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.data import cifar, digits, imagefolder, npz
from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.task import Augment, Dataset

_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One kind of data: `load(path, image_size)` reads it; without `needs_path` the path means nothing."""

    name: str
    summary: str
    needs_path: bool
    load: Callable[[Path, int | None], Dataset]


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(
                name="digits",
                summary="1,797 grey 8x8 images of handwritten digits that come with scikit-learn",
                needs_path=False,
                load=lambda path, image_size: digits.load(),
            ),
            Scheme(
                name="cifar10",
                summary="CIFAR-10 as official Python batches or Hugging Face parquet files",
                needs_path=True,
                load=lambda path, image_size: cifar.load(path, cifar.CIFAR10),
            ),
            Scheme(
                name="cifar100",
                summary="CIFAR-100 as official Python batches or Hugging Face parquet files",
                needs_path=True,
                load=lambda path, image_size: cifar.load(path, cifar.CIFAR100),
            ),
            Scheme(
                name="imagefolder",
                summary="image files in train/<class>/ and test/<class>/, or in <class>/ alone",
                needs_path=True,
                load=imagefolder.load,
            ),
            Scheme(
                name="npz",
                summary="NumPy arrays x, y and optionally x_test, y_test in one .npz file",
                needs_path=True,
                load=lambda path, image_size: npz.load(path),
            ),
        )
    }
)


def load_dataset(spec: str, image_size: int | None = None) -> Dataset:
    """The data set of "scheme" or "scheme:PATH", its images resized to `image_size` pixels a side if that is given.

    Raises:
        UnknownNameError: no scheme has that name.
        DataError: a path is missing or superfluous, or the files are missing, damaged or not what they claim to be.
        SettingError: an image size for data that are not images.
    """
    name, _, path = spec.partition(":")
    if name not in SCHEMES:
        raise UnknownNameError("data scheme", name, SCHEMES)
    scheme = SCHEMES[name]
    if scheme.needs_path and not path:
        raise DataError(f"The data scheme {name} must come with a path, but got {spec!r}; write {name}:PATH.")
    if path and not scheme.needs_path:
        raise DataError(f"The data scheme {name} must come without a path, but got {spec!r}; write {name}.")
    try:
        dataset = scheme.load(Path(path).expanduser(), image_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"The data {spec!r} must be readable, but {error.filename or path}: {reason}.") from error
    return dataset if image_size is None else _resized(dataset, image_size)


def _resized(dataset: Dataset, size: int) -> Dataset:
    """`dataset` with square images of `size` pixels and its recommended augmentation in proportion."""
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
