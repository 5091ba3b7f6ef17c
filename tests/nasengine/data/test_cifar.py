from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nasengine.data import load_dataset
from nasengine.data.unpickler import as_uint8, read_batch
from nasengine.errors import DataError
from nasengine.task import Augment

REAL = Path(__file__).resolve().parents[3] / "../shared/data/cifar10"
RNG = np.random.default_rng(1)
PICKLES = {"cifar10": ("data_batch_1", "labels"), "cifar100": ("train", "fine_labels")}


def batch(count: int, key: str = "labels", classes: int = 10) -> dict[str, object]:
    data = RNG.integers(256, size=(count, 3072), dtype=np.uint8)
    return {"data": data, key: [row % classes for row in range(count)], "filenames": ["a"] * count}


def write_pickles(folder: Path, name: str = "cifar10", protocol: int = 2) -> Path:
    """A tiny official layout of either data set; returns the folder with the batches."""
    key, classes = PICKLES[name][1], {"cifar10": 10, "cifar100": 100}[name]
    inside = folder / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    inside.mkdir()
    files = {"cifar10": [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], "cifar100": ["train", "test"]}[name]
    for file in files:
        (inside / file).write_bytes(pickle.dumps(batch(classes, key, classes), protocol=protocol))
    return inside


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write_parquet(
    path: Path,
    *,
    image: str = "img",
    label: str = "label",
    labels: list[object] | None = None,
    last: bytes | None = None,
) -> torch.Tensor:
    """A tiny Hugging Face file; returns its images (N, 3, 32, 32)."""
    labels = list(range(10)) if labels is None else labels
    pixels = RNG.integers(256, size=(len(labels), 32, 32, 3), dtype=np.uint8)
    contents = [encoded(Image.fromarray(image)) for image in pixels]
    if last is not None:
        contents[-1] = last
    rows = [{"bytes": content, "path": "a.png"} for content in contents]
    pq.write_table(pa.table({image: rows, label: labels}), path)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class TestPickles:
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_official_layout(self, tmp_path: Path, name: str, protocol: int) -> None:
        inside = write_pickles(tmp_path, name, protocol)
        first, key = PICKLES[name]
        original = pickle.loads((inside / first).read_bytes())
        for path in (inside, tmp_path):
            data = load_dataset(f"{name}:{path}")
            expected = torch.from_numpy(original["data"]).view(-1, 3, 32, 32)
            assert torch.equal(data.train_inputs[: len(expected)], expected)
            assert data.train_targets[: len(expected)].tolist() == original[key]
        assert len(data.train_inputs) == (50 if name == "cifar10" else 100)
        assert (data.name, data.augment, data.final_cutout) == (name, Augment(crop=4, flip=True), 16)
        assert data.classes[0] == {"cifar10": "airplane", "cifar100": "apple"}[name]

    def test_written_by_python_2(self, tmp_path: Path) -> None:
        """The opcodes of the real files: byte strings everywhere, and NumPy's old module name."""
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02K\x03t"
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            b"\x89U\x06\x01\x02\x03\xfd\xfe\xfftb"
        )
        (tmp_path / "file").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x04eu.")
        content = read_batch(tmp_path / "file")
        assert as_uint8(content["data"], "it").tolist() == [[1, 2, 3], [253, 254, 255]]
        assert content["labels"] == [3, 4]

    def test_column_order(self, tmp_path: Path) -> None:
        array = np.asfortranarray(RNG.integers(256, size=(4, 6), dtype=np.uint8))
        (tmp_path / "file").write_bytes(pickle.dumps({"data": array}, protocol=2))
        assert np.array_equal(as_uint8(read_batch(tmp_path / "file")["data"], "it"), array)

    @pytest.mark.parametrize("command", [os.system, eval])
    def test_forbidden_global_is_named_and_not_run(self, tmp_path: Path, command: object) -> None:
        inside, mark = write_pickles(tmp_path), tmp_path / "mark"

        class Payload:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return command, (f"touch {mark}" if command is os.system else f"open({str(mark)!r}, 'w')",)

        (inside / "data_batch_3").write_bytes(pickle.dumps({**batch(10), "extra": Payload()}))
        with pytest.raises(DataError, match=r"data_batch_3 must hold plain arrays, but names \w+.(system|eval), which"):
            load_dataset(f"cifar10:{tmp_path}")
        assert not mark.exists()

    def test_other_codec_is_refused(self, tmp_path: Path) -> None:
        inside = write_pickles(tmp_path)
        (inside / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
        with pytest.raises(DataError, match=r"does not unpickle .*rot13"):
            load_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize("keep", [0, 10, 1000, -1])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        file = write_pickles(tmp_path) / "data_batch_2"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"data_batch_2 must be a CIFAR batch, but does not unpickle"):
            load_dataset(f"cifar10:{tmp_path}")

    def test_random_damage_never_escapes(self, tmp_path: Path) -> None:
        content = pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}, protocol=2)
        for position in range(len(content)):
            for value in (0, 40, 82, 98, 255):
                damaged = content[:position] + bytes([value]) + content[position + 1 :]
                (tmp_path / "file").write_bytes(damaged)
                try:
                    as_uint8(read_batch(tmp_path / "file").get("data"), "it")
                except DataError:
                    continue

    def test_missing_batch(self, tmp_path: Path) -> None:
        (write_pickles(tmp_path) / "data_batch_4").unlink()
        with pytest.raises(DataError, match=r"must have all its batches, but .*data_batch_4 is missing"):
            load_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "must hold a dictionary, but holds list"),
            ({"labels": [1]}, "The data in .* must be a complete uint8 array"),
            ({**batch(10), "data": np.zeros((10, 3072), np.int16)}, "must be a complete uint8 array"),
            ({**batch(10), "data": np.zeros((10, 3071), np.uint8)}, r"3072 columns, but have the shape \(10, 3071\)"),
            ({**batch(10), "labels": [1, 2]}, "must have a list of 10 labels"),
            ({**batch(3), "labels": [0, 10, 1]}, "must be 0 to 9, but row 1 has 10"),
            ({**batch(3), "labels": [0, 1, -1]}, "must be 0 to 9, but row 2 has -1"),
            ({**batch(3), "labels": [0, 1, 0.5]}, "must be integers 0 to 9, but some are not"),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, content: object, message: str) -> None:
        (write_pickles(tmp_path) / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(DataError, match=message):
            load_dataset(f"cifar10:{tmp_path}")


class TestParquet:
    @pytest.mark.parametrize(
        ("train", "image"), [("train.parquet", "img"), ("plain_text/train-00000-of-00001.parquet", "image")]
    )
    def test_layouts(self, tmp_path: Path, train: str, image: str) -> None:
        (tmp_path / train).parent.mkdir(exist_ok=True)
        expected = write_parquet(tmp_path / train, image=image)
        test = write_parquet(tmp_path / train.replace("train", "test"), image=image)
        data = load_dataset(f"cifar10:{tmp_path}")
        assert torch.equal(data.train_inputs, expected) and torch.equal(data.test_inputs, test)
        assert data.train_targets.tolist() == list(range(10))

    def test_several_files_in_order_and_fine_labels(self, tmp_path: Path) -> None:
        labels: list[object] = list(range(100))
        parts = [
            write_parquet(tmp_path / f"train-{number}.parquet", label="fine_label", labels=labels[number * 50 :][:50])
            for number in range(2)
        ]
        write_parquet(tmp_path / "test.parquet", label="fine_label")
        data = load_dataset(f"cifar100:{tmp_path}")
        assert torch.equal(data.train_inputs, torch.cat(parts)) and data.train_targets.tolist() == labels
        assert len(data.classes) == 100

    @pytest.mark.parametrize("keep", [0, 100, -50])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        for part in ("train", "test"):
            write_parquet(tmp_path / f"{part}.parquet")
        file = tmp_path / "train.parquet"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"train.parquet must be a whole parquet file, but is damaged"):
            load_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize(("image", "label"), [("picture", "label"), ("img", "answer")])
    def test_columns_are_missing(self, tmp_path: Path, image: str, label: str) -> None:
        for part in ("train", "test"):
            write_parquet(tmp_path / f"{part}.parquet", image=image, label=label)
        with pytest.raises(DataError, match=f"must have the columns img or image, and label, but has .*{label}"):
            load_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 10], "The column label of .* must be 0 to 9, but row 1 has 10"),
            ([0, -1], "must be 0 to 9, but row 1 has -1"),
            ([0, None], "must be integers without gaps"),
            (["cat", "dog"], "must be integers without gaps"),
        ],
    )
    def test_wrong_labels(self, tmp_path: Path, labels: list[object], message: str) -> None:
        for part in ("train", "test"):
            write_parquet(tmp_path / f"{part}.parquet", labels=labels)
        with pytest.raises(DataError, match=message):
            load_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no image", r"must decode, but row 9 of .*train.parquet does not: it is not an image"),
            (encoded(Image.new("RGB", (32, 32)))[:50], r"must decode, but row 9 of .*train.parquet does not"),
            (encoded(Image.new("RGB", (33, 32))), r"must be 32x32 pixels, but row 9 of .*train.parquet is 33x32"),
        ],
    )
    def test_wrong_images(self, tmp_path: Path, content: bytes, message: str) -> None:
        write_parquet(tmp_path / "train.parquet", last=content)
        write_parquet(tmp_path / "test.parquet")
        with pytest.raises(DataError, match=message):
            load_dataset(f"cifar10:{tmp_path}")

    def test_images_that_are_no_structs(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            pq.write_table(pa.table({"img": [1, 2], "label": [0, 1]}), tmp_path / f"{part}.parquet")
        with pytest.raises(DataError, match=r"must be a struct with bytes, but row 0 of .* has none"):
            load_dataset(f"cifar10:{tmp_path}")

    def test_class_without_training_images(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            write_parquet(tmp_path / f"{part}.parquet", labels=[0, 1, 2])
        with pytest.raises(DataError, match=r"Every class of cifar10 .* but 'cat' has none"):
            load_dataset(f"cifar10:{tmp_path}")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CIFAR-10 is not on this machine")
def test_real_cifar10() -> None:
    data = load_dataset(f"cifar10:{REAL}")
    assert data.train_inputs.shape == (50_000, 3, 32, 32) and data.test_inputs.shape == (10_000, 3, 32, 32)
    assert torch.bincount(data.train_targets).tolist() == [5000] * 10
    assert data.train_inputs[::50].float().mean(dim=(0, 2, 3)).tolist() == pytest.approx([125.3, 123.0, 113.9], abs=2)
