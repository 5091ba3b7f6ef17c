"""The one loop: steps, epochs, checkpoints, curves, interruption and divergence of a search or a training."""

from __future__ import annotations

import gc
import io
import math
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nasengine.allocator import keep_pages
from nasengine.cost import peak_memory
from nasengine.curves import Curves
from nasengine.errors import DeviceMemoryError, DivergedError, InterruptedRun, RunError
from nasengine.launch import telling
from nasengine.meter import Meter
from nasengine.microbatches import Division, is_out_of_memory, within_memory
from nasengine.run_directory import Row, Run
from nasengine.seeding import generator
from nasengine.shared_run import agreed, ranks_of
from nasengine.wording import counted


class Job(Protocol):
    """What the loop runs. All that changes is in its state."""

    epochs: int
    steps_per_epoch: int
    device: torch.device
    division: Division

    def step(self, step: int) -> Mapping[str, Tensor]:
        """One step; 0-dim tensors whose means over the epoch are worth knowing, the first of them a loss."""

    def end_epoch(self, epoch: int) -> Row:
        """Further entries of the epoch's row."""

    def finish(self, run: Run) -> Mapping[str, Any]:
        """Writes what the run leaves, and gives the entries of its result."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Observer:
    """Sees a run; the command line shows it, a program may do as it likes. This one is silent."""

    def started(self, run: Run, job: Job, step: int) -> None:
        """The loop begins at a step, more than 0 when a run goes on."""

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        """Steps are done; the means of the epoch so far. On a GPU not after every step: it would wait for that."""

    def epoch_ended(self, epoch: int, row: Row) -> None:
        """An epoch is done; its row of history.csv."""

    def saved(self, step: int) -> None:
        """A checkpoint is written."""

    def note(self, text: str) -> None:
        """Something worth telling happened."""


class Loop:
    """Runs a job in a run directory, from its checkpoint if there is one.

    After every epoch and every `checkpoint_seconds` the whole state is saved: of the job, of the means and history, and
    all random states. SIGINT and SIGTERM save after the current step, or leave the end of the job undone, and
    raise InterruptedRun. Of processes that share a run all stop after the same step, whichever was asked.

    Where the memory of the device is exhausted by a step, the run goes back to what was saved last, and on with batches
    that are divided further; DeviceMemoryError where that is not possible.
    """

    def __init__(self, run: Run, job: Job, observer: Observer, checkpoint_seconds: float) -> None:
        self.run, self.job, self.observer, self.checkpoint_seconds = run, job, observer, checkpoint_seconds
        self.step, self.saved_step, self.seconds, self.step_seconds = 0, 0, 0.0, 0.0
        self.meter, self._told = Meter(), (0, 0.0)
        self.history: list[dict[str, float | int | str]] = []
        self._start = b""
        self._unbounded = not_finite(job.state_dict())  # such as masks of -inf

    def __call__(self) -> dict[str, Any]:
        """Runs to the end and gives the result, which is also in run.json."""
        keep_pages()
        try:
            with telling(self.observer.note):
                return self._whole()
        except DeviceMemoryError:
            self.run.update({"status": "interrupted"})
            raise

    def _whole(self) -> dict[str, Any]:
        self._restore()
        job, spe = self.job, self.job.steps_per_epoch
        division = job.division  # processes that share a run divide nothing more
        division.count = min(division.most, self.run.record.get("micro_batches", division.count))
        self.observer.started(self.run, job, self.step)
        self.run.update({"status": "running", "device": describe_device(job.device, ranks_of(self.run).world)})
        self._divided()
        self._since = self._saved = time.perf_counter()
        with signals() as stop:
            with Curves(self.run, self.step) as curves:
                while self.step < job.epochs * spe:
                    if not self._one_step():
                        continue
                    if self.step % spe == 0:
                        self._check_state()
                        self._end_epoch(curves)
                        self._save()
                        asked, _ = agreed(self.run, stop.name, False)
                    else:
                        asked, due = agreed(self.run, stop.name, self._due())
                        if asked or due:
                            self._save()
                    if asked:
                        raise self._interrupted(asked)
            found = self._finish(stop)
        self._clock()
        result = {
            **found,
            "seconds": round(self.seconds, 1),
            "seconds_in_steps": round(self.step_seconds, 1),
        }
        self.run.update({"status": "finished", "seconds": round(self.seconds, 1), "result": result})
        return result

    def _finish(self, stop: Stop) -> dict[str, Any]:
        """What the job ends with; nothing of it is saved before it is done, so that a signal stops it at once."""
        stop.at_once = True
        try:
            if stop.name:
                raise KeyboardInterrupt  # it came after the last step was checked
            with within_memory("an evaluation"):
                return dict(self.job.finish(self.run))
        except KeyboardInterrupt:
            if not stop.name:
                raise
            raise self._interrupted(stop.name) from None
        finally:
            stop.at_once = False

    def _due(self) -> bool:
        return time.perf_counter() - self._saved >= self.checkpoint_seconds

    def _interrupted(self, stop: str) -> InterruptedRun:
        self.run.update({"status": "interrupted"})
        steps = self.job.epochs * self.job.steps_per_epoch
        return InterruptedRun(f"Stopped by {stop} after step {self.step} of {steps}, all is saved.")

    def _one_step(self) -> bool:
        """Whether the memory was enough for a step."""
        start, metrics = time.perf_counter(), None
        try:
            metrics = self.job.step(self.step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if metrics is None:  # outside of the handler, whose error holds the tensors of the step
            self._go_back()
            return False
        self.step += 1
        self.meter.add(self.step, metrics)
        due = self.step % self.job.steps_per_epoch == 0 or self.meter.is_due()
        if due:
            self._look()
        self.step_seconds += time.perf_counter() - start
        if due:
            step, seconds = self._told
            self._told = self.step, self.step_seconds
            self.observer.stepped(self.step, self._means(), (self.step_seconds - seconds) / (self.step - step))
        return True

    def _look(self) -> None:
        found = self.meter.look()
        if found is not None:
            self._diverged(f"the {found.name.replace('_', ' ')} became {found.number}", found.step)

    def _end_epoch(self, curves: Curves) -> None:
        epoch = self.step // self.job.steps_per_epoch
        with within_memory("an evaluation"):
            row: dict[str, float | int | str] = {"epoch": epoch, **self._means(), **self.job.end_epoch(epoch)}
        self._clock()
        row |= {"seconds": round(self.seconds, 3), "seconds_in_steps": round(self.step_seconds, 3)}
        self.history.append(row)
        self.meter.clear()
        self.run.write_history(self.history)
        curves.add(self.step, row)
        self.observer.epoch_ended(epoch, row)

    def _means(self) -> dict[str, float]:
        return self.meter.means((self.step - 1) % self.job.steps_per_epoch + 1)

    def _check_state(self) -> None:
        if not not_finite(self.job.state_dict()) <= self._unbounded:
            self._diverged("a weight became NaN or infinite", self.step)

    def _go_back(self) -> None:
        """To what was saved last, with batches that are divided further: a step that failed half-way left neither."""
        failed = self.step
        self.job.division.double()
        gc.collect()
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()
        self._restore()
        self.observer.note(f"the memory was not enough for step {failed + 1}: back to step {self.step}")
        self._divided()

    def _divided(self) -> None:
        """Tells how batches are divided, and records it: a run that goes on has the same bits."""
        division = self.job.division
        if division.most > 1:
            self.run.update({"micro_batches": division.count})
        if division.count > 1:
            self.observer.note(division.note())

    def _save(self) -> None:
        self._look()
        self._check_state()
        self._clock()
        self.run.save_checkpoint(self._state())
        self.saved_step, self._start = self.step, b""
        peak = peak_memory(self.job.device)
        memory = {} if peak is None else {"peak_memory": max(peak, self.run.record.get("peak_memory", 0))}
        self.run.update({"seconds": round(self.seconds, 1), "step": self.step, **memory})
        self._saved = time.perf_counter()
        self.observer.saved(self.step)

    def _state(self) -> dict[str, Any]:
        return {
            "job": self.job.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "sums": self.meter.sums,
            "history": self.history,
            "random": random_state(),
        }

    def _restore(self) -> None:
        """What was saved last; before the first checkpoint the start, which is kept in memory until then."""
        saved = self.run.load_checkpoint(self.job.device)
        if saved is None and self._start:
            saved = torch.load(io.BytesIO(self._start), map_location=self.job.device, weights_only=True)
        if saved is None:
            if self.job.division.most > 1:
                torch.save(self._state(), start := io.BytesIO())
                self._start = start.getvalue()
            return
        try:
            self.job.load_state_dict(saved["job"])
            self.step, self.seconds, self.step_seconds = saved["step"], saved["seconds"], saved["step_seconds"]
            self.history = saved["history"]
            self.meter.clear(saved["sums"])
            set_random_state(saved["random"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            raise RunError(
                f"The checkpoint in {self.run.path} must fit the space and the algorithm, but was written by another "
                "version of them; give another --out for a new run."
            ) from None
        self.saved_step, self._told = self.step, (self.step, self.step_seconds)
        self.run.write_history(self.history)

    def _clock(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _diverged(self, what: str, step: int) -> None:
        epoch, kept = (step - 1) // self.job.steps_per_epoch + 1, self.saved_step
        last = f"the last good state, of step {kept}, is in {self.run.path}" if kept else "no state was saved before"
        self.run.update({"status": "diverged"})
        raise DivergedError(
            f"Loss and weights must stay finite, but {what} at step {step} (epoch {epoch}); {last}: start a new "
            "run with a smaller learning rate."
        )


@contextmanager
def concluded(run: Run, stage: Callable[[], str]) -> Iterator[None]:
    """Writes into run.json that a run of several stages was interrupted or diverged; a stage has told it in its own.

    Args:
        run: of all stages.
        stage: names the one that runs; empty before the first.

    Raises:
        InterruptedRun: also where SIGINT or SIGTERM came between the stages.
    """
    stop = Stop()
    try:
        with signals() as stop:
            stop.at_once = True  # the stages that step note it themselves
            yield
    except (InterruptedRun, KeyboardInterrupt) as error:
        run.update({"status": "interrupted"})
        by = f" by {stop.name}" if stop.name else ""
        said = str(error).partition(",")[0] if isinstance(error, InterruptedRun) else f"Stopped{by}"
        where = f" in the stage '{stage()}'" if stage() else ""
        raise InterruptedRun(f"{said}{where}, all is saved.") from None
    except DivergedError:
        run.update({"status": "diverged"})
        raise


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Runs a block with all global random states derived from a key, and puts the caller's back after it."""
    before = random_state()
    seed_all(*key)
    try:
        yield
    finally:
        set_random_state(before)


def seed_all(*key: int) -> None:
    """Derives all global random states from a key, such as (seed, stream)."""
    number = int(torch.randint(2**31, (), generator=generator(*key)))
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def random_state() -> dict[str, Any]:
    """The global random states of torch, CUDA, numpy and Python as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():  # a run may go on where there are fewer GPUs
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]][: torch.cuda.device_count()])
    np.random.set_state(tuple(state["numpy"]))
    random.setstate(state["python"])


def describe_device(device: torch.device, processes: int = 1) -> str:
    """A device in words, and how many processes have one of the kind."""
    cpu = f"{device.type}, {counted(torch.get_num_threads(), 'thread')}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return name if processes == 1 else f"{processes} x {name}"


def not_finite(state: Any, place: tuple[object, ...] = ()) -> set[tuple[object, ...]]:
    """Where in nested containers there are numbers that are not finite."""
    if isinstance(state, Tensor):
        return set() if not state.is_floating_point() or bool(torch.isfinite(state).all()) else {place}
    if isinstance(state, (Mapping, list, tuple)):
        parts = state.items() if isinstance(state, Mapping) else enumerate(state)
        return set().union(*(not_finite(part, (*place, key)) for key, part in parts))
    return {place} if isinstance(state, float) and not math.isfinite(state) else set()


@dataclass
class Stop:
    """The first SIGINT or SIGTERM that came, by name, and whether one ends what runs at once."""

    name: str = ""
    at_once: bool = False


@contextmanager
def signals() -> Iterator[Stop]:
    """Notes the first SIGINT or SIGTERM; a second one stops at once. Main thread only."""
    stop = Stop()

    def catch(number: int, frame: FrameType | None) -> None:
        first = not stop.name
        stop.name = stop.name or signal.Signals(number).name
        if stop.at_once or not first:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where Python handles no signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
