from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasengine.data import load_dataset
from nasengine.errors import DataError
from nasengine.task import Dataset

Y = np.arange(20) % 4
RNG = np.random.default_rng(0)


def load(folder: Path, **arrays: Any) -> Dataset:
    np.savez(folder / "toy.npz", **arrays)
    return load_dataset(f"npz:{folder / 'toy.npz'}")


def pixels(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return RNG.integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((20, 5, 6), (1, 5, 6)),
        ((20, 5, 6, 1), (1, 5, 6)),
        ((20, 5, 6, 3), (3, 5, 6)),
        ((20, 5, 6, 4), (4, 5, 6)),
        ((20, 3, 5, 6), (3, 5, 6)),
        ((20, 4, 6, 3), (3, 4, 6)),
        ((20, 3, 5, 3), (3, 3, 5)),
    ],
)
def test_image_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = load(tmp_path, x=pixels(*shape), y=Y)
    assert data.train_inputs.shape == (16, *expected) and data.train_inputs.dtype == torch.uint8
    assert data.name == "npz-toy" and data.classes == ("0", "1", "2", "3")
    assert torch.bincount(data.test_targets).tolist() == [1, 1, 1, 1]


def test_pixels_arrive_where_they_belong(tmp_path: Path) -> None:
    x, x_test = pixels(20, 5, 6, 3), pixels(8, 5, 6, 3)
    data = load(tmp_path, x=x, y=Y, x_test=x_test, y_test=Y[:8])
    assert torch.equal(data.train_inputs, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert torch.equal(data.test_inputs, torch.from_numpy(x_test).permute(0, 3, 1, 2))
    assert torch.equal(data.test_targets, torch.from_numpy(Y[:8]))


@pytest.mark.parametrize(
    "convert",
    [lambda x: x / 255, lambda x: x.astype(np.float32), lambda x: x.astype(np.int64)],
    ids=["unit", "float32", "int64"],
)
@pytest.mark.parametrize("shape", [(20, 5, 6), (20, 5, 6, 3)])
def test_other_types_of_images(tmp_path: Path, convert: type, shape: tuple[int, ...]) -> None:
    x = pixels(*shape)
    same = load(tmp_path, x=x, y=Y)
    assert torch.equal(load(tmp_path, x=convert(x), y=Y).train_inputs, same.train_inputs)


@pytest.mark.parametrize(
    "x",
    [
        RNG.normal(size=(20, 7)),
        RNG.normal(size=(20, 2, 9)),
        RNG.uniform(0, 200, size=(20, 2, 9)),
        RNG.normal(size=(20, 3, 4, 4)),
        RNG.normal(size=(20, 2, 5, 6, 7)),
        pixels(20, 7),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_arrays_that_are_no_images(tmp_path: Path, x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    data = load(tmp_path, x=x, y=Y)
    assert data.train_inputs.dtype == torch.float32 and data.train_inputs.shape == (16, *x.shape[1:])
    assert not data.is_image


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "must hold the arrays x and y, but has no x"),
        ({"x": pixels(20, 5, 6)}, "must hold the arrays x and y, but has no y"),
        ({"x": pixels(20, 5, 6), "y": Y[:19]}, r"x and y in .* one length, but have (20, 5, 6) and (19,)"),
        ({"x": pixels(20, 5, 6), "y": Y, "x_test": pixels(4, 5, 6)}, "x_test and y_test, but has no y_test"),
        ({"x": pixels(20, 5, 6), "y": Y, "x_test": pixels(4, 6, 6), "y_test": Y[:4]}, "x and x_test in"),
        ({"x": pixels(20, 5, 6), "y": Y - 1}, "must be 0 or more, but row 0 has -1"),
        ({"x": pixels(20, 5, 6), "y": Y * 1.0}, "must be a row of integers, but has float64 of shape (20,)"),
        ({"x": pixels(20, 5, 6), "y": Y * 2}, "must have every class from 0 to 6, but has no 1"),
        ({"x": pixels(20, 5, 6), "y": Y, "x_test": pixels(4, 5, 6), "y_test": Y[:4] + 1}, "0 to 3, but row 3 has 4"),
        ({"x": np.array([1, "a"], dtype=object), "y": Y}, "must hold plain arrays, but has object arrays"),
        ({"x": np.array(["a", "b"]), "y": Y[:2]}, "x in .* must be numbers of shape (N, ...)"),
        ({"x": np.zeros(20), "y": Y}, "must be numbers of shape (N, ...)"),
        ({"x": np.full((20, 3), np.nan), "y": Y}, "x in .* must be finite, but has NaN"),
        ({"x": np.full((20, 3, 3), np.inf), "y": Y}, "x in .* must be finite"),
        ({"x": np.full((20, 3), 1e300), "y": Y}, "must fit into float32"),
        ({"x": pixels(2, 5, 6), "y": np.array([0, 1])}, "must have 3 or more examples"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message).replace(r"\.\*", ".*")) as caught:
        load(tmp_path, **arrays)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"just some text\n"])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "fake.npz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"fake.npz must be an .npz archive, but is not"):
        load_dataset(f"npz:{file}")


def test_single_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", Y)
    with pytest.raises(DataError, match=r"must be an .npz archive, but is not; write it with numpy.savez"):
        load_dataset(f"npz:{tmp_path / 'one.npy'}")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be given a file, but .* is a directory"):
        load_dataset(f"npz:{tmp_path}")


def test_damaged_archive(tmp_path: Path) -> None:
    load(tmp_path, x=pixels(20, 5, 6), y=Y)
    content = bytearray((tmp_path / "toy.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "toy.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"toy.npz must hold plain arrays, but is damaged"):
        load_dataset(f"npz:{tmp_path / 'toy.npz'}")
    (tmp_path / "toy.npz").write_bytes(content[:300])
    with pytest.raises(DataError, match=r"toy.npz must be an .npz archive"):
        load_dataset(f"npz:{tmp_path / 'toy.npz'}")
