"""CIFAR-10 and CIFAR-100 from the official Python batches or from Hugging Face parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasengine.data.images import open_image
from nasengine.data.labels import checked_labels
from nasengine.data.unpickler import as_uint8, read_batch
from nasengine.errors import DataError
from nasengine.task import Augment, Dataset

_SIDE, _PIXELS = 32, 3 * 32 * 32
_FINE_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What tells CIFAR-10 and CIFAR-100 apart: file, key and column names; `classes` are the official names."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_key: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]


CIFAR10 = Variant(
    name="cifar10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    label_key="labels",
    columns=("label",),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

CIFAR100 = Variant(
    name="cifar100",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    label_key="fine_labels",
    columns=("fine_label", "label"),
    classes=tuple(_FINE_NAMES.split()),
)


def load(path: Path, variant: Variant) -> Dataset:
    """The data set in the directory `path`.

    Raises:
        DataError: neither kind of files is there, or they are damaged or not CIFAR.
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{variant.name} must be given a directory, but {path} is none; check the path.")
    batches = path / variant.folder if (path / variant.folder).is_dir() else path
    parquet = {part: [*path.glob(f"{part}*.parquet"), *path.glob(f"*/{part}*.parquet")] for part in ("train", "test")}
    if any((batches / name).is_file() for name in (*variant.train, variant.test)):
        train = _read_batches([batches / name for name in variant.train], variant)
        test = _read_batches([batches / variant.test], variant)
    elif parquet["train"] and parquet["test"]:
        train, test = (_read_parquets(sorted(parquet[part]), variant) for part in ("train", "test"))
    else:
        raise DataError(
            f"{path} must hold {variant.folder} or the files train*.parquet and test*.parquet, but does not; put the "
            f"unpacked Python archive or the Hugging Face files there."
        )
    return Dataset(
        name=variant.name,
        train_inputs=train[0],
        train_targets=train[1],
        test_inputs=test[0],
        test_targets=test[1],
        classes=variant.classes,
        augment=Augment(crop=4, flip=True),
        final_cutout=16,
    )


def _read_batches(paths: Sequence[Path], variant: Variant) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and targets (N,) of the official files."""
    images, targets = [], []
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{variant.name} must have all its batches, but {path} is missing; unpack the archive anew."
            )
        batch = read_batch(path)
        data = as_uint8(batch.get("data"), f"The data in {path}")
        labels = batch.get(variant.label_key)
        if data.ndim != 2 or data.shape[1] != _PIXELS:
            raise DataError(f"The data in {path} must have {_PIXELS} columns, but have the shape {data.shape}.")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise DataError(f"{path} must have a list of {len(data)} {variant.label_key}, but has none of that length.")
        images.append(torch.from_numpy(data.copy()).view(-1, 3, _SIDE, _SIDE))
        targets.append(_targets(labels, variant, path))
    return torch.cat(images), torch.cat(targets)


def _targets(labels: list[object], variant: Variant, path: Path) -> Tensor:
    where = f"The labels in {path}"
    if not all(type(label) is int and abs(label) < 2**31 for label in labels):
        raise DataError(f"{where} must be integers 0 to {len(variant.classes) - 1}, but some are not.")
    return checked_labels(np.array(labels, dtype=np.int64), len(variant.classes), where)


def _read_parquets(paths: Sequence[Path], variant: Variant) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and targets (N,) of all files, in the order of their names."""
    parts = [_read_parquet(path, variant) for path in paths]
    return torch.cat([images for images, _ in parts]), torch.cat([targets for _, targets in parts])


def _read_parquet(path: Path, variant: Variant) -> tuple[Tensor, Tensor]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        try:
            names = set(pq.read_schema(file).names)
            image = next((name for name in ("img", "image") if name in names), None)
            label = next((name for name in variant.columns if name in names), None)
            if image is None or label is None:
                wanted = f"img or image, and {' or '.join(variant.columns)}"
                raise DataError(f"{path} must have the columns {wanted}, but has {', '.join(sorted(names))}.")
            table = pq.read_table(file, columns=[image, label])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} must be a whole parquet file, but is damaged; copy it anew.") from error
    rows, labels = table[image], table[label]
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise DataError(f"The column {label} of {path} must be integers without gaps, but is not.")
    targets = checked_labels(labels.to_numpy(), len(variant.classes), f"The column {label} of {path}")
    contents = [row.get("bytes") if isinstance(row, dict) else None for row in rows.to_pylist()]
    return _decode(contents, path), targets


def _decode(contents: Sequence[object], path: Path) -> Tensor:
    result = np.empty((len(contents), _SIDE, _SIDE, 3), dtype=np.uint8)
    for row, content in enumerate(contents):  # threads make images this small slower
        result[row] = _pixels(content, f"row {row} of {path}")
    return torch.from_numpy(np.ascontiguousarray(result.transpose(0, 3, 1, 2)))


def _pixels(content: object, name: str) -> NDArray[np.uint8]:
    """(32, 32, 3) uint8."""
    if not isinstance(content, bytes):
        raise DataError(f"Every image must be a struct with bytes, but {name} has none.")
    image = open_image(content, name)
    if image.size != (_SIDE, _SIDE):
        raise DataError(f"Every image must be {_SIDE}x{_SIDE} pixels, but {name} is {image.width}x{image.height}.")
    return np.asarray(image.convert("RGB"))
