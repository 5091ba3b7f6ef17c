"""Who waits for loops to be compiled is told why."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from nasengine import launch

kernels = pytest.importorskip("nasengine.kernels", reason="numba is not installed")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loops are compiled anew, which takes a moment, and longer than it may take in silence."""
    assert launch.compiled() in (True, False)
    monkeypatch.setattr(launch, "_SILENT", 0.01)
    monkeypatch.setattr(kernels, "compile_all", lambda: time.sleep(0.3))
    launch.compiled.cache_clear()
    yield
    launch.compiled.cache_clear()


@pytest.mark.usefixtures("anew")
def test_a_compilation_is_told_once() -> None:
    notes: list[str] = []
    with launch.telling(notes.append):
        assert launch.compiled() and launch.compiled()
    assert notes == ["loops are being compiled for this machine, once: that takes about 25 s"]


@pytest.mark.usefixtures("anew")
def test_a_cache_is_read_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SILENT", 0.2)
    monkeypatch.setattr(kernels, "compile_all", lambda: None)
    notes: list[str] = []
    with launch.telling(notes.append):
        assert launch.compiled()
    time.sleep(0.3)
    assert not notes


@pytest.mark.usefixtures("anew")
def test_without_an_observer_it_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nasengine")
    assert launch.compiled()
    assert caplog.messages == [launch.COMPILING]
