"""Whatever is wrong is told in one sentence, with exit code 2, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.nasengine.runs import GENOTYPE, contents

Refuse = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--space dart", "Unknown search space 'dart': did you mean 'darts' (known: darts"),
        ("--algo rart", "Unknown algorithm 'rart': did you mean 'rarts' (known: darts, deps, random, rarts, slimming"),
        ("--data digit", "Unknown data scheme 'digit': did you mean 'digits' (known: cifar10, cifar100, digits, "),
        ("--set algo.bta=5", "Unknown setting 'algo.bta': did you mean 'algo.beta' (known: algo.alphas, algo.beta, "),
        (
            "--set serch.epochs=5",
            "Unknown group of settings 'serch': did you mean 'search' (known: algo, data, final, search, ",
        ),
        ("--set algo.weights.lrr=5", "Unknown setting 'algo.weights.lrr': did you mean 'algo.weights.lr' (known: "),
        ("--space nowhere:Toy", "The search space 'nowhere:Toy' must be importable, but got ModuleNotFoundError: No "),
        ("--space gone.py:Toy", "A plug-in file must exist, but gone.py does not."),
        ("--epochs many", "search.epochs must be a whole number, but got 'many'."),
        ("--epochs 1.5", "search.epochs must be a whole number, but got '1.5'."),
        ("--epochs 0", "search.epochs must be at least 1, but got 0."),
        ("--epochs=", "search.epochs must be a whole number, but got ''."),
        ("--batch-size -3", "search.batch_size must be at least 1, but got -3."),
        ("--seed -1", "search.seed must be at least 0, but got -1."),
        ("--train-portion half", "data.train_portion must be a number, but got 'half'."),
        ("--train-portion 0", "data.train_portion must be more than 0.0 and at most 1.0, but got 0.0."),
        ("--train-portion nan", "data.train_portion must be more than 0.0 and at most 1.0, but got nan."),
        (
            "--train-portion 1",
            "data.train_portion must be less than 1, but got 1.0; the architecture needs a part too.",
        ),
        ("--set algo.beta=big", "algo.beta must be a number, but got 'big'."),
        ("--set algo.beta=-1", "algo.beta must be at least 0, but got -1.0."),
        ("--set algo.sweep=none", "algo.sweep must be exact or stale, but got 'none'."),
        ("--set data.flip=perhaps", "data.flip must be true or false or none, but got 'perhaps'."),
        ("--set algo.weights=3", "algo.weights is a group of settings; set one of algo.weights.optimizer, "),
        ("--set space.channels=3", "space.channels must be an even number, but got 3."),
        (
            "--set nonsense",
            "A setting must be group.name=value such as space.x=1, but got 'nonsense'; 'nasengine list' names all.",
        ),
        ("--set data.crop=8", "data.crop must be smaller than the images' 8 pixels, not 8."),
        ("--data digits:here", "The data scheme digits must come without a path, but got 'digits:here'; write digits."),
        ("--data npz", "The data scheme npz must come with a path, but got 'npz'; write npz:PATH."),
        (
            "--batch-size 5000",
            "A batch of 5000 needs at least as many training examples, but this part of digits has 719",
        ),
        ("--device bogus", "The device must be one of this machine, "),
        ("--bogus 3", "No such option: --bogus"),
        ("--epochs", "Option '--epochs' requires an argument."),
        ("extra", "Got unexpected extra argument(s) (extra)."),
        ("--config nowhere", "There must be a run.json of nasengine at nowhere, but there is none."),
        ("--resume --out nowhere", "There must be a run.json of nasengine at nowhere, but there is none."),
        (
            "--resume",
            "A run must be a directory that nasengine wrote, but results/digits/darts/rarts/seed-0 is missing.",
        ),
    ],
)
def test_search_refuses(refuse: Refuse, arguments: str, sentence: str) -> None:
    assert refuse("search", *arguments.split()).startswith(sentence)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bogus", "No such command 'bogus'."),
        ("rnak", "No such command 'rnak': did you mean 'rank'?"),
        ("--bogus", "No such option: --bogus."),
        ("train", "A training must have one of a run, a genotype and an architecture, but got 0 of them."),
        ("train --dry-run", "A training must have one of a run, a genotype and an architecture, but got 0 of them."),
        ("train --resume", "A training must have one of a run, a genotype and an architecture, but got 0 of them."),
        (
            "train a --genotype b",
            "A training must have one of a run, a genotype and an architecture, but got 2 of them.",
        ),
        (
            "train --architecture a --genotype b",
            "A training must have one of a run, a genotype and an architecture, but got 2 of them.",
        ),
        ("train nowhere", "A run must be a directory that nasengine wrote, but nowhere is missing."),
        ("train --genotype nonsense", "A genotype must be Genotype(normal=[(operation, input), ...], "),
        ("train --genotype Genotype(", "A genotype must be Genotype(normal=[(operation, input), ...], "),
        ("train --architecture nowhere", "An architecture must be a readable file, but nowhere is not: No such file"),
        ("train --resume --out nowhere", "There must be a run.json of nasengine at nowhere, but there is none."),
        (
            "train nowhere --set search.epochs=3",
            "A run must be a directory that nasengine wrote, but nowhere is missing.",
        ),
        ("show", "Either a run directory or a genotype must be given to show, and not both."),
        ("show a --genotype b", "Either a run directory or a genotype must be given to show, and not both."),
        ("show nowhere", "A run must be a directory that nasengine wrote, but nowhere is missing."),
        ("show --genotype nonsense", "A genotype must be Genotype(normal=[(operation, input), ...], "),
        ("show --genotype x --space dart", "Unknown search space 'dart': did you mean 'darts' (known: darts"),
        ("list everything", "Got unexpected extra argument(s) (everything)."),
    ],
)
def test_other_verbs_refuse(refuse: Refuse, arguments: str, sentence: str) -> None:
    assert refuse(*arguments.split()).startswith(sentence)
    assert not list(Path().iterdir())


def test_train_settings_are_told_by_their_names(refuse: Refuse) -> None:
    source = ("train", "--genotype", GENOTYPE, "--set", "space.nodes=1")
    assert refuse(*source, "--epochs", "x") == "train.epochs must be a whole number, but got 'x'."
    assert refuse(*source, "--set", "train.lr=0") == "train.lr must be more than 0, but got 0.0."
    assert refuse(*source, "--set", "train.lrr=0").startswith("Unknown setting 'train.lrr': did you mean 'train.lr'")
    assert refuse(*source, "--batch-size", "2000").startswith(
        "A batch of 2000 needs at least as many training examples"
    )
    assert refuse(*source, "--batch-size", "2000", "--dry-run").startswith("A batch of 2000 needs at least as many")
    assert refuse("train", "--genotype", GENOTYPE).startswith("A genotype for space.nodes=4 must have 8 pairs in the")


def test_cuda_that_is_not_there(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def zeros(count: int, device: torch.device) -> torch.Tensor:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "zeros", zeros)
    expected = "The device must be one of this machine, cpu or auto, but got 'cuda'."
    assert refuse("search", "--device", "cuda") == expected
    assert refuse("train", "--genotype", GENOTYPE, "--set", "space.nodes=1", "--device", "cuda") == expected
    assert not list(Path().iterdir())


def cifar_parquet(folder: Path, labels: list[int], cut: int = 0, pixels: bytes | None = None) -> None:
    image = Image.new("RGB", (32, 32))
    image.save(folder / "image.png")
    content = (folder / "image.png").read_bytes() if pixels is None else pixels
    (folder / "image.png").unlink()
    for part in ("train", "test"):
        rows = pa.table({"img": [{"bytes": content}] * len(labels), "label": labels})
        pq.write_table(rows, folder / f"{part}.parquet")
        data = (folder / f"{part}.parquet").read_bytes()
        (folder / f"{part}.parquet").write_bytes(data[: len(data) - cut])


def cifar_pickle(folder: Path, content: object) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def folders(folder: Path, broken: bytes) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(5):
            Image.new("L", (8, 8)).save(folder / name / f"{index}.png")
    (folder / "dog" / "broken.png").write_bytes(broken)


def arrays(folder: Path, labels: Any, test: Any = None) -> None:
    pictures = np.zeros((len(labels), 8, 8), np.uint8)
    tests = {} if test is None else {"x_test": pictures[: len(test)], "y_test": np.array(test)}
    np.savez(folder / "data.npz", x=pictures, y=np.array(labels), **tests)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("boom",)


@pytest.mark.parametrize(
    ("scheme", "make", "sentence"),
    [
        ("npz:data.npz", lambda at: None, "The data 'npz:data.npz' must be readable, but data.npz: No such file or"),
        ("cifar10:.", lambda at: None, ". must hold cifar-10-batches-py or the files train*.parquet and test*.parquet"),
        ("cifar10:gone", lambda at: None, "cifar10 must be given a directory, but gone is none; check the path."),
        ("imagefolder:.", lambda at: None, ". must have a folder of images for each class, but has no folders"),
        (
            "npz:data.npz",
            lambda at: (at / "data.npz").touch(),
            "data.npz must be an .npz archive, but is not; write it",
        ),
        (
            "npz:data.npz",
            lambda at: (at / "data.npz").write_text("a,b\n1,2\n"),
            "data.npz must be an .npz archive, but is not; write it with numpy.savez.",
        ),
        (
            "cifar10:.",
            lambda at: cifar_parquet(at, list(range(10)), cut=20),
            "train.parquet must be a whole parquet file, but is damaged; copy it anew.",
        ),
        (
            "cifar10:.",
            lambda at: cifar_parquet(at, [*range(9), 10]),
            "The column label of train.parquet must be 0 to 9, but row 9 has 10.",
        ),
        (
            "cifar10:.",
            lambda at: cifar_parquet(at, list(range(10)), pixels=b"no image"),
            "Every image must decode, but row 0 of train.parquet does not: it is not an image; replace or remove it.",
        ),
        ("cifar10:.", lambda at: cifar_pickle(at, _Bomb()), "data_batch_1 must hold plain arrays, but names "),
        (
            "cifar10:.",
            lambda at: cifar_pickle(at, [1, 2]),
            "data_batch_1 must hold a dictionary, but holds list; unpack",
        ),
        (
            "imagefolder:.",
            lambda at: folders(at, b"no image"),
            "Every image must decode, but dog/broken.png does not: it is not an image; replace or remove it.",
        ),
        (
            "npz:data.npz",
            lambda at: arrays(at, [0, 1] * 10, test=[0, 2]),
            "y_test in data.npz must be 0 to 1, but row 1 has 2.",
        ),
        ("npz:data.npz", lambda at: arrays(at, [0, -1] * 10), "y in data.npz must be 0 or more, but row 1 has -1."),
        (
            "npz:data.npz",
            lambda at: arrays(at, [0, 2] * 10),
            "y in data.npz must have every class from 0 to 2, but has no 1; renumber the classes.",
        ),
        (
            "npz:data.npz",
            lambda at: arrays(at, [0] * 20 + [1], test=[0, 1]),
            "Both parts of the training set of npz-data must have every class, but '1' gets ",
        ),
        (
            "npz:data.npz",
            lambda at: arrays(at, [0, 1] * 10),
            "A batch of 64 needs at least as many training examples, but this part of npz-data has 8; choose a smaller "
            "--batch-size.",
        ),
    ],
)
def test_data_that_cannot_be_used(
    refuse: Refuse, scheme: str, make: Callable[[Path], object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Path())
    before = contents(Path())
    assert refuse("search", "--data", scheme, "--epochs", "1").startswith(sentence)
    assert contents(Path()) == before and not Path("boom").exists()


def test_data_that_cannot_be_read(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays(Path(), [0, 1] * 10)

    def forbid(path: Path, mode: str = "r") -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbid)
    sentence = "The data 'npz:data.npz' must be readable, but data.npz: Permission denied."
    assert refuse("search", "--data", "npz:data.npz") == sentence
