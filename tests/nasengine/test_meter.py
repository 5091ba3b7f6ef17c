from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nasengine import meter
from nasengine.errors import DivergedError
from nasengine.meter import Meter, NotFinite
from tests.nasengine.runs import history, record, same, state
from tests.nasengine.test_loop import Recorder, Toy, run
from tests.nasengine.waits import META, waits


def test_numbers_of_main_memory_are_looked_at_once() -> None:
    found = Meter()
    for step, loss in enumerate((1.0, 2.0, 6.0), start=1):
        found.add(step, {"loss": torch.tensor(loss), "hits": torch.tensor(step)})
        assert found.is_due() and found.look() is None
    assert found.means(3) == {"loss": 3.0, "hits": 2.0}
    found.clear({"loss": torch.tensor(4.0)})
    assert found.means(2) == {"loss": 2.0} and found.look() is None
    found.clear()
    assert found.means(1) == {}


def test_the_first_number_that_is_not_finite() -> None:
    found = Meter()
    found.add(7, {"loss": torch.tensor(1.0), "other": torch.tensor(2.0)})
    found.add(8, {"loss": torch.tensor(1.0), "other": torch.tensor(-math.inf)})
    found.add(9, {"loss": torch.tensor(math.nan), "other": torch.tensor(2.0)})
    assert found.look() == NotFinite(8, "other", -math.inf)
    assert found.look() is None


def test_numbers_elsewhere_wait_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, clock = Meter(), [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    found._looked = 0.0
    with waits() as waited:
        for step in range(3):
            found.add(step, {"loss": torch.empty((), device=META), "hits": torch.empty((), device=META)})
            assert not found.is_due()
    assert not waited
    clock[0] = meter.SECONDS
    assert found.is_due()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers as on a GPU, looked at where they must be."""
    monkeypatch.setattr(Meter, "is_due", lambda self: False)


def test_a_run_that_looks_now_and_then_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "near", Toy())
    monkeypatch.setattr(Meter, "is_due", lambda self: False)
    recorder = Recorder()
    run(tmp_path / "far", Toy(), observer=recorder)
    assert [event[1:] for event in recorder.events if event[0] == "stepped"] == [(4, 1.5), (8, 5.5), (12, 9.5)]
    assert history(tmp_path / "far") == history(tmp_path / "near")
    assert same(state(tmp_path / "far"), state(tmp_path / "near"))


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize(("seconds", "kept"), [(1000.0, 4), (0.0, 5)])
def test_a_loss_that_diverges_is_told_by_its_step_and_not_saved(tmp_path: Path, seconds: float, kept: int) -> None:
    toy = Toy()
    toy.loss = lambda step: math.nan if step == 5 else 1.0
    with pytest.raises(
        DivergedError, match=rf"became nan at step 6 \(epoch 2\); the last good state, of step {kept}, "
    ):
        run(tmp_path, toy, seconds=seconds)
    assert record(tmp_path)["status"] == "diverged" and state(tmp_path)["step"] == kept
