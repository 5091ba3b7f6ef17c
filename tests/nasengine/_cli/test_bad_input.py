"""Whatever is wrong is told in one sentence, with exit code 2, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from nasengine.loop import Loop
from nasengine.searching import SearchJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import GENOTYPE, SEARCH, TRAIN, assert_same_run, contents, flags, record, state

Refuse = Callable[..., str]
TINY = flags(SEARCH)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--space dart", "Unknown search space 'dart': did you mean 'darts' (known: darts"),
        ("--algo rart", "Unknown algorithm 'rart': did you mean 'rarts' (known: darts, rarts"),
        ("--data digit", "Unknown data scheme 'digit': did you mean 'digits' (known: cifar10, cifar100, digits, "),
        ("--set algo.bta=5", "Unknown setting 'algo.bta': did you mean 'algo.beta' (known: algo.alphas, algo.beta, "),
        (
            "--set serch.epochs=5",
            "Unknown group of settings 'serch': did you mean 'search' (known: algo, data, search, ",
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
        ("--set algo.weights=3", "algo.weights is a group of settings; set one of algo.weights.lr, "),
        ("--set space.channels=3", "space.channels must be an even number, but got 3."),
        ("--set nonsense", "A setting must be group.name=value such as space.x=1, but got 'nonsense'."),
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


def test_config_that_cannot_be_used(refuse: Refuse, ended: Path) -> None:
    Path("text.json").write_text("epochs: 3")
    assert refuse("search", "--config", "text.json") == "text.json must be a run.json of nasengine, but is not JSON."
    assert refuse("search", "--config", ended / "final") == (
        f"{ended / 'final'} must be of a run of 'nasengine search', but is of one of 'nasengine train'."
    )
    text = (ended / "run.json").read_text().replace('"epochs": 2', '"epochs": "two"')
    Path("changed.json").write_text(text)
    assert refuse("search", "--config", "changed.json") == "search.epochs must be a whole number, but got 'two'."


def test_resume_with_another_configuration(refuse: Refuse, stopped: Path) -> None:
    before = contents(stopped)
    told = "A run must go on with its own configuration, but "
    ask = "; drop what differs or give another --out."
    assert refuse("search", "--out", stopped, "--resume", "--epochs", "9") == (
        f"{told}search.epochs is 2 in {stopped} and 9 is asked for{ask}"
    )
    assert refuse("search", "--out", stopped, "--resume", "--algo", "darts").startswith(
        f"{told}algo.name is 'rarts' in {stopped} and 'darts' is asked for (and "
    )
    assert refuse("search", "--out", stopped, "--resume", "--data", "digits").startswith(f"{told}data.name is 'npz:")
    assert contents(stopped) == before


def test_resume_with_other_data(refuse: Refuse, cli: Run, small: str) -> None:
    shutil.copy(small.removeprefix("npz:"), "mine.npz")
    assert cli("search", "--data", "npz:mine.npz", "--out", "run", *TINY).code == 0
    text = Path("run/run.json").read_text().replace('"finished"', '"interrupted"')
    Path("run/run.json").write_text(text)
    with np.load("mine.npz") as data:
        np.savez("mine.npz", x=255 - data["x"], y=data["y"])
    before = contents(Path("run"))
    assert refuse("search", "--out", "run", "--resume").startswith(
        "A run must go on with its own data, but in run their fingerprint is '32 + 8 of (1, 8, 8), crc32 "
    )
    assert contents(Path("run")) == before


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def foreign(data: bytes) -> bytes:
    torch.save({"epoch": 3}, "foreign.pt")
    return Path("foreign.pt").read_bytes()


def bomb(data: bytes) -> bytes:
    return pickle.dumps(_Bomb())


@pytest.mark.parametrize("damage", [truncate, flip, foreign, bomb, lambda data: b""])
@pytest.mark.parametrize("verb", ["search", "train"])
def test_a_damaged_checkpoint(
    refuse: Refuse, request: pytest.FixtureRequest, damage: Callable[[bytes], bytes], verb: str
) -> None:
    run: Path = request.getfixturevalue("stopped" if verb == "search" else "stopped_training")
    file = run / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    before = contents(run)
    assert refuse(verb, "--out", run, "--resume") == (
        f"{file} must be a whole checkpoint of nasengine, but is damaged or another file; remove it to start the run "
        "again."
    )
    assert contents(run) == before and not Path("boom").exists()


def test_a_removed_checkpoint_starts_the_run_again(cli: Run, stopped: Path, ended: Path) -> None:
    (stopped / "checkpoint.pt").unlink()
    assert cli("search", "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, ended)


def test_the_checkpoint_of_another_run(refuse: Refuse, stopped: Path, ended: Path) -> None:
    file = stopped / "checkpoint.pt"
    shutil.copy(ended / "checkpoint.pt", file)
    before = contents(stopped)
    assert refuse("search", "--out", stopped, "--resume") == (
        f"{file} must be the checkpoint of this run, but belongs to another; remove it to start the run again."
    )
    assert contents(stopped) == before


def test_a_run_that_is_finished(refuse: Refuse, ended: Path) -> None:
    before = contents(ended)
    assert refuse("search", "--out", ended, "--resume") == (
        f"The run in {ended} is finished: nothing is left to go on with; give another --out for a new one."
    )
    assert refuse("train", ended, "--resume") == (
        f"The run in {ended / 'final'} is finished: nothing is left to go on with; give another --out for a new one."
    )
    assert refuse("search", "--out", ended) == (
        f"The run directory {ended} must be new or empty, but holds a run that is finished; give another --out."
    )
    assert refuse("train", ended, *flags(TRAIN)) == (
        f"The run directory {ended / 'final'} must be new or empty, but holds a run that is finished; give another "
        "--out."
    )
    assert contents(ended) == before


def test_a_run_of_another_verb(refuse: Refuse, ended: Path) -> None:
    assert refuse("search", "--out", ended / "final", "--resume") == (
        f"{ended / 'final'} must be of a run of 'nasengine search', but is of one of 'nasengine train'."
    )
    assert refuse("train", ended / "final") == (
        f"A training needs the run of a search, but {ended / 'final'} holds one of 'nasengine train'."
    )


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_that_another_process_holds(refuse: Refuse, stopped: Path, resume: list[str]) -> None:
    before = contents(stopped)
    with FileLock(stopped / ".lock"):
        assert refuse("search", "--out", stopped, *resume) == (
            f"A run must be held by one process, but another one holds {stopped}; wait for it or stop it."
        )
    assert contents(stopped) == before


def test_a_directory_that_is_occupied(refuse: Refuse, stopped: Path, small: str) -> None:
    before, quick = contents(stopped), ("--data", small, *TINY)
    assert refuse("search", *quick, "--out", stopped) == (
        f"The run directory {stopped} must be new or empty, but holds a run that is not finished; add --resume to go "
        "on with it, or give another --out."
    )
    assert contents(stopped) == before
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert refuse("search", *quick, "--out", "mine") == (
        "The run directory mine must be new or empty, but holds other files; give another --out."
    )
    assert os.listdir("mine") == ["notes.txt"]
    assert refuse("search", *quick, "--out", "mine/notes.txt") == (
        "The run directory mine/notes.txt must be writable, but File exists; give another --out."
    )
    assert refuse("search", *quick, "--out", "mine/notes.txt/below") == (
        "The run directory mine/notes.txt/below must be writable, but Not a directory; give another --out."
    )
    assert contents(Path()) == {"mine/notes.txt": b"mine"}


def test_a_directory_without_permission(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*arguments: object, parents: bool, exist_ok: bool) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbid)
    sentence = "The run directory run must be writable, but Permission denied; give another --out."
    assert refuse("search", "--out", "run") == sentence


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", ["checkpoint.pt", "history.csv", "run.json", "genotype.txt", "cells.svg", "cells.png"])
def test_no_space_left(cli: Run, stopped: Path, ended: Path, name: str) -> None:
    """Every file of a run meets a full disk; then there is room again."""
    before = contents(stopped)
    (stopped / f".partial-{name}").symlink_to("/dev/full")
    code, _, err = cli("search", "--out", stopped, "--resume")
    assert code == 2 and err == (
        f"nasengine: There must be space to save {stopped / name}, but the disk is full; what was saved before is "
        "whole: make room and go on with --resume.\n"
    )
    after = contents(stopped)
    assert all(name in after for name in before) and state(stopped)["step"] >= 2 and record(stopped)
    assert cli("search", "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, ended)


def test_divergence(cli: Run, small: str) -> None:
    arguments = ("--data", small, "--algo", "darts", *TINY, *flags(("algo.weights.lr=1e30", "algo.weights.clip=0")))
    code, _, err = cli("search", *arguments, "--out", "run")
    assert code == 2 and err.startswith("nasengine: Loss and weights must stay finite, but the ")
    assert err.endswith("; no state was saved before: start a new run with a smaller learning rate.\n")
    assert record(Path("run"))["status"] == "diverged"
    code, _, err = cli("search", "--out", "run", "--resume")
    assert code == 2 and err == (
        "nasengine: The run in run diverged and would do so again; start a new one with other settings and --out.\n"
    )


def test_divergence_keeps_the_last_good_state(cli: Run, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, before = SearchJob.step, contents(stopped)["checkpoint.pt"]

    def spoiled(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        return {name: value * float("nan") for name, value in step(job, number).items()}

    monkeypatch.setattr(SearchJob, "step", spoiled)
    code, _, err = cli("search", "--out", stopped, "--resume")
    assert code == 2 and err == (
        "nasengine: Loss and weights must stay finite, but the train loss became nan at step 3 (epoch 2); the last "
        f"good state, of step 2, is in {stopped}: start a new run with a smaller learning rate.\n"
    )
    assert contents(stopped)["checkpoint.pt"] == before


def test_a_search_that_has_not_finished_is_not_trained(refuse: Refuse, stopped: Path) -> None:
    before = contents(stopped)
    assert refuse("train", stopped) == (
        f"A training needs a finished search, but the one in {stopped} is not finished; go on with it by 'nasengine "
        "search --resume'."
    )
    assert contents(stopped) == before


def test_nothing_to_show(refuse: Refuse, stopped: Path) -> None:
    Path("empty").mkdir()
    assert refuse("show", "empty") == "There must be a run.json of nasengine at empty/run.json, but there is none."
    (stopped / "history.csv").unlink()
    assert refuse("show", stopped) == (
        f"A run must have ended its first epoch to be shown, but the one in {stopped} has not; wait or resume it."
    )
    Path("file").touch()
    assert refuse("show", "file") == "A run must be a directory that nasengine wrote, but file is a file."


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("cell.jpg", "A drawing must end in .svg or .png, but the path is 'cell.jpg'; change its suffix."),
        (
            "gone/cell.svg",
            "gone/cell.svg must be writable, but No such file or directory; what was saved before is whole.",
        ),
    ],
)
def test_a_drawing_that_cannot_be_written(refuse: Refuse, ended: Path, out: str, sentence: str) -> None:
    assert refuse("show", ended, "--out", out) == sentence


def test_a_bug_of_ours_is_not_hidden(cli: Run, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "_one_step", lambda loop: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("search", "--data", small, *TINY, "--out", "run")


def test_a_real_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "nasengine", "search", "--set", "algo.bta=5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("nasengine: Unknown setting 'algo.bta'") and done.stderr.count("\n") == 1
