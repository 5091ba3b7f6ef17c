"""Runs that cannot be begun, gone on with, saved or shown; what was saved before stays whole."""

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
import pytest
import torch
from filelock import FileLock

from nasengine.loop import Loop
from nasengine.searching import SearchJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import SEARCH, TRAIN, assert_same_run, contents, flags, record, state

Refuse = Callable[..., str]
TINY = flags(SEARCH)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("boom",)


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
