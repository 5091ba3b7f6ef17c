"""Independent runs: made once, wherever, and gone on with where a worker died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import nasengine
from nasengine.errors import InterruptedRun, MissingExtraError, RunError, SettingError
from nasengine.workers import Event, Work, checked_workers, perform, read, written
from tests.nasengine.lives import hire
from tests.nasengine.runs import assert_same_run

ROOT = Path(nasengine.__file__).parents[1]


def works(data: str, root: Path, count: int = 3, **more: Any) -> list[Work]:
    common = {"data": data, "log": str(root / "log"), **more}
    return [
        Work(root / f"seed-{seed}", "tests.nasengine.worked:train", {**common, "seed": seed}) for seed in range(count)
    ]


def lines(root: Path) -> list[str]:
    return (root / "log").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings that were made in this process."""
    root = tmp_path_factory.mktemp("whole")
    perform(works(small, root))
    return root


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers begin at once; those of the other tests are started as a run starts them."""
    monkeypatch.setattr("nasengine.workers._Crew._hire", hire)


def assert_same(one: Path, other: Path, count: int = 3) -> None:
    for seed in range(count):
        assert_same_run(one / f"seed-{seed}", other / f"seed-{seed}")


@pytest.mark.usefixtures("_forked")
def test_the_same_bits_by_local_processes_though_workers_die(small: str, whole: Path, tmp_path: Path) -> None:
    told: list[tuple[str, Event, int]] = []
    several = works(small, tmp_path, deaths=1)
    perform(several, 2, lambda work, event, done, total: told.append((work.directory.name, event, done)))
    assert_same(whole, tmp_path)
    assert sorted(lines(tmp_path)) == sorted(["begin 0", "begin 1", "begin 2"] * 2 + ["end 0", "end 1", "end 2"])
    assert [event for _, event, _ in told].count("again") == 3
    assert [done for _, event, done in told if event == "finished"] == [1, 2, 3]
    told.clear()
    perform(several, 2, lambda work, event, done, total: told.append((work.directory.name, event, done)))
    assert [(event, done) for _, event, done in told] == [("stood", 1), ("stood", 2), ("stood", 3)]
    assert lines(tmp_path).count("begin 0") == 2


@pytest.mark.usefixtures("_forked")
def test_a_worker_that_is_told_to_stop_by_someone_else_is_replaced(small: str, whole: Path, tmp_path: Path) -> None:
    perform(works(small, tmp_path, count=2, deaths=1, death=signal.SIGTERM), 2)
    assert_same(whole, tmp_path, count=2)


@pytest.mark.usefixtures("_forked")
def test_a_work_whose_worker_always_dies(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasengine.workers.TRIES", 2)
    with pytest.raises(RunError, match=r"must live to the end of its work, but the one of .*seed-0 died 2 times"):
        perform(works(small, tmp_path, count=1, deaths=9), 2)


def wait_for_both(root: Path) -> list[dict[str, Any]]:
    """The records of the first two trainings once both have saved a step."""
    deadline = time.monotonic() + 60
    while not all((root / f"seed-{seed}" / "checkpoint.pt").exists() for seed in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [json.loads((root / f"seed-{seed}" / "run.json").read_text()) for seed in (0, 1)]


def test_stopping_stops_all_and_loses_nothing(small: str, tmp_path: Path) -> None:
    def stop() -> None:
        wait_for_both(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(InterruptedRun, match=r"^Stopped by SIGINT with 2 under way and 1 to come, all is saved\.$"):
        perform(works(small, tmp_path, settings=["train.epochs=100000"]), 2)
    assert [record["status"] for record in wait_for_both(tmp_path)] == ["interrupted"] * 2
    assert not (tmp_path / "seed-2").exists()


def test_workers_end_with_who_began_them(small: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom nasengine.workers import perform\n"
        "from tests.nasengine.test_workers import works\n"
        "perform(works(sys.argv[1], Path(sys.argv[2]), settings=['train.epochs=100000']), 2)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, small, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_for_both(tmp_path)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while any(record["status"] != "interrupted" for record in wait_for_both(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_run_refuses_is_raised_here(workers: int, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^A number must be even, but got 3; give 4\.$"):
        perform([Work(tmp_path / "a", "tests.nasengine.worked:refuse")], workers)


def test_what_fails_in_a_worker_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)A run failed in a worker:.*worked\.py.*ZeroDivisionError: of a test"):
        perform([Work(tmp_path / "a", "tests.nasengine.worked:fail")], 2)


def test_files_where_the_command_is_given_hide_nothing(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    perform(works(small, tmp_path, count=1), 2)
    assert lines(tmp_path) == ["begin 0", "end 0"]


def test_works_are_plain_values() -> None:
    work = Work(Path("/a/b"), "module:function", {"seed": 3, "more": ["x"]}, device="cuda")
    assert read(written(work)) == work
    with pytest.raises(SettingError, match=r"must find space, data and the like by name, .* or take one worker\.$"):
        written(Work(Path("a"), "module:function", {"task": object()}))


@pytest.mark.parametrize("workers", ["0", "-1", "two", "", "ray:", 1.5j, None])
def test_workers_that_are_none(workers: Any) -> None:
    with pytest.raises(
        SettingError, match=r"^Workers must be a number of processes from 1 on, ray, or ray://HOST:PORT"
    ):
        checked_workers(workers)


def test_a_cluster_that_does_not_answer(small: str, tmp_path: Path) -> None:
    for address, why in (("ray://127.0.0.1:9", "Connection refused"), ("ray://", "it names no machine")):
        with pytest.raises(RunError, match=rf"^A Ray cluster must answer at {address} within 10 seconds.*{why}"):
            perform(works(small, tmp_path), address)
    assert not (tmp_path / "seed-0").exists()


def test_without_ray(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nasengine\[ray\]'"):
        perform(works(small, tmp_path), "ray")
    for workers in ("ray", "ray://127.0.0.1:9"):
        with pytest.raises(MissingExtraError, match=r"pip install 'nasengine\[ray\]'"):
            checked_workers(workers)
