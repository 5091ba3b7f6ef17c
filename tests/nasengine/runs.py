"""What the tests of runs share: tiny searches and trainings, and the comparison of run directories."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasengine.run_directory import read_tensors

TINY = ("space.channels=2", "space.layers=3", "space.nodes=1")
# Else the cost of 20 cells is counted at the end of every search.
FINAL = ("final.channels=2", "final.layers=3")
# On the data of the fixture `small`, both take 4 steps in 2 epochs.
SEARCH = (*TINY, *FINAL, "search.epochs=2", "search.batch_size=8", "search.device=cpu")
TRAIN = ("space.channels=2", "space.layers=3", "train.epochs=2", "train.batch_size=16", "train.device=cpu")
CLOCKS = ("seconds", "seconds_in_steps")
GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=[2], "
    "reduce=[('max_pool_3x3', 0), ('sep_conv_5x5', 1)], reduce_concat=[2])"
)


def flags(settings: Sequence[str]) -> list[str]:
    """Settings as arguments of the command line."""
    return [part for text in settings for part in ("--set", text)]


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of all files below a directory, less the lock."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def record(path: Path) -> dict[str, Any]:
    """run.json."""
    return dict(json.loads((path / "run.json").read_text()))


def history(path: Path) -> list[dict[str, str]]:
    """history.csv without the clocks."""
    with (path / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def state(path: Path) -> Any:
    """The last checkpoint without the clocks."""
    return _timeless(read_tensors(path / "checkpoint.pt", torch.device("cpu"))["state"])


def result(path: Path) -> dict[str, Any]:
    """The result in run.json without the clocks."""
    return {name: value for name, value in record(path)["result"].items() if name not in CLOCKS}


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same bits."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs are finished with the same bits: state, history, result and files."""
    assert record(one)["status"] == record(other)["status"] == "finished"
    assert same(state(one), state(other))
    assert history(one) == history(other)
    assert result(one) == result(other)
    written = [
        {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".txt", ".svg", ".safetensors")}
        for path in (one, other)
    ]
    assert written[0] and written[0] == written[1]


def _timeless(part: Any) -> Any:
    clocks = (*CLOCKS, "step_seconds")
    if isinstance(part, dict):
        return {name: _timeless(value) for name, value in part.items() if name not in clocks}
    return [_timeless(value) for value in part] if isinstance(part, list) else part
