"""What networks cost on a device: the `profile` verb, and costs of many architectures at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nasengine import cost
from nasengine.architecture import Architecture
from nasengine.budget import Cost, CostModel
from nasengine.config import (
    AnySpace,
    AnyTask,
    LatencySettings,
    resolve_final,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import ArchitectureError, RunError, SettingError, UnknownNameError
from nasengine.footprint import latency_model
from nasengine.latency import Calibration, LatencyModel, Progress
from nasengine.outline import Sketches, has_blueprint
from nasengine.run_directory import read_record
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.timing import Timing
from nasengine.train_plan import read_architecture

Quantity = Literal["parameters", "multiply_adds", "latency", "memory"]

QUANTITIES: Final = ("parameters", "multiply_adds", "latency", "memory")
GROUPS: Final = ("space", "final", "data", "latency")
_IMAGES: Final = Shapes((3, 32, 32), 10)
_COUNT: Final = 16


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


class Profiled(NamedTuple):
    """What one network costs.

    Attributes:
        architecture, text: the network, and the form that other tools exchange.
        parameters, multiply_adds, memory: as `nasengine.cost` counts them; bytes.
        timing: seconds of a forward pass, measured end-to-end.
        predicted: seconds by the table, None where it was not calibrated.
    """

    architecture: Architecture
    text: str
    parameters: int
    multiply_adds: int
    memory: int
    timing: Timing
    predicted: float | None


@dataclass(frozen=True)
class ProfileResult:
    """What `profile` measured.

    Attributes:
        machine: the device, the runtime, versions, threads and the batch size.
        networks: the one that was named, or the smallest, the largest and random ones of the space.
        pieces: of the first network: name, how often it runs, and the seconds of one.
        calibration: how well the sums over pieces predict, None where one network was named and the cache knows none.
        form: what the final form changes about the networks of a search; empty if nothing.
    """

    machine: dict[str, Any]
    networks: tuple[Profiled, ...]
    pieces: tuple[tuple[str, int, float], ...]
    calibration: Calibration | None
    form: str = ""


class _Subject(NamedTuple):
    """What is to be profiled: a space as it is set, shapes, one architecture or none, and what the form changes."""

    space: Space
    shapes: Shapes
    architecture: Architecture | None
    form: str


def profile(
    run: Path | str | None = None,
    *,
    space: AnySpace | None = None,
    architecture: Architecture | Path | str | None = None,
    task: AnyTask | Shapes | None = None,
    count: int = _COUNT,
    seconds: float = 2.0,
    settings: Sequence[str] = (),
    progress: Progress = _silent,
) -> ProfileResult:
    """Measures what networks take on a device: seconds end-to-end and piece by piece, and bytes.

    Without an architecture the smallest, the largest and random networks of the space are measured, and the table of
    pieces is calibrated by the first half of them and checked on the others; that is what limits on the latency use.

    Args:
        run: the directory of a search, a training or a pipeline, whose network is measured as it is trained.
        space: a name, class or instance, measured in its final form; "darts" by default.
        architecture: an Architecture, its text, or a file with it.
        task: for which data the networks are: a data spec, a Dataset, a Task or shapes; those of the run, or 32x32
            images of 10 classes.
        count: networks of the space, where none is named.
        seconds: to spend on a network that is named, at least; a quarter of that on each of a space.
        settings: texts such as "latency.threads=2", "latency.runtime=onnxruntime" or "final.channels=16", of what is
            measured; "space.channels=16" says the same.
        progress: is called with ("pieces" or "networks", done, all).

    Raises:
        NasengineError: see nasengine.errors; MissingExtraError where onnxruntime is asked for and is not installed.
    """
    changes = split_assignments(list(settings), GROUPS)
    numbers = resolve_settings(LatencySettings, {}, changes["latency"], "latency")
    if count < 4:
        raise SettingError(f"A space must be profiled by 4 networks or more, but got {count}; raise --count.")
    subject = _subject(run, space, architecture, task, changes)
    sketches = Sketches(subject.space, subject.shapes)
    model = latency_model(sketches, numbers, progress)
    named = subject.architecture
    networks = model.samples(count) if named is None else [named]
    model.prepare(networks)
    timings = model.measure(networks, seconds if named is not None else seconds / 4)
    if named is None:
        model.calibrate(networks, timings)
    calibration = model.calibration() if model.is_calibrated() else None
    model.save()
    found = costs(subject.space, subject.shapes, networks, ("parameters", "multiply_adds"))
    rows = tuple(
        Profiled(
            taken,
            subject.space.write(taken),
            int(found["parameters"][row]),
            int(found["multiply_adds"][row]),
            sketches(taken).memory,
            timings[row],
            None if calibration is None else calibration.predict(model.total(taken)),
        )
        for row, taken in enumerate(networks)
    )
    return ProfileResult(model.machine, rows, tuple(model.pieces(networks[0])), calibration, subject.form)


def costs(
    space: Space,
    shapes: Shapes,
    architectures: Sequence[Architecture],
    what: Sequence[Quantity] = ("parameters", "multiply_adds"),
    latency: LatencySettings = LatencySettings(),  # noqa: B008
    progress: Progress = _silent,
) -> dict[str, npt.NDArray[np.float64]]:
    """What the networks of architectures cost, one array (architectures,) each: weights, seconds, bytes.

    Args:
        space: as it is set: give `space.final()` for the networks that are trained by default, which is faster too.
        shapes: of the data.
        architectures: of the space.
        what: which costs.
        latency: on what seconds are measured; they are predicted by a calibrated table where that is within 10 %.
        progress: is called with ("pieces" or "networks", done, all) while latencies are measured.

    Raises:
        UnknownNameError: a cost that there is not.
        DeviceError: the device is not there.
        MissingExtraError: the runtime is not installed.
    """
    for name in what:
        if name not in QUANTITIES:
            raise UnknownNameError("cost", name, QUANTITIES)
    found: dict[str, npt.NDArray[np.float64]] = {}
    if {"parameters", "multiply_adds"} & {*what}:
        pairs = np.array([_counted(space, shapes, architectures)], dtype=np.float64).reshape(-1, 2)
        found |= {"parameters": pairs[:, 0], "multiply_adds": pairs[:, 1]}
    sketches = Sketches(space, shapes) if {"memory", "latency"} & {*what} else None
    if sketches is not None and "memory" in what:
        found["memory"] = np.array([sketches(a).memory for a in architectures], dtype=np.float64)
    if sketches is not None and "latency" in what:
        model = latency_model(sketches, latency, progress)
        found["latency"] = _latencies(model, architectures)
    return {name: found[name] for name in what}


def _latencies(model: LatencyModel, architectures: Sequence[Architecture]) -> npt.NDArray[np.float64]:
    if architectures and model.calibration().trusted:
        model.prepare(architectures)
    found = np.array([model(architecture) for architecture in architectures], dtype=np.float64)
    model.save()
    return found


def _counted(space: Space, shapes: Shapes, architectures: Sequence[Architecture]) -> list[Cost]:
    """Parameters and multiply-adds."""
    model = _cost_model(space, shapes) if len(architectures) > 1 else None
    return [model.of(a) if model is not None else _built(space, shapes, a) for a in architectures]


def _cost_model(space: Space, shapes: Shapes) -> CostModel | None:
    """The costs of all networks from one, where the space has such a network."""
    if not has_blueprint(space):
        return None
    try:
        model = CostModel(space, shapes)
        model.check()
    except ArchitectureError:
        return None
    return model


def _built(space: Space, shapes: Shapes, architecture: Architecture) -> Cost:
    with torch.device("meta"):
        network = space.build(architecture, shapes)
    return Cost(cost.parameters(network), cost.multiply_adds(lambda: network, shapes))


def _subject(
    run: Path | str | None,
    space: AnySpace | None,
    architecture: Architecture | Path | str | None,
    task: AnyTask | Shapes | None,
    changes: Mapping[str, Mapping[str, str]],
) -> _Subject:
    if run is not None and (space is not None or architecture is not None):
        raise RunError(
            "What is profiled must be a run or an architecture of a space, but got both; leave out RUN, or --space and "
            "--architecture."
        )
    record = {} if run is None else _record_of(Path(run))
    config = record.get("config", {})
    base = resolve_space(space, config.get("space", {"name": "darts"}), {})
    trained = record.get("verb") == "train"
    final = base if trained else resolve_final(base, config.get("final", {}), {})
    resolved = resolve_space(final, {}, {**changes["space"], **changes["final"]})
    shapes = _shapes(task, config.get("data"), changes["data"])
    text = record.get("result", {}).get("architecture") or config.get("architecture")
    if isinstance(architecture, Architecture):
        chosen: Architecture | None = architecture
    elif architecture is not None:
        chosen = read_architecture(resolved, architecture)
    else:
        chosen = None if run is None else Architecture.parse(str(text))
    if chosen is not None:
        resolved.check(resolved.choices(shapes), chosen)
    return _Subject(resolved, shapes, chosen, "" if trained else base.form(resolved))


def _shapes(task: AnyTask | Shapes | None, stored: Mapping[str, Any] | None, changes: Mapping[str, str]) -> Shapes:
    if isinstance(task, Shapes):
        return task
    if task is None and not stored and not changes:
        return _IMAGES
    return resolve_task(task, stored or {}, changes)[0].shapes


def _record_of(path: Path) -> dict[str, Any]:
    """The record of the search or training that has the network of a run."""
    record = read_record(path)
    if record["verb"] == "run" and "winner" in record.get("result", {}):
        return _record_of(path / str(record["result"]["winner"]))
    known = record["verb"] == "train" or (record["verb"] == "search" and "architecture" in record.get("result", {}))
    if not known:
        raise RunError(
            f"A run to profile must be a finished search or pipeline, or a training, but the one in {path} is of "
            f"'nasengine {record['verb']}' and {record['status']}; let it finish, or name --space and --architecture."
        )
    return record
