"""Networks that were trained, opened again from what a run or an export left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.config import AnyTask, resolve_space, resolve_task
from nasengine.errors import DataError, RunError
from nasengine.interface import Interface
from nasengine.run_directory import read_record
from nasengine.space import Space

NETWORK: Final = "network.safetensors"
_TRAIN, _EXPORT = "train the network again", "export the network again"


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        path: its run directory.
        record: all of its run.json.
        space: of the final form.
        architecture: that was trained.
        interface: what the network takes and gives.
        network: on the CPU, in evaluation mode, without an auxiliary head.
    """

    path: Path
    record: Mapping[str, Any]
    space: Space
    architecture: Architecture
    interface: Interface
    network: nn.Module

    @property
    def scores(self) -> dict[str, float]:
        """What was measured of it, as test_<measure>, valid_<measure>, or both."""
        names = [f"{part}_{self.interface.measure}" for part in ("test", "valid")]
        result = self.record.get("result", {})
        return {name: float(result[name]) for name in names if name in result}


def open_training(run: Path | str, task: AnyTask | None = None) -> Trained:
    """The finished training in a run directory, or the winner of a pipeline.

    Args:
        run: the directory.
        task: its data again, for a training from before run.json said what its network takes.

    Raises:
        RunError: there is no finished training, or its network is damaged.
    """
    path, record = _training(Path(run))
    config = record["config"]
    space = resolve_space(None, config["space"], {})
    interface = _interface(path, record, task)
    architecture = Architecture.parse(config["architecture"])
    weights = _read_weights(path / NETWORK, _TRAIN)
    network = _with_weights(_built(space, architecture, interface), weights, path / NETWORK, _TRAIN)
    return Trained(path, record, space, architecture, interface, _evaluated(network))


def load_network(path: Path | str) -> nn.Module:
    """The network in a network.safetensors that 'nasengine export' wrote, on the CPU, in evaluation mode.

    Its space must be known: a file of one's own by the path that it had.

    Raises:
        RunError: the file is missing, damaged, or none of an export.
    """
    path = Path(path)
    weights, about = _read_weights(path, _EXPORT), _read_metadata(path)
    try:
        space, interface = json.loads(about["space"]), Interface.read(json.loads(about["interface"]), str(path))
        architecture = about["architecture"]
    except (KeyError, ValueError):
        raise RunError(
            f"{path} must be written by 'nasengine export', but does not say what network it holds; export it again."
        ) from None
    built = _built(resolve_space(None, space, {}), Architecture.parse(architecture), interface)
    return _with_weights(_evaluated(built), weights, path, _EXPORT)


def metadata(trained: Trained) -> dict[str, str]:
    """What `load_network` must know beside the weights."""
    about = {"space": trained.record["config"]["space"], "interface": trained.interface.plain()}
    texts = {name: json.dumps(value) for name, value in about.items()}
    config = json.dumps(trained.record["config"])
    return {**texts, "architecture": str(trained.architecture), "config": config}


def _training(run: Path) -> tuple[Path, dict[str, Any]]:
    """The directory and the record of the training that a run is or has."""
    record = read_record(run)
    if record["verb"] == "run":
        _require_finished(run, record)
        winner = record.get("result", {}).get("winner")
        if not isinstance(winner, str):
            raise RunError(f"The run in {run} must name its winner in run.json, but does not; give a training in it.")
        run, record = run / winner, read_record(run / winner)
    if record["verb"] != "train":
        final = run / "final"
        advice = f"give {final}" if (final / "run.json").exists() else "train what it found by 'nasengine train'"
        raise RunError(
            f"An export needs a finished training, but {run} holds a run of 'nasengine {record['verb']}'; {advice}."
        )
    _require_finished(run, record)
    return run, record


def _require_finished(run: Path, record: Mapping[str, Any]) -> None:
    if record["status"] == "finished":
        return
    diverged = record["status"] == "diverged"
    state, advice = "not finished", f"go on with it by 'nasengine {record['verb']} --out {quote(str(run))} --resume'"
    if diverged:
        state, advice = "diverged", "start a new one with a smaller learning rate"
    raise RunError(f"An export needs a finished run, but the one in {run} is {state}; {advice}.")


def _interface(path: Path, record: Mapping[str, Any], task: AnyTask | None) -> Interface:
    """What run.json says of inputs and outputs; of older ones what the data say."""
    if "interface" in record:
        return Interface.read(record["interface"], str(path / "run.json"))
    found, _ = resolve_task(task, record["config"]["data"], {})
    if found.fingerprint != record["facts"].get("fingerprint"):
        raise DataError(
            f"The data must be those of the training in {path}, {record['facts'].get('fingerprint')}, but got "
            f"{found.fingerprint}; put the old data back, or train again."
        )
    return Interface.of(found)


def _read_weights(path: Path, again: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        came = error.strerror or "is missing"
        raise RunError(f"{path} must hold a trained network, but {came}; {again}.") from None
    except SafetensorError:
        raise RunError(f"{path} must hold a trained network, but is damaged or another file; {again}.") from None


def _read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _built(space: Space, architecture: Architecture, interface: Interface) -> nn.Module:
    """The network, without touching the global random numbers by its first weights."""
    space.check(space.choices(interface.shapes), architecture)
    with torch.random.fork_rng(devices=[]):
        return space.build(architecture, interface.shapes)


def _evaluated(network: nn.Module) -> nn.Module:
    """In evaluation mode, without the auxiliary head, which is for training alone."""
    if isinstance(getattr(network, "auxiliary", None), nn.Module):
        network.auxiliary = None  # type: ignore[assignment]
    return network.eval().requires_grad_(False)


def _with_weights(network: nn.Module, weights: Mapping[str, Tensor], path: Path, again: str) -> nn.Module:
    """The network with all its weights from a file. Raises RunError if they are those of another one."""
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:
        raise RunError(
            f"{path} must hold the weights of the network that is described with them, but holds those of another one; "
            f"{again}."
        )
    network.load_state_dict(weights)
    return network
