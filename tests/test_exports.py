"""Every registered space and every example can be exported in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasengine.formats import Writers
from nasengine.registry import SPACES
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.trained import Trained
from tests.nasengine.exports import assert_generated, batches, interface_of, unsettled
from tests.search_spaces.test_contract import SMALL

torch.set_num_threads(1)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
IMAGES = Shapes((3, 8, 8), 4)
OTHERS = {"images.py:SmallCNN": IMAGES, "signals.py:SignalNet": Shapes((1, 24), 3), "tables.py:MLP": Shapes((5,), 2)}
CASES = {name: (name, IMAGES) for name in SPACES.names()} | {
    name: (f"{EXAMPLES}/{name}", shapes) for name, shapes in OTHERS.items()
}


def small(name: str) -> Space:
    settings: dict[str, Any] = {**SMALL, "darts": {"channels": 2, "layers": 3, "nodes": 1}}.get(name, {})
    return SPACES[name](**settings)


def trained(space: Space, shapes: Shapes, seed: int) -> Trained:
    """A network of random architecture as if it had been trained."""
    architecture = space.sample(space.choices(shapes), generator(seed, 5))
    network = unsettled(space.build(architecture, shapes))
    record = {"config": {"space": {}}, "facts": {"task": "toy"}, "result": {"test_accuracy": 0.5}}
    return Trained(Path(), record, space, architecture, interface_of(shapes), network)


@pytest.mark.parametrize("name", CASES)
def test_python_code(name: str, tmp_path: Path) -> None:
    spec, shapes = CASES[name]
    space = small(spec)
    for seed in range(3):
        assert_generated(trained(space, shapes, seed).network, shapes, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_programs(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    spec, shapes = CASES[name]
    one = trained(small(spec), shapes, 0)
    for kind in ("pt2", "onnx"):
        Writers(one).write(kind, tmp_path)
    program = torch.export.load(tmp_path / "network.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for inputs in batches(shapes):
        with torch.no_grad():
            expected = one.network(inputs)
            torch.testing.assert_close(program(inputs), expected, rtol=0, atol=1e-6)
        got = session.run(None, {"input": inputs.numpy()})[0]
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5)
