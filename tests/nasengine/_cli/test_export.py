from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nasengine import exporting
from nasengine.trained import load_network
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import contents, record

Refuse = Callable[..., str]


def test_what_is_written_is_told_with_how_to_load_it(cli: Run, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(files: Mapping[str, Path], inputs: list[Tensor]) -> dict[str, list[Tensor]]:
        network = load_network(files["safetensors"])
        with torch.no_grad():
            return {name: [network(batch) for batch in inputs] for name in files}

    monkeypatch.setattr(exporting, "reload", answers)
    code, out, err = cli("export", ended / "final", "--format", "py", "--out", "out")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("opening the network: ") and lines[1].startswith("exporting 2 formats: ")
    assert lines[2].startswith("comparing 2 files in fresh processes: ") and lines[3] == ""
    assert lines[4].startswith("model.py: ") and "kB, largest difference 0 of " in lines[4]
    assert lines[5:7] == [
        "    from model import load, preprocess  # in out",
        "    outputs = load()(preprocess(inputs))",
    ]
    assert "    outputs = nasengine.load_network('out/network.safetensors')(inputs)" in lines
    assert "inputs (batch, 1, 8, 8) after preprocessing: (x - mean) / std in float32, by channel" in out
    parameters = record(ended / "final")["result"]["parameters"]
    assert lines[-3].startswith("outputs (batch, 4), postprocessing: none: a score a class, ")
    assert lines[-2] == f"parameters: {parameters:,}"
    assert lines[-1] == "in out: model.py, network.safetensors, export.json"
    exec("import sys; sys.path.insert(0, 'out')\nfrom model import CLASSES, INPUT_SHAPE\nassert len(CLASSES) == 4", {})


def test_bad_input(refuse: Refuse, ended: Path, stopped_training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(ended)
    assert refuse("export", ended / "final", "--format", "onx") == (
        "Unknown format 'onx': did you mean 'onnx' (known: onnx, pt2, py, safetensors)?"
    )
    assert refuse("export", ended / "final", "--format", "") == (
        "Unknown format '' (known: onnx, pt2, py, safetensors)."
    )
    assert refuse("export", ended) == (
        f"An export needs a finished training, but {ended} holds a run of 'nasengine search'; give {ended / 'final'}."
    )
    assert refuse("export", stopped_training) == (
        f"An export needs a finished run, but the one in {stopped_training} is not finished; go on with it by "
        f"'nasengine train --out {stopped_training} --resume'."
    )
    assert refuse("export", "nowhere") == "A run must be a directory that nasengine wrote, but nowhere is missing."
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'nasengine[export]'" in refuse("export", ended / "final")
    assert contents(ended) == before


def test_it_can_be_stopped(cli: Run, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    before = contents(ended)
    monkeypatch.setattr(exporting, "reload", stop)
    code, _, err = cli("export", ended / "final", "--format", "safetensors")
    assert code == 130 and err == "nasengine: Stopped, and nothing is kept of it: give the same command again.\n"
    assert contents(ended) == before
