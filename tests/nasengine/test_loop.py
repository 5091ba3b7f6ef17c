from __future__ import annotations

import errno
import os
import random
import signal
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nasengine.errors import DivergedError, InterruptedRun, RunError
from nasengine.loop import Loop, Observer, seeded
from nasengine.microbatches import Division
from nasengine.run_directory import Row, Run
from tests.nasengine.runs import contents, history, record, same, state

CONFIG: dict[str, Any] = {"space": {}, "algo": {}, "data": {}, "search": {}}


class Toy:
    """A job whose weight walks at random, by all three global generators."""

    epochs, steps_per_epoch, device = 3, 4, torch.device("cpu")

    def __init__(self) -> None:
        self.weight = torch.zeros(2)
        self.finished = 0
        self.at: dict[int, Callable[[Toy], None]] = {}
        self.loss: Callable[[int], float] = float
        self.division = Division()

    def step(self, step: int) -> Mapping[str, Tensor]:
        self.weight += torch.rand(2) + random.random() + float(np.random.rand())
        self.at.get(step, lambda toy: None)(self)
        return {"train_loss": torch.tensor(self.loss(step)), "accuracy": torch.tensor(step % 2)}

    def end_epoch(self, epoch: int) -> Row:
        return {"first": float(self.weight[0]), "word": f"epoch {epoch}"}

    def finish(self, run: Run) -> Mapping[str, Any]:
        self.finished += 1
        return {"first": float(self.weight[0])}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight.copy_(state["weight"])


def run(path: Path, toy: Toy, *, observer: Observer | None = None, seconds: float = 60.0, seed: int = 0) -> Any:
    begin = Run.resume if (path / "run.json").exists() else Run.start
    with begin(path, "search", CONFIG, {}) as held, seeded(seed, 0):
        return Loop(held, toy, observer or Observer(), seconds)()


class Recorder(Observer):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def started(self, run: Run, job: object, step: int) -> None:
        self.events.append(("started", step))

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        self.events.append(("stepped", step, means["train_loss"]))
        assert seconds_per_step > 0

    def epoch_ended(self, epoch: int, row: Row) -> None:
        self.events.append(("epoch", epoch))

    def saved(self, step: int) -> None:
        self.events.append(("saved", step))


def test_history_has_the_means_of_every_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, Toy())
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["train_loss"]) for row in rows] == [1.5, 5.5, 9.5]
    assert [float(row["accuracy"]) for row in rows] == [0.5, 0.5, 0.5]
    assert [row["word"] for row in rows] == ["epoch 1", "epoch 2", "epoch 3"]
    assert float(rows[-1]["first"]) == result["first"]
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header == "epoch,train_loss,accuracy,first,word,seconds,seconds_in_steps"


def test_the_record_tells_how_it_ended(tmp_path: Path) -> None:
    result = run(tmp_path, Toy())
    written = record(tmp_path)
    assert written["status"] == "finished" and written["step"] == 12 and written["result"] == result
    assert written["seconds"] >= 0 and written["device"].startswith("cpu, ")
    assert set(contents(tmp_path)) == {"run.json", "history.csv", "checkpoint.pt"}


def test_an_observer_sees_it_all(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, Toy(), observer=recorder)
    assert recorder.events[:6] == [
        ("started", 0),
        ("stepped", 1, 0.0),
        ("stepped", 2, 0.5),
        ("stepped", 3, 1.0),
        ("stepped", 4, 1.5),
        ("epoch", 1),
    ]
    assert recorder.events[6:8] == [("saved", 4), ("stepped", 5, 4.0)] and recorder.events[-1] == ("saved", 12)


@pytest.mark.parametrize(("seconds", "saves"), [(0.0, list(range(1, 13))), (1000.0, [4, 8, 12])])
def test_checkpoints_by_the_clock_and_after_every_epoch(tmp_path: Path, seconds: float, saves: list[int]) -> None:
    recorder = Recorder()
    run(tmp_path, Toy(), observer=recorder, seconds=seconds)
    assert [event[1] for event in recorder.events if event[0] == "saved"] == saves


def stop(number: signal.Signals) -> Callable[[Toy], None]:
    return lambda toy: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", range(12))
def test_stopped_and_resumed_is_as_never_stopped(tmp_path: Path, number: signal.Signals, step: int) -> None:
    run(tmp_path / "whole", Toy())
    toy, path = Toy(), tmp_path / "stopped"
    toy.at[step] = stop(number)
    with pytest.raises(
        InterruptedRun, match=rf"^Stopped by {number.name} after step {step + 1} of 12, all is saved\.$"
    ):
        run(path, toy)
    assert record(path)["status"] == "interrupted" and record(path)["step"] == step + 1 and not toy.finished
    run(path, Toy())
    assert same(state(path), state(tmp_path / "whole")) and history(path) == history(tmp_path / "whole")
    assert record(path)["result"]["first"] == record(tmp_path / "whole")["result"]["first"]


def test_killed_between_two_checkpoints(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(toy: Toy) -> None:
        raise Killed

    run(tmp_path / "whole", Toy())
    for step in (2, 5, 6, 11):  # the first one comes before the first checkpoint
        toy = Toy()
        toy.at[step] = kill
        with pytest.raises(Killed):
            run(tmp_path / "killed", toy)
    run(tmp_path / "killed", Toy())
    assert same(state(tmp_path / "killed"), state(tmp_path / "whole"))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


def test_killed_while_it_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "finish", lambda toy, run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, Toy())
    assert record(tmp_path)["status"] == "running"
    recorder = Recorder()
    assert run(tmp_path, Toy(), observer=recorder)["first"] == float(history(tmp_path)[-1]["first"])
    assert recorder.events == [("started", 12)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_finishes(tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    reached: list[int] = []

    def finish(toy: Toy, run: Run) -> Mapping[str, Any]:
        run.write_text("half", "of what is left")
        os.kill(os.getpid(), number)
        reached.append(1)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "finish", finish)
        with pytest.raises(
            InterruptedRun, match=rf"^Stopped by {number.name} after step 12 of 12, all is saved\.$"
        ) as caught:
            run(tmp_path / "stopped", Toy())
    assert caught.value.__suppress_context__ and not reached
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert record(tmp_path / "stopped")["status"] == "interrupted" and "result" not in record(tmp_path / "stopped")
    run(tmp_path / "whole", Toy())
    run(tmp_path / "stopped", Toy())
    assert record(tmp_path / "stopped")["result"]["first"] == record(tmp_path / "whole")["result"]["first"]
    assert same(state(tmp_path / "stopped"), state(tmp_path / "whole"))


def test_ctrl_c_that_a_job_raises_itself_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(toy: Toy, run: Run) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Toy, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Toy())


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(toy: Toy) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    toy = Toy()
    toy.at[5] = twice
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy)
    assert record(tmp_path)["step"] == 4


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    toy = Toy()
    toy.at[1] = stop(signal.SIGTERM)
    with pytest.raises(InterruptedRun):
        run(tmp_path, toy)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, Toy())))
    thread.start()
    thread.join()
    assert results and record(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(tmp_path: Path, value: float) -> None:
    toy = Toy()
    toy.loss = lambda step: value if step == 5 else 1.0
    with pytest.raises(DivergedError) as caught:
        run(tmp_path, toy)
    assert str(caught.value) == (
        f"Loss and weights must stay finite, but the train loss became {value} at step 6 (epoch 2); the last good "
        f"state, of step 4, is in {tmp_path}: start a new run with a smaller learning rate."
    )
    assert record(tmp_path)["status"] == "diverged" and state(tmp_path)["step"] == 4
    assert [row["epoch"] for row in history(tmp_path)] == ["1"]


def test_divergence_before_anything_was_saved(tmp_path: Path) -> None:
    toy = Toy()
    toy.loss = lambda step: float("nan")
    with pytest.raises(DivergedError, match=r"at step 1 \(epoch 1\); no state was saved before: start a new run"):
        run(tmp_path, toy)
    assert set(contents(tmp_path)) == {"run.json"}


@pytest.mark.parametrize(("step", "kept"), [(5, 5), (7, 7)])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, step: int, kept: int) -> None:
    def spoil(toy: Toy) -> None:
        toy.weight[1] = float("nan")

    toy = Toy()
    toy.at[step] = spoil
    with pytest.raises(DivergedError, match=rf"but a weight became NaN or infinite at step {step + 1} \(epoch 2\)"):
        run(tmp_path, toy, seconds=0.0)
    assert bool(torch.isfinite(state(tmp_path)["job"]["weight"]).all()) and state(tmp_path)["step"] == kept
    assert [row["epoch"] for row in history(tmp_path)] == ["1"]


def test_what_is_not_finite_from_the_start_is_no_divergence(tmp_path: Path) -> None:
    class Masked(Toy):
        mask = torch.full((2, 2), -torch.inf).triu(1)

        def state_dict(self) -> dict[str, Any]:
            return {"weight": self.weight, "masks": [self.mask]}

    toy = Masked()
    run(tmp_path / "whole", toy)
    assert toy.finished == 1 and record(tmp_path / "whole")["status"] == "finished"
    toy = Masked()
    toy.at[5] = lambda toy: toy.weight.fill_(torch.inf)  # type: ignore[assignment, return-value]
    with pytest.raises(DivergedError):
        run(tmp_path / "broken", toy)


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    toy = Toy()
    toy.at[5] = stop(signal.SIGINT)
    with pytest.raises(InterruptedRun):
        run(tmp_path, toy)
    other = Toy()
    other.weight = torch.zeros(3)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="must fit the space and the algorithm, but was written by another version"):
        run(tmp_path, other)
    assert contents(tmp_path) == before


class Writer:
    """In the place of TensorBoard's."""

    made: list[Writer]

    def __init__(self, path: str, purge_step: int) -> None:
        self.path, self.purge_step, self.closed = path, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made = []
    return Writer.made


def test_curves_of_all_numbers(tmp_path: Path, writers: list[Writer]) -> None:
    run(tmp_path, Toy())
    (writer,) = writers
    assert writer.path == str(tmp_path) and writer.purge_step == 0 and writer.closed
    assert {name for name, _, _ in writer.scalars} == {
        *("train_loss", "accuracy", "first", "seconds", "seconds_in_steps")
    }
    assert [(value, step) for name, value, step in writer.scalars if name == "train_loss"] == [
        (1.5, 4),
        (5.5, 8),
        (9.5, 12),
    ]


def test_curves_of_a_resumed_run_replace_what_is_repeated(tmp_path: Path, writers: list[Writer]) -> None:
    toy = Toy()
    toy.at[5] = stop(signal.SIGINT)
    with pytest.raises(InterruptedRun):
        run(tmp_path, toy)
    run(tmp_path, Toy())
    assert [writer.purge_step for writer in writers] == [0, 6] and all(writer.closed for writer in writers)


def test_curves_on_a_full_disk(tmp_path: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(writer: Writer) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "flush", flush)
    with pytest.raises(RunError, match="the disk is full; what was saved before is whole"):
        run(tmp_path, Toy())
    assert writers[0].closed
