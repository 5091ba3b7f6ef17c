"""What is told of works that workers make."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasengine._cli import work_progress
from nasengine._cli.run_progress import RunProgress
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


def test_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    shown, work = RunProgress(), Work(Path("a"), "")
    with shown:
        shown.began("collect", Path("out"))
        bars = [shown.labels._bar.live, shown._works["collect"]._bar.live]
        assert [bar.is_started for bar in bars] == [True, False]
        shown.works(work, "started", 0, 2)
        assert [bar.is_started for bar in bars] == [False, True]
    assert [bar.is_started for bar in bars] == [False, False]
