"""A Ray cluster of two nodes: workers and the driver are killed, nothing finished is lost or made twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nasengine.workers import perform
from tests.nasengine.test_workers import ROOT, assert_same, lines, whole, works

__all__ = ["whole"]  # a fixture


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with one worker each, on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_worker_niceness", "0")  # else all that this machine does besides goes first
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture
def joined(cluster: str) -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


WORKS = 3  # a worker takes seconds to start, and every work takes two
DRIVER = f"""
import sys
from pathlib import Path
from nasengine.workers import perform
from tests.nasengine.test_workers import works

perform(works(sys.argv[1], Path(sys.argv[2]), count={WORKS}, deaths=1), "ray")
"""


@pytest.mark.usefixtures("joined")
def test_workers_and_the_driver_are_killed(small: str, whole: Path, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, small, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "log").exists() or sum(line.startswith("end") for line in lines(tmp_path)) < 1:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    time.sleep(1.0)
    ended = [line.removeprefix("end ") for line in lines(tmp_path) if line.startswith("end")]
    begun = {seed: lines(tmp_path).count(f"begin {seed}") for seed in ended}
    told: list[Any] = []
    perform(works(small, tmp_path, count=WORKS, deaths=1), "ray", lambda work, event, done, total: told.append(event))
    assert told.count("stood") == len(ended) < WORKS and told.count("finished") == WORKS - len(ended)
    assert all(lines(tmp_path).count(f"begin {seed}") == count for seed, count in begun.items())
    assert sorted(line for line in lines(tmp_path) if line.startswith("end")) == [
        f"end {seed}" for seed in range(WORKS)
    ]
    assert_same(whole, tmp_path)
    assert not list(tmp_path.glob(".seen-*"))


@pytest.mark.usefixtures("joined")
def test_workers_without_a_common_file_system(
    small: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path: None if path.name.startswith(".seen-") else touch(path))
    perform(works(small, tmp_path), "ray")
    assert_same(whole, tmp_path)
    assert not list(tmp_path.glob(".partial-*"))
