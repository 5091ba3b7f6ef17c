"""What the tests of exports share: networks as training leaves them, and generated code that runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nasengine.interface import Interface
from nasengine.seeding import generator
from nasengine.source import source
from nasengine.task import Shapes

SIZES = (1, 3, 5)


def unsettled(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode with random weights and statistics everywhere, as training leaves them."""
    rng = generator(seed, 1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=rng)
                tensor.copy_(0.5 + noise if name.endswith("running_var") else tensor + 0.2 * (noise - 0.5))
    return network.eval().requires_grad_(False)


def interface_of(shapes: Shapes) -> Interface:
    """That of a network for shapes: images where there are three dimensions, else numbers, or tokens."""
    channels = 0 if shapes.vocabulary else shapes.input[0]
    kind = "int64" if shapes.vocabulary else "uint8" if len(shapes.input) == 3 else "float32"
    return Interface(
        input=shapes.input,
        outputs=shapes.outputs,
        vocabulary=shapes.vocabulary,
        dtype=kind,
        mean=tuple(0.5 * channel for channel in range(channels)),
        std=tuple(2.0 + channel for channel in range(channels)),
        classes=tuple(f"class {number}" for number in range(shapes.outputs)),
        regression=False,
        measure="accuracy",
    )


def generated(network: nn.Module, shapes: Shapes, folder: Path) -> ModuleType:
    """The module that is written for a network, imported; its weights lie beside it."""
    text = source(network, interface_of(shapes), "A network of a test.", "a=1 b=2")
    (folder / "model.py").write_text(text)
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()}, folder / "network.safetensors")
    spec = importlib.util.spec_from_file_location("generated_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(shapes: Shapes) -> list[Tensor]:
    """Random inputs in batches of several sizes."""
    return [interface_of(shapes).examples(size, generator(3, size)) for size in SIZES]


def assert_generated(network: nn.Module, shapes: Shapes, folder: Path) -> str:
    """The code that is written for a network computes what it computes; gives the code."""
    loaded = generated(network, shapes, folder).load()
    for inputs in batches(shapes):
        with torch.no_grad():
            torch.testing.assert_close(loaded(inputs), network(inputs), rtol=0, atol=0)
    return (folder / "model.py").read_text()
