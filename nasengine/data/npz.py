"""NumPy archives: images, tables or signals x with integer labels y."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasengine.data.labels import checked_labels, holdout
from nasengine.errors import DataError
from nasengine.task import Augment, Dataset

_CHANNELS = (1, 3, 4)
_DAMAGE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)

_Arrays = Mapping[str, NDArray[np.generic]]


def load(path: Path) -> Dataset:
    """x (N, ...) and y (N,) of an .npz file, with x_test and y_test or a fixed stratified fifth as the test part.

    Images are uint8 arrays of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels (last, where both
    fit), and float or integer arrays of these shapes whose values lie in [0, 1] or are (or, with a channel dimension,
    lie between) the whole numbers 0 to 255. All else is kept as float32, without augmentation.

    Raises:
        DataError: the file is no such archive, or its arrays do not fit together.
        OSError: the file cannot be read.
    """
    arrays = _read(path)
    separate = "x_test" in arrays or "y_test" in arrays
    pairs = [("x", "y"), ("x_test", "y_test")] if separate else [("x", "y")]
    for x, y in pairs:
        _check_pair(arrays, x, y, path)
    targets = torch.cat([checked_labels(arrays[y], None, f"{y} in {path}") for _, y in pairs])
    train_count = len(arrays["x"])
    classes = _classes(targets[:train_count], path)
    if separate:
        checked_labels(arrays["y_test"], len(classes), f"y_test in {path}")
        train, test = torch.arange(len(targets)).tensor_split([train_count])
    else:
        train, test = holdout(targets, str(path))
    inputs = _inputs(np.concatenate([arrays[x] for x, _ in pairs]), path)
    return Dataset(
        name=f"npz-{path.stem}",
        train_inputs=inputs[train],
        train_targets=targets[train],
        test_inputs=inputs[test],
        test_targets=targets[test],
        classes=classes,
        augment=Augment(),
        final_cutout=0,
    )


def _read(path: Path) -> _Arrays:
    if path.is_dir():
        raise DataError(f"npz must be given a file, but {path} is a directory; name the .npz file in it.")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path} must be an .npz archive, but is not; write it with numpy.savez.")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in ("x", "y", "x_test", "y_test") if name in archive}
        except _DAMAGE as error:
            reason = "has object arrays" if "Object arrays" in str(error) else "is damaged"
            raise DataError(f"{path} must hold plain arrays, but {reason}; write it anew with numpy.savez.") from error


def _check_pair(arrays: _Arrays, x: str, y: str, path: Path) -> None:
    for name in (x, y):
        if name not in arrays:
            raise DataError(f"{path} must hold the arrays {x} and {y}, but has no {name}.")
    inputs, first = arrays[x], arrays["x"]
    if inputs.ndim < 2 or inputs.size == 0 or inputs.dtype.kind not in "buif":
        came = f"{inputs.dtype} of shape {inputs.shape}"
        raise DataError(f"{x} in {path} must be numbers of shape (N, ...), none of it 0, but is {came}.")
    if arrays[y].shape != inputs.shape[:1]:
        raise DataError(f"{x} and {y} in {path} must be of one length, but have {inputs.shape} and {arrays[y].shape}.")
    if inputs.shape[1:] != first.shape[1:] or inputs.dtype != first.dtype:
        came = f"{first.dtype} {first.shape} and {inputs.dtype} {inputs.shape}"
        raise DataError(f"x and {x} in {path} must be alike, but are {came}.")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs.astype(np.float64, copy=False)).all():
        raise DataError(f"{x} in {path} must be finite, but has NaN or infinite values; remove or replace them.")


def _classes(targets: Tensor, path: Path) -> tuple[str, ...]:
    """Names "0" to the largest label."""
    present = np.unique(targets.numpy())
    missing = present != np.arange(len(present))
    if missing.any():
        label, high = int(missing.argmax()), int(present[-1])
        raise DataError(
            f"y in {path} must have every class from 0 to {high}, but has no {label}; renumber the classes."
        )
    return tuple(str(label) for label in range(len(present)))


def _inputs(x: NDArray[np.generic], path: Path) -> Tensor:
    """(N, C, H, W) uint8 images, or (N, ...) float32."""
    pixels = _pixels(x)
    if pixels is None:
        with np.errstate(over="ignore"):
            return _finite(torch.from_numpy(x.astype(np.float32)), path)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] in _CHANNELS:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _pixels(x: NDArray[np.generic]) -> NDArray[np.uint8] | None:
    """`x` as uint8 if it holds images, or else None."""
    if x.ndim not in (3, 4) or (x.ndim == 4 and not {x.shape[1], x.shape[3]} & set(_CHANNELS)):
        return None
    if x.dtype == np.uint8:
        return x.astype(np.uint8, copy=False)
    values = x.astype(np.float64)
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        return None
    if high <= 1:
        values *= 255
    elif x.ndim == 3 and (values != np.rint(values)).any():
        return None
    return np.rint(values).astype(np.uint8)


def _finite(inputs: Tensor, path: Path) -> Tensor:
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(f"x in {path} must fit into float32, but has larger values; rescale it.")
    return inputs
