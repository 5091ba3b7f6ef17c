from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nasengine.data import load_dataset
from nasengine.errors import DataError
from nasengine.task import Augment

COLOURS = {"cat": 40, "dog": 90}


def fill(
    folder: Path,
    *,
    size: tuple[int, int] = (16, 12),
    count: int = 5,
    mode: str = "RGB",
    suffixes: Sequence[str] = (".png",),
) -> None:
    """A folder per class with `count` images of one grey, the class's own."""
    for name, value in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new(mode, size, (value, value, value) if mode == "RGB" else value)
            image.save(folder / name / f"{number}{suffixes[number % len(suffixes)]}")


def test_train_and_test_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2)
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.name == f"imagefolder-{tmp_path.name}" and data.classes == ("cat", "dog")
    assert data.train_inputs.shape == (10, 3, 12, 16) and data.test_inputs.shape == (4, 3, 12, 16)
    assert data.train_inputs[:, 0, 0, 0].tolist() == [40] * 5 + [90] * 5
    assert data.train_targets.tolist() == [0] * 5 + [1] * 5 and data.test_targets.tolist() == [0, 0, 1, 1]
    assert (data.augment, data.final_cutout) == (Augment(crop=1, flip=True), 6)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_folder(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / name, count=3)
    assert len(load_dataset(f"imagefolder:{tmp_path}").test_inputs) == 6


def test_classes_alone_are_split(tmp_path: Path) -> None:
    fill(tmp_path, count=10)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.train_targets.tolist() == [0] * 8 + [1] * 8 and data.test_targets.tolist() == [0, 0, 1, 1]


def test_formats(tmp_path: Path) -> None:
    fill(tmp_path, count=6, suffixes=(".png", ".jpg", ".JPEG", ".bmp", ".webp", ".gif"))
    data = load_dataset(f"imagefolder:{tmp_path}")
    shades = torch.cat([data.train_inputs, data.test_inputs]).float().mean(dim=(1, 2, 3)).sort().values
    assert shades.tolist() == pytest.approx([40] * 6 + [90] * 6, abs=2)


def test_grey_only_if_all_are(tmp_path: Path) -> None:
    fill(tmp_path, mode="L")
    assert load_dataset(f"imagefolder:{tmp_path}").train_inputs.shape[1] == 1
    Image.new("RGB", (16, 12)).save(tmp_path / "cat" / "colour.png")
    assert load_dataset(f"imagefolder:{tmp_path}").train_inputs.shape[1] == 3


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.new("RGB", (20, 30)).save(tmp_path / "dog" / "tall.png")
    with pytest.raises(DataError, match=r"is 16x12 and .*tall.png is 20x30; .* --set data.image_size=64"):
        load_dataset(f"imagefolder:{tmp_path}")
    data = load_dataset(f"imagefolder:{tmp_path}", 8)
    assert data.train_inputs.shape[1:] == (3, 8, 8) and data.final_cutout == 4


def test_resized_by_the_shorter_side_and_cropped_at_the_centre(tmp_path: Path) -> None:
    fill(tmp_path)
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 6:18] = 200
    for file in tmp_path.glob("*/*.png"):
        Image.fromarray(pixels).save(file)
    assert (load_dataset(f"imagefolder:{tmp_path}", 4).train_inputs == 200).all()


def test_image_that_does_not_decode(tmp_path: Path) -> None:
    fill(tmp_path)
    broken = tmp_path / "dog" / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"must decode, but .*broken.jpg does not: it is not an image"):
        load_dataset(f"imagefolder:{tmp_path}")
    content = (tmp_path / "dog" / "0.png").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"must decode, but .*broken.jpg does not"):
        load_dataset(f"imagefolder:{tmp_path}")
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"must decode, but .*broken.jpg does not"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_postscript_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.new("RGB", (16, 12)).save(tmp_path / "dog" / "script.eps")
    (tmp_path / "dog" / "script.eps").rename(tmp_path / "dog" / "script.png")
    with pytest.raises(DataError, match=r"script.png does not: it is not an image"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.fromarray(np.full((12, 16), 40_000, np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"8 bits per channel, but .*deep.png has the mode I"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_class_without_images(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(DataError, match=r"Every class must have an image, but .*emu has none"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_test_class_unknown_in_train(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(DataError, match=r"Every test class must be in train, but .*emu is not"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_train_without_test(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    with pytest.raises(DataError, match="must have a test folder beside train, but has none"):
        load_dataset(f"imagefolder:{tmp_path}")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="test must have a folder of images for each class"):
        load_dataset(f"imagefolder:{tmp_path}")
