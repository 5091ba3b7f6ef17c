from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import nasengine
from nasengine import cost
from nasengine.config import LatencySettings
from nasengine.errors import DeviceError, MissingExtraError, SettingError, UnknownNameError
from nasengine.profiling import costs, profile
from nasengine.runtimes import Bench, onnx_bytes
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from search_spaces.darts import DARTS
from tests.nasengine.machines import FakeMachine, sum_of_pieces

SPACE, SIGNALS, IMAGES = SizedSpace(), Shapes((2, 5), 3), Shapes((1, 8, 8), 4)
CPU = LatencySettings(device="cpu")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    machine = FakeMachine(lambda network: 0.001 + 2 * sum_of_pieces(network, SIGNALS))
    monkeypatch.setattr("nasengine.footprint.Bench", lambda settings, shapes: machine)
    return machine


# Costs of many architectures


@pytest.mark.parametrize(
    ("space", "shapes"), [(SPACE, SIGNALS), (DARTS(channels=4, layers=3, nodes=1), IMAGES)], ids=["final", "other form"]
)
def test_costs_are_those_of_the_networks_of_the_space_as_it_is_set(space: Space, shapes: Shapes) -> None:
    choices, rng = space.choices(shapes), generator(2)
    drawn = [space.sample(choices, rng) for _ in range(3)]
    found = costs(space, shapes, drawn, ("memory", "parameters", "multiply_adds"))
    assert list(found) == ["memory", "parameters", "multiply_adds"]
    for row, architecture in enumerate(drawn):

        def build(architecture: nasengine.Architecture = architecture) -> nn.Module:
            return space.build(architecture, shapes)

        assert found["parameters"][row] == cost.parameters(build())
        assert found["multiply_adds"][row] == cost.multiply_adds(build, shapes)
        assert found["memory"][row] == cost.memory(build, shapes)


def test_costs_have_the_latencies_of_the_machine(fake: FakeMachine) -> None:
    drawn = [SPACE.sample(SPACE.choices(SIGNALS), generator(seed)) for seed in range(3)]
    found = costs(SPACE, SIGNALS, drawn, ["latency"])["latency"]
    assert found == pytest.approx([fake.latency(SPACE.build(a, SIGNALS)) for a in drawn])
    assert costs(SPACE, SIGNALS, [], ["latency", "memory", "parameters"])["latency"].shape == (0,)


def test_a_cost_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="Unknown cost 'latencies': did you mean 'latency'"):
        costs(SPACE, SIGNALS, [], ["latencies"])  # type: ignore[list-item]


# The verb


def test_a_space_is_profiled_by_its_ends_and_random_networks(fake: FakeMachine) -> None:
    result = profile(space=SPACE, task=SIGNALS, count=6)
    choices = SPACE.choices(SIGNALS)
    assert [n.architecture for n in result.networks[:2]] == [SPACE.smallest(choices), SPACE.largest(choices)]
    assert len(result.networks) == 6 and fake.measured == 6 and result.machine == fake.machine()
    assert result.calibration is not None and result.calibration.trusted and result.calibration.slope > 1.9
    for network in result.networks:
        assert network.predicted == pytest.approx(network.timing.seconds)
    anew = profile(space=SPACE, task=SIGNALS, count=6)
    assert anew.networks == result.networks and fake.measured == 12  # a profile measures, whatever was before


def test_one_architecture_is_profiled_with_its_pieces(fake: FakeMachine, tmp_path: Path) -> None:
    choices = SPACE.choices(SIGNALS)
    text = str(SPACE.largest(choices))
    (tmp_path / "a.txt").write_text(text)
    for given in (text, SPACE.largest(choices), tmp_path / "a.txt"):
        result = profile(space=SPACE, architecture=given, task=SIGNALS)
        (network,) = result.networks
        assert network.text == text and network.predicted is None and result.calibration is None
        assert sum(c * s for _, c, s in result.pieces) == pytest.approx(
            sum_of_pieces(SPACE.build(network.architecture, SIGNALS), SIGNALS)
        )
    assert profile(space=SPACE, task=SIGNALS).calibration is not None
    (network,) = profile(space=SPACE, architecture=text, task=SIGNALS).networks
    assert network.predicted == pytest.approx(network.timing.seconds)


def test_too_few_networks() -> None:
    with pytest.raises(SettingError, match="must be profiled by 4 networks or more, but got 3; raise --count"):
        profile(space=SPACE, task=SIGNALS, count=3)


# What runs networks


def test_a_bench_times_real_networks_and_pieces() -> None:
    bench, threads = Bench(CPU, SIGNALS), torch.get_num_threads()
    space, choices = SPACE, SPACE.choices(SIGNALS)
    small, large = space.build(space.smallest(choices), SIGNALS), nn.Sequential(nn.Flatten(), nn.Linear(10, 4096))
    for timing in bench.networks([small, large], seconds=0.01):
        assert 0 < timing.seconds <= timing.low <= timing.high < 1 and timing.blocks >= 10
    from nasengine.outline import Sketches

    for shapes, own in ((SIGNALS, space), (IMAGES, DARTS(channels=4, layers=3, nodes=1))):
        sketches = Sketches(own, shapes)
        sketches(own.largest(own.choices(shapes)))
        found = Bench(CPU, shapes).pieces(list(sketches.pieces.values()))
        assert len(found) == len(sketches.pieces) and all(0 < seconds < 1 for seconds in found)
    assert torch.get_num_threads() == threads


def test_a_bench_runs_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnxruntime

    network = nn.Sequential(nn.Flatten(), nn.Linear(10, 3)).eval()
    bench = Bench(LatencySettings(runtime="onnxruntime", device="cpu", batch_size=2), SIGNALS)
    (timing,) = bench.networks([network], seconds=0.01)
    assert timing.seconds > 0 and "onnxruntime" in bench.machine()["versions"]
    session = onnxruntime.InferenceSession(onnx_bytes(network, SIGNALS), providers=["CPUExecutionProvider"])
    inputs = torch.randn(5, 2, 5)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert torch.allclose(torch.from_numpy(outputs), network(inputs), atol=1e-5)


def test_onnxruntime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as error:
        Bench(LatencySettings(runtime="onnxruntime", device="cpu"), SIGNALS)
    assert str(error.value) == (
        "The runtime onnxruntime must be installed, but it or onnx or onnxscript is missing; run: "
        "pip install 'nasengine[export]'."
    )


def test_a_device_that_onnxruntime_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("nasengine.runtimes.resolve_device", lambda name: torch.device("mps"))
    with pytest.raises(
        DeviceError, match=r"for which onnxruntime is built, but it has .* and got 'mps'; give --device"
    ):
        Bench(LatencySettings(runtime="onnxruntime"), SIGNALS)


def test_one_thread_is_timed_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from nasengine.runtimes import _clock

    choose: Callable[[torch.device, int], Callable[[], float]] = _clock
    assert choose(torch.device("cpu"), 1) is time.thread_time
    assert choose(torch.device("cpu"), 2) is time.perf_counter
    assert choose(torch.device("cuda"), 1) is time.perf_counter
