from __future__ import annotations

from collections.abc import Callable

import pytest

from nasengine.timing import Runner, Timing, measure


class Machine:
    """A machine whose clock goes by what runs on it; `load` says by the time what other programs add."""

    def __init__(self, load: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.load = 0.0, load
        self.calls: list[str] = []

    def runner(self, name: str, seconds: float, cold: int = 0, slow: float = 1.0) -> Runner:
        left = [cold]

        def run(count: int) -> float:
            start = self.now
            for _ in range(count):
                self.calls.append(name)
                self.now += seconds * self.load(self.now) * (slow if left[0] > 0 else 1.0)
                left[0] -= 1
            return self.now - start

        return run

    def measure(self, *runners: Runner, seconds: float = 1.0, patience: float = 4.0) -> list[Timing]:
        return measure(runners, seconds, clock=lambda: self.now, patience=patience)


def test_a_quiet_machine_gives_what_a_call_takes() -> None:
    machine = Machine()
    (timing,) = machine.measure(machine.runner("a", 0.003))
    assert [timing.seconds, timing.low, timing.median, timing.high] == pytest.approx([0.003] * 4)
    assert 1.0 <= machine.now < 1.2 and timing.blocks > 300


def test_programs_that_take_turns_do_not_change_it() -> None:
    """Two thirds of the time everything takes half as long again, in phases of 0.1 s."""
    machine = Machine(lambda now: 1.0 if int(now * 10) % 3 == 0 else 1.5)
    (timing,) = machine.measure(machine.runner("a", 0.0007))
    assert timing.seconds == pytest.approx(0.0007)
    assert timing.median > 0.0009


def test_one_lucky_block_does_not_change_it() -> None:
    machine = Machine(lambda now: 0.3 if 0.5 <= now < 0.5005 else 1.0)
    (timing,) = machine.measure(machine.runner("a", 0.002))
    assert timing.seconds == pytest.approx(0.002)


def test_networks_run_in_turns() -> None:
    machine = Machine()
    fast, slow = machine.measure(machine.runner("a", 0.002), machine.runner("b", 0.01))
    assert (fast.seconds, slow.seconds) == (pytest.approx(0.002), pytest.approx(0.01))
    assert fast.blocks == slow.blocks
    rounds = machine.calls[-4 * slow.blocks :]
    assert rounds == ["a", "a", "b", "b"] * slow.blocks  # each after a call that warms the caches


def test_progress_ends_once() -> None:
    machine, seen = Machine(), []
    runner = machine.runner("a", 0.002)
    measure([runner], 0.1, clock=lambda: machine.now, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen.count((1000, 1000)) == 1 and seen[-1] == (1000, 1000)


def test_it_takes_longer_until_the_floor_was_visited_often() -> None:
    busy = Machine(lambda now: 1.0 if int(now * 1000) % 400 < 4 else 2.0 + now % 1)
    busy.measure(busy.runner("a", 0.002))
    assert 2.0 < busy.now < 4.5
    impatient = Machine(busy.load)
    impatient.measure(impatient.runner("a", 0.002), patience=1)
    assert impatient.now < 1.3


def test_cold_calls_are_not_counted() -> None:
    machine = Machine()
    (timing,) = machine.measure(machine.runner("a", 0.01, cold=4, slow=20.0), seconds=0.3)
    assert [timing.seconds, timing.high] == pytest.approx([0.01] * 2)


def test_tiny_networks_are_run_many_times_a_block() -> None:
    machine = Machine()
    (timing,) = machine.measure(machine.runner("a", 2e-6), seconds=0.05)
    assert timing.seconds == pytest.approx(2e-6)
    assert len(machine.calls) / timing.blocks > 500
