"""Image files in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasengine.data.images import SUFFIXES, open_image, parallel
from nasengine.data.labels import holdout
from nasengine.errors import DataError
from nasengine.task import Augment, Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_MODES = ("1", "L", "LA")
_TEST_FOLDERS = ("test", "val", "valid", "validation")


class _Part(NamedTuple):
    files: list[Path]
    labels: list[int]


def load(path: Path, image_size: int | None) -> Dataset:
    """The images of `path`, as they are if all have one size, or else resized and centre-cropped to `image_size`.

    `path` holds train/<class>/ and test/<class>/ (or val, valid, validation), or <class>/ alone, of which a fixed
    stratified fifth becomes the test part. Grey only if all images are.

    Raises:
        DataError: no images, a class without images, an image that does not decode, or sizes that differ.
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"imagefolder must be given a directory, but {path} is none; check the path.")
    separate = (path / "train").is_dir() and bool(_folders(path / "train"))
    train_folder = path / "train" if separate else path
    classes = tuple(folder.name for folder in _folders(train_folder))
    if not classes:
        raise DataError(f"{path} must have a folder of images for each class, but has no folders; see --data.")
    train = _list(train_folder, classes)
    test = _list(_test_folder(path), classes) if separate else _Part([], [])
    pixels = _read([*train.files, *test.files], image_size)
    targets = torch.tensor([*train.labels, *test.labels])
    if separate:
        train_rows, test_rows = torch.arange(len(targets)).tensor_split([len(train.labels)])
    else:
        train_rows, test_rows = holdout(targets, str(path))
    side = min(pixels.shape[2:])
    return Dataset(
        name=f"imagefolder-{path.resolve().name}",
        train_inputs=pixels[train_rows],
        train_targets=targets[train_rows],
        test_inputs=pixels[test_rows],
        test_targets=targets[test_rows],
        classes=classes,
        augment=Augment(crop=side // 8, flip=True),
        final_cutout=side // 2,
    )


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _test_folder(path: Path) -> Path:
    for name in _TEST_FOLDERS:
        if (path / name).is_dir():
            return path / name
    raise DataError(f"{path} must have a test folder beside train, but has none; add {path / 'test'} with the classes.")


def _list(path: Path, classes: Sequence[str]) -> _Part:
    """Files and labels of one part, classes in order."""
    files: list[Path] = []
    labels: list[int] = []
    for folder in _folders(path):
        if folder.name not in classes:
            raise DataError(f"Every test class must be in train, but {folder} is not; rename it or add it to train.")
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise DataError(f"Every class must have an image, but {folder} has none ({', '.join(SUFFIXES)}).")
        files += found
        labels += [classes.index(folder.name)] * len(found)
    if not files:
        raise DataError(f"{path} must have a folder of images for each class, but has no folders.")
    return _Part(files, labels)


def _read(files: Sequence[Path], image_size: int | None) -> Tensor:
    """(N, C, H, W) uint8 of all files."""
    first = open_image(files[0], str(files[0]))
    size = (image_size, image_size) if image_size else first.size
    pixels = np.empty((len(files), 3, size[1], size[0]), dtype=np.uint8)

    def fill(row: int) -> bool:
        image = open_image(files[row], str(files[row]))
        if image_size is None and image.size != size:
            raise DataError(
                f"All images must have one size, but {files[0]} is {size[0]}x{size[1]} and {files[row]} is "
                f"{image.width}x{image.height}; give a size to resize to, such as --set data.image_size=64."
            )
        pixels[row] = _fit(image, size).transpose(2, 0, 1)
        return image.mode in _GREY_MODES

    grey = all(parallel(fill, range(len(files))))
    return torch.from_numpy(pixels[:, :1].copy() if grey else pixels)


def _fit(image: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the shorter side resized, the longer one cropped at its centre."""
    from PIL import Image as pillow
    from PIL import ImageOps

    rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.size == size else ImageOps.fit(rgb, size, method=pillow.Resampling.BILINEAR))
