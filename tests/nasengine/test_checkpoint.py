from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nasengine.errors import RunError
from nasengine.run_directory import Run, read_tensors
from tests.nasengine.runs import same

CONFIG: dict[str, Any] = {"space": {}, "algo": {}, "data": {}, "search": {}}
FACTS = {"task": "digits"}
CPU = torch.device("cpu")
STATE = {"weights": torch.arange(5.0), "step": 3, "sums": {}, "python": (3, (1, 2), None), "text": "x", "half": 0.5}


def start(path: Path) -> Run:
    return Run.start(path, "search", CONFIG, FACTS)


def resume(path: Path) -> Run:
    return Run.resume(path, "search", CONFIG, FACTS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run directory with a checkpoint, that nobody holds."""
    with start(tmp_path / "run") as run:
        run.save_checkpoint(STATE)
    return tmp_path / "run"


def test_every_flipped_byte_and_every_cut_is_noticed(path: Path) -> None:
    checkpoint, rng = path / "checkpoint.pt", random.Random(0)
    whole = checkpoint.read_bytes()
    flipped = bytearray(whole)
    for place in [0, len(whole) - 1, *rng.choices(range(len(whole)), k=200)]:
        flipped[place] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(flipped)
        with pytest.raises(RunError, match="must be a whole checkpoint of nasengine, but is damaged"):
            read_tensors(checkpoint, CPU)
        flipped[place] = whole[place]
    for length in [0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1]:
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(RunError, match="must be a whole checkpoint of nasengine, but is damaged"):
            read_tensors(checkpoint, CPU)
    checkpoint.write_bytes(whole)
    assert same(read_tensors(checkpoint, CPU)["state"], STATE)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("write", [pickle.dumps, saved], ids=["pickle", "torch"])
@pytest.mark.parametrize("checksum", [False, True])
def test_a_checkpoint_that_would_run_code(
    path: Path, tmp_path: Path, write: Callable[[object], bytes], checksum: bool
) -> None:
    data = write({"nasengine": 1, "state": _Bomb(tmp_path / "boom")})
    (path / "checkpoint.pt").write_bytes(data + hashlib.sha256(data).digest() if checksum else data)
    with resume(path) as run, pytest.raises(RunError, match="must be a whole checkpoint of nasengine, but is damaged"):
        run.load_checkpoint(CPU)
    assert not (tmp_path / "boom").exists()


def test_a_checkpoint_of_something_else(path: Path) -> None:
    data = saved({"epoch": 3})
    for content, told in (
        (data, "must be a whole checkpoint of nasengine, but is damaged or another file; remove it"),
        (data + hashlib.sha256(data).digest(), "must be a checkpoint of nasengine, but is another file; remove it"),
    ):
        (path / "checkpoint.pt").write_bytes(content)
        with resume(path) as run, pytest.raises(RunError, match=told):
            run.load_checkpoint(CPU)


def test_a_checkpoint_of_another_run(path: Path, tmp_path: Path) -> None:
    with start(tmp_path / "other") as other:
        other.save_checkpoint(STATE)
    shutil.copy(tmp_path / "other" / "checkpoint.pt", path / "checkpoint.pt")
    with (
        resume(path) as run,
        pytest.raises(RunError, match="the checkpoint of this run, but belongs to another; remove"),
    ):
        run.load_checkpoint(CPU)


def test_an_unreadable_checkpoint(path: Path) -> None:
    (path / "checkpoint.pt").unlink()
    (path / "checkpoint.pt").mkdir()
    with resume(path) as run, pytest.raises(RunError, match="must be a readable checkpoint, but Is a directory"):
        run.load_checkpoint(CPU)
