from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nasengine.errors import RunError
from nasengine.run_directory import Run, read_record, read_run_json
from tests.nasengine.runs import contents, record, same

CONFIG = {"space": {"name": "darts", "sizes": (1, 2)}, "algo": {}, "data": {}, "search": {"epochs": 3, "seed": 0}}
FACTS = {"task": "digits", "fingerprint": "1 + 1"}
CPU = torch.device("cpu")
STATE = {"weights": torch.arange(5.0), "step": 3, "sums": {}, "python": (3, (1, 2), None), "text": "x", "half": 0.5}


def start(path: Path) -> Run:
    return Run.start(path, "search", CONFIG, FACTS)


def resume(path: Path, verb: str = "search", config: dict[str, Any] = CONFIG, facts: dict[str, Any] = FACTS) -> Run:
    return Run.resume(path, verb, config, facts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run directory with a checkpoint, that nobody holds."""
    with start(tmp_path / "run") as run:
        run.save_checkpoint(STATE)
        run.write_history([{"epoch": 1, "loss": 0.1}])
    return tmp_path / "run"


def test_start_writes_the_record(tmp_path: Path) -> None:
    with start(tmp_path / "a" / "b") as run:
        written = record(run.path)
    assert written["verb"] == "search" and written["status"] == "running"
    assert written["config"]["space"] == {"name": "darts", "sizes": [1, 2]}
    assert written["facts"] == FACTS and set(written["versions"]) == {"nasengine", "python", "torch"}
    assert set(contents(tmp_path / "a" / "b")) == {"run.json"}


@pytest.mark.parametrize("there", [False, True])
def test_a_start_of_which_nothing_is_kept_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    above = tmp_path / "kept"
    above.mkdir()
    if there:
        (above / "a" / "b").mkdir(parents=True)
    with start(above / "a" / "b") as run:
        run.discard([])
    assert [path.name for path in above.rglob("*")] == (["a", "b"] if there else [])
    with start(above / "a" / "b") as run:
        run.write_text("labels.csv", "1")
        run.discard([])
    assert set(contents(above / "a" / "b")) == {"labels.csv"}


def test_two_runs_of_one_second_have_their_own_identity(tmp_path: Path) -> None:
    with start(tmp_path / "a") as one, start(tmp_path / "b") as other:
        assert one.record["id"] != other.record["id"]


def test_git_commit_of_the_checkout(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with start(tmp_path / "a") as run:
        git = run.record["git"]
    if not (root / ".git").exists():
        assert git is None
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    assert git["commit"] == head.stdout.strip() and isinstance(git["dirty"], bool)


def test_checkpoint_comes_back_as_it_was(path: Path) -> None:
    with resume(path) as run:
        loaded = run.load_checkpoint(CPU)
    assert loaded is not None and same(loaded, STATE)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        assert run.load_checkpoint(CPU) is None


def test_history_is_a_table(path: Path) -> None:
    with resume(path) as run:
        run.write_history([{"epoch": 1, "loss": 0.1, "cell": "a, b"}, {"epoch": 2, "loss": 1 / 3, "cell": "c"}])
        assert (path / "history.csv").read_text() == f'epoch,loss,cell\n1,0.1,"a, b"\n2,{1 / 3!r},c\n'
        run.write_history([])
        assert (path / "history.csv").read_text() == ""


def test_a_start_that_was_killed_leaves_a_directory_to_start_in(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial-run.json").write_text("{")
    (tmp_path / "run" / ".lock").touch()
    with start(tmp_path / "run") as run:
        assert set(contents(run.path)) == {"run.json"}


def test_start_refuses_foreign_files_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"must be new or empty, but holds other files; give another --out\.$"):
        start(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("running", "not finished; add --resume"),
        ("interrupted", "not finished; add --resume"),
        ("finished", "finished; give another --out"),
        ("diverged", "diverged; give another --out"),
    ],
)
def test_start_refuses_another_run(path: Path, status: str, told: str) -> None:
    with resume(path) as run:
        run.update({"status": status})
    before = contents(path)
    with pytest.raises(RunError, match=told):
        start(path)
    assert contents(path) == before


@pytest.mark.parametrize("begin", [start, resume])
def test_one_process_holds_a_run(path: Path, begin: Callable[[Path], Run]) -> None:
    lock = f"lock = filelock.FileLock({str(path / '.lock')!r})"
    code = f"import filelock; {lock}; lock.acquire(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(
            RunError, match=r"must be held by one process, but another one holds .*; wait for it or stop"
        ):
            begin(path)
        other.kill()
    with resume(path):
        pass


def test_held_in_this_process_too(path: Path) -> None:
    with resume(path), pytest.raises(RunError, match="another one holds"):
        resume(path)
    with resume(path):
        pass


def test_a_refused_run_is_let_go(path: Path) -> None:
    with pytest.raises(RunError):
        resume(path, verb="train")
    with pytest.raises(RunError):
        start(path)
    with resume(path):
        pass


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"search": {"epochs": 4, "seed": 0}}, "search.epochs is 3 in .* and 4 is asked for; drop what differs"),
        ({"search": {"epochs": 4, "seed": 1}}, r"search.epochs is 3 in .* and 4 is asked for \(and 1 more differ\)"),
        ({"space": {"name": "darts", "sizes": (1, 3)}}, r"space.sizes is \[1, 2\] in .* and \(1, 3\) is asked for"),
        ({"search": {"epochs": 3, "seed": 0, "new": 1}}, "search.new is None in .* and 1 is asked for"),
    ],
)
def test_resume_needs_the_same_configuration(path: Path, changes: dict[str, Any], told: str) -> None:
    before = contents(path)
    with pytest.raises(RunError, match=told):
        resume(path, config=CONFIG | changes)
    assert contents(path) == before


def test_resume_may_change_how_often_it_saves(path: Path) -> None:
    with resume(path, config=CONFIG | {"search": {"epochs": 3, "seed": 0, "checkpoint_seconds": 1.0}}) as run:
        assert run.record["config"]["search"] == {"epochs": 3, "seed": 0}


def test_resume_needs_the_same_data(path: Path) -> None:
    with pytest.raises(RunError, match=r"its own data, but in .* their fingerprint is '1 \+ 1' and now it is '2 \+ 1'"):
        resume(path, facts=FACTS | {"fingerprint": "2 + 1"})


def test_resume_of_another_verb(path: Path) -> None:
    with pytest.raises(RunError, match="must hold a run of 'nasengine train' to go on with, but holds one of 'search'"):
        resume(path, verb="train")


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_resume_of_a_run_that_has_ended(path: Path, status: str) -> None:
    with resume(path) as run:
        run.update({"status": status})
    with pytest.raises(RunError, match=f"The run in .* (is )?{status}"):
        resume(path)


def limited(**others: int) -> dict[str, Any]:
    return {**CONFIG, "search": {"epochs": 3, "seed": 0, "max_flops": 7, **others}}


def test_a_finished_search_can_answer_anew_under_other_limits(path: Path) -> None:
    with resume(path) as run:
        run.update({"status": "finished", "result": {"accuracy": 0.5}})
    before = contents(path)
    with resume(path, config=limited()) as run:
        assert run.record["status"] == "interrupted" and "result" not in run.record
        assert run.record["config"]["search"] == limited()["search"]
        assert contents(path) == before  # nothing is written before it begins
    with pytest.raises(RunError, match="is finished: nothing is left to go on with"):
        resume(path, config=limited(epochs=4))
    with pytest.raises(RunError, match="must go on with its own data"):
        resume(path, config=limited(), facts={**FACTS, "fingerprint": "3"})


def test_an_unfinished_search_keeps_its_limits(path: Path) -> None:
    with pytest.raises(RunError, match=r"own configuration, but search\.max_flops is None in .* and 7 is asked for"):
        resume(path, config=limited())


def test_resume_sees_what_another_process_did_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nasengine.run_directory as module

    lock = module._locked

    def late(where: Path) -> Any:
        (where / "run.json").write_text(json.dumps(record(where) | {"status": "finished"}))
        return lock(where)

    monkeypatch.setattr(module, "_locked", late)
    with pytest.raises(RunError, match="is finished"):
        resume(path)


def fail_rename(patch: pytest.MonkeyPatch) -> None:
    def replace(*paths: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(os, "replace", replace)


def fail_sync(patch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(os, "fsync", fsync)


def fail_open(patch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    patch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (fail_rename, "must be writable, but Input/output error; what was saved before is whole"),
        (fail_sync, "must be space to save .*, but the disk is full; what was saved before is whole: make room"),
        (fail_open, "must be writable, but Permission denied; what was saved before is whole"),
    ],
)
@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json", "history.csv"])
def test_a_failing_write_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None], told: str, name: str
) -> None:
    before = contents(path)
    with resume(path) as run:
        saves = {
            "checkpoint.pt": lambda: run.save_checkpoint({"weights": torch.zeros(10_000)}),
            "run.json": lambda: run.update({"status": "other"}),
            "history.csv": lambda: run.write_history([{"epoch": 2}]),
        }
        with monkeypatch.context() as patch:
            fail(patch)
            with pytest.raises(RunError, match=told) as caught:
                saves[name]()
        assert str(path / name) in str(caught.value)
    assert contents(path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_full_disk(path: Path, size: int) -> None:
    before = contents(path)
    (path / ".partial-checkpoint.pt").symlink_to("/dev/full")
    with resume(path) as run, pytest.raises(RunError, match="the disk is full; what was saved before is whole"):
        run.save_checkpoint({"weights": torch.zeros(size)})
    assert contents(path) == before


def test_a_writer_that_stops_half_way_leaves_the_old_file(path: Path) -> None:
    def write(where: Path) -> None:
        where.write_text("half")
        raise KeyboardInterrupt

    with resume(path) as run:
        run.write_text("cells.svg", "old")
        with pytest.raises(KeyboardInterrupt):
            run.write_file("cells.svg", write)
    assert (path / "cells.svg").read_text() == "old" and not list(path.glob(".partial*"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\x80", "is not JSON"),
        ("[]", "has no entries"),
        ("{}", "has no entry 'id'"),
        ('{"id": "a", "status": "finished", "config": {}, "facts": {}}', "has no known verb"),
        ('{"id": "a", "status": "finished", "config": 3, "facts": {}, "verb": "search"}', "has no entry 'config'"),
        (
            '{"id": "a", "status": "finished", "config": {}, "facts": {}, "verb": "train"}',
            "has no entry 'config.space'",
        ),
        (
            '{"id": "a", "status": "", "config": {"space": {}, "data": {}, "train": {}}, "facts": {}, "verb": "train"}',
            "has no entry 'config.architecture'",
        ),
    ],
)
def test_a_record_of_something_else(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=f"must be a run.json of nasengine, but {told}"):
        read_run_json(file)


def test_places_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where, told in (
        (tmp_path / "nothing", "is missing"),
        (tmp_path / "file", "is a file"),
        (tmp_path, "there is none"),
        (tmp_path / ("n" * 300), "is missing"),
    ):
        with pytest.raises(RunError, match=told):
            read_record(where)
    with pytest.raises(RunError, match="cannot be read: Not a directory"):
        read_run_json(tmp_path / "file" / "run.json")


@pytest.mark.parametrize(("out", "reason"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_places_where_no_run_can_be(tmp_path: Path, out: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=f"must be writable, but {reason}; give another --out"):
        start(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only")]
)
def test_a_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def mkdir(*arguments: object, parents: bool, exist_ok: bool) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RunError, match=f"must be writable, but {error.strerror}; give another --out"):
        start(tmp_path / "run")
