from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nasengine.architecture import Architecture
from nasengine.latency import LatencyModel, calibrate
from nasengine.latency_cache import cache_file
from nasengine.outline import Sketches
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from tests.nasengine.machines import FakeMachine, sum_of_pieces

SPACE, SIGNALS = SizedSpace(), Shapes((2, 5), 3)
SMALL = Architecture.parse("width=2 depth=1 block1/hidden=1 block1/kernel=1 block2/hidden=1 block2/kernel=1 last=tanh")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def summed(network: nn.Module) -> float:
    return sum_of_pieces(network, SIGNALS)


def linear(network: nn.Module) -> float:
    return 0.002 + 1.5 * summed(network)


def model_of(machine: FakeMachine) -> LatencyModel:
    return LatencyModel(Sketches(SPACE, SIGNALS), machine)


# The line


def test_a_line_is_found_and_checked_on_other_networks() -> None:
    def line(total: float) -> tuple[float, float]:
        return total, 0.5 + 2 * total

    found = calibrate([line(1.0), line(2.0), line(4.0)], [line(3.0), (5.0, 10.5 * 1.25), (6.0, 12.5 * 1.6)])
    assert (found.intercept, found.slope) == (pytest.approx(0.5), pytest.approx(2.0))
    assert found.predict(10.0) == pytest.approx(20.5)
    assert found.median_error == pytest.approx(0.2) and found.worst_error == pytest.approx(0.375)
    assert found.kendall_tau == 1.0 and not found.trusted
    assert calibrate([line(1.0), line(2.0)], [line(3.0), (5.0, 11.0)]).trusted


def test_the_relative_errors_are_made_small() -> None:
    """Of a small and a large network with equal absolute errors the small one counts more."""
    found = calibrate([(1.0, 1.0), (2.0, 2.0), (100.0, 120.0)], [(1.0, 1.0)])
    assert found.predict(1.0) == pytest.approx(1.0, rel=0.05)


def test_where_there_is_no_line_the_ratio_stands() -> None:
    falling = calibrate([(1.0, 4.0), (2.0, 2.0), (4.0, 1.0)], [(1.0, 1.0), (2.0, 3.0)])
    assert (falling.intercept, falling.slope) == (0.0, pytest.approx(1.0))
    alike = calibrate([(2.0, 3.0), (2.0, 3.0)], [(2.0, 3.0)])
    assert (alike.slope, alike.kendall_tau) == (pytest.approx(1.5), 1.0)


def test_a_prediction_is_never_negative() -> None:
    assert calibrate([(2.0, 1.0), (3.0, 3.0)], [(3.0, 3.0)]).predict(1.0) == pytest.approx(0.1)


# The table


def test_a_sum_is_the_seconds_of_the_pieces() -> None:
    machine = FakeMachine(linear)
    model = model_of(machine)
    rows = model.pieces(SMALL)
    assert sum(count * seconds for _, count, seconds in rows) == pytest.approx(model.total(SMALL))
    assert model.total(SMALL) == pytest.approx(summed(SPACE.build(SMALL, SIGNALS)))
    assert {name.partition(" on ")[0] for name, _, _ in rows} == set(machine.timed) and machine.measured == 0
    assert any(name == "Tanh() on 1x1x5" for name, _, _ in rows)
    times = [count * seconds for _, count, seconds in rows]
    assert times == sorted(times, reverse=True)


def test_a_table_that_predicts_stands_for_measurements() -> None:
    machine = FakeMachine(linear)
    model = model_of(machine)
    assert model(SMALL) == pytest.approx(linear(SPACE.build(SMALL, SIGNALS)))
    found = model.calibration()
    assert found.trusted and found.slope == pytest.approx(1.5) and machine.measured == 16
    assert len(found.fitted) == len(found.checked) == 8
    for architecture in model.samples(12):
        model(architecture)
    assert machine.measured == 16


def test_networks_of_the_fit_are_not_those_of_the_check() -> None:
    model = model_of(FakeMachine(linear))
    drawn = model.samples(16)
    choices = SPACE.choices(SIGNALS)
    model.include(drawn[9])
    assert model.samples(16)[2] == drawn[9] and len(set(model.samples(16))) == 16
    assert drawn[:2] == [SPACE.smallest(choices), SPACE.largest(choices)] and len(set(drawn)) == 16


def test_a_table_that_does_not_predict_gives_way_to_measurements() -> None:
    """What takes the time here is in no piece."""

    def strange(network: nn.Module) -> float:
        return 0.001 + 0.01 * (int(1e6 * summed(network)) * 7919 % 101)

    machine = FakeMachine(strange)
    model = model_of(machine)
    assert model(SMALL) == strange(SPACE.build(SMALL, SIGNALS))
    assert not model.calibration().trusted
    tried = machine.measured
    assert tried == 2 * 16 + 1  # once more, in case that the machine was busy
    model(SMALL)
    assert machine.measured == tried
    assert not model_of(machine).is_calibrated()  # and by the next command anew


# The file


def test_what_was_measured_is_found_again() -> None:
    machine, again = FakeMachine(linear), FakeMachine(linear)
    first = model_of(machine)
    value = first(SMALL)
    first.save()
    second = model_of(again)
    assert second.is_calibrated() and second(SMALL) == value and second.calibration() == first.calibration()
    assert again.timed == [] and again.measured == 0


def test_other_machines_and_spaces_have_measurements_of_their_own() -> None:
    first = model_of(FakeMachine(linear))
    first.calibration()
    assert not model_of(FakeMachine(linear, "another")).is_calibrated()
    other = LatencyModel(Sketches(SizedSpace(blocks=3), SIGNALS), FakeMachine(linear))
    assert not other.is_calibrated()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0.0", "0.1"),
        lambda text: "[]",
        lambda text: "",
        lambda text: '{"sha256": 1, "measured": 2}',
    ],
    ids=["cut", "changed", "other", "empty", "of other kinds"],
)
def test_a_damaged_file_is_made_anew(damage: object) -> None:
    model_of(FakeMachine(linear)).calibration()
    path = cache_file(FakeMachine(linear).machine())
    assert path is not None and callable(damage)
    path.write_text(damage(path.read_text()))
    machine = FakeMachine(linear)
    model = model_of(machine)
    assert not model.is_calibrated()
    model.calibration()
    assert machine.timed and model_of(FakeMachine(linear)).is_calibrated()


def test_two_processes_add_to_one_file() -> None:
    one, other = (
        model_of(FakeMachine(linear)),
        LatencyModel(Sketches(SizedSpace(widths=(3, 6)), SIGNALS), FakeMachine(linear)),
    )
    one.calibration()
    other.calibration()
    assert model_of(FakeMachine(linear)).is_calibrated()
    again = LatencyModel(Sketches(SizedSpace(widths=(3, 6)), SIGNALS), FakeMachine(linear))
    assert again.is_calibrated()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = model_of(FakeMachine(linear))
    assert model(SMALL) > 0 and not model_of(FakeMachine(linear)).is_calibrated()


def test_a_space_without_a_supernet_has_a_table_as_well() -> None:
    from search_spaces.nasbench101 import NASBench101

    space, shapes = NASBench101(channels=8, cells=1), Shapes((3, 8, 8), 10)
    with torch.device("meta"):
        model = LatencyModel(Sketches(space, shapes), FakeMachine(linear))
    architecture = space.read("111-01-1 conv3x3-bn-relu,maxpool3x3")
    assert model.total(architecture) > 0
