"""What is told of works that workers make."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasengine._cli import work_progress
from nasengine._cli.work_progress import WorkProgress
from nasengine.workers import Work


def test_time_counts_from_the_first_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [5.0]
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: now[0])
    progress, work = WorkProgress("training"), Work(Path("a"), "")
    now[0] = 1000.0  # other stages came first
    progress(work, "started", 0, 3)
    now[0] = 1010.0
    progress(work, "finished", 1, 3)
    progress.stop()
    assert "training 1/3  a finished  left 20 s" in capsys.readouterr().out
