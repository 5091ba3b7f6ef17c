"""Ordinary modules as search spaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nasengine
from nasengine.architecture import Architecture
from nasengine.elastic import ElasticDepth, Size
from nasengine.errors import ArchitectureError, SettingError
from nasengine.layers import ElasticLinear
from nasengine.module_space import as_space, module_space
from nasengine.registry import SPACES
from nasengine.settings import table
from nasengine.supernet import MixedOp, Zero
from nasengine.task import Shapes
from nasengine.testing import check_space
from tests.nasengine.runs import record

if TYPE_CHECKING:
    from collections.abc import Mapping

SHAPES = Shapes((4,), 3)
QUICK = ("search.epochs=1", "search.batch_size=16", "search.device=cpu")


class Net(nn.Module):
    """Two layers of a width, the second of which can be left out."""

    def __init__(
        self,
        shapes: Shapes,
        widths: tuple[int, ...] = (2, 4),
        skip: bool = True,
        gain: float = 1.0,
        act: Literal["relu", "tanh"] = "tanh",
        least: int | None = None,
    ) -> None:
        super().__init__()
        width, self.gain = Size("width", widths), gain
        options = {"act": nn.Tanh() if act == "tanh" else nn.ReLU(), "none": Zero()}
        layers = [self.layer(f"layer{n}", width, options if skip else {"act": options["act"]}) for n in (1, 2)]
        self.first, self.last = ElasticLinear(shapes.input[0], width), ElasticLinear(width, shapes.outputs)
        self.body = ElasticDepth("depth", layers, least or 1)

    def layer(self, label: str, width: Size, options: Mapping[str, nn.Module]) -> nn.Module:
        return nn.Sequential(ElasticLinear(width, width), MixedOp(label, dict(options)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.gain * self.last(self.body(self.first(x)))
        return logits


def test_arguments_are_settings() -> None:
    kind: Any = module_space(Net)
    assert [(line.name, line.default) for line in table(kind, "space")] == [
        ("space.widths", (2, 4)),
        ("space.skip", True),
        ("space.gain", 1.0),
        ("space.act", "tanh"),
        ("space.least", None),
    ]
    space = kind(widths=(3, 5, 7), skip=False, least=2)
    choices = space.choices(SHAPES)
    assert {label: choice.options for label, choice in choices.items()} == {
        "width": ("3", "5", "7"),
        "depth": ("2",),
        "layer1": ("act",),
        "layer2": ("act",),
    }
    with pytest.raises(SettingError, match=r"^space\.gain must be a number, but got 'much'\.$"):
        kind(gain="much")


def test_a_module_makes_one_space() -> None:
    assert module_space(Net) is module_space(Net) and as_space(Net) is module_space(Net)
    assert module_space(Net).__doc__ == Net.__doc__ and module_space(Net).name == "Net"
    assert as_space(3) == 3 and SPACES[f"{__name__}:Net"] is module_space(Net)


def test_it_keeps_the_laws() -> None:
    check_space(Net, SHAPES)


def test_what_is_left_out_is_no_choice() -> None:
    space = module_space(Net)()
    choices = space.choices(SHAPES)
    weights = {label: torch.arange(float(len(choice.options))) for label, choice in choices.items()}
    deep = space.derive(choices, weights)
    assert dict(deep) == {"width": "4", "depth": "2", "layer1": "none", "layer2": "none"}
    flat = space.derive(choices, {**weights, "depth": -weights["depth"]})
    assert dict(flat) == {"width": "4", "depth": "1", "layer1": "none", "layer2": "act"}
    with pytest.raises(ArchitectureError, match="A choice without effect must take its first option, but 'layer2' is"):
        space.check(choices, flat.replace("layer2", "none"))


class Untyped(nn.Sequential):
    def __init__(self, shapes, width=4, sizes=(1, 2), name_of="x", half=0.5):  # type: ignore[no-untyped-def]
        super().__init__(MixedOp("op", {"a": nn.Identity(), "b": nn.Tanh()}))


class Unresolved(nn.Module):
    def __init__(self, shapes: NotImported, width: int = 4) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__()


def test_types_may_be_missing() -> None:
    lines = table(module_space(Untyped), "space")
    kinds = ["a whole number", "whole numbers such as 3,5,7", "a text", "a number"]
    assert [line.kind for line in lines] == kinds
    assert [line.kind for line in table(module_space(Unresolved), "space")] == ["a whole number"]


class Nothing(nn.Module):
    pass


class NoArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()


class NoShapes(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()


class NoDefault(nn.Module):
    def __init__(self, shapes: Shapes, width: int) -> None:
        super().__init__()


class Anything(nn.Module):
    def __init__(self, shapes: Shapes, **others: int) -> None:
        super().__init__()


class NotPlain(nn.Module):
    def __init__(self, shapes: Shapes, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()


class Taken(nn.Module):
    def __init__(self, shapes: Shapes, choices: int = 3) -> None:
        super().__init__()


FIRST = "must take the shapes as its first argument to be a space, but takes"
PLAIN = "must take shapes and then settings with defaults that are numbers, tuples of whole numbers, texts, or true or"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Nothing, f"Nothing {FIRST} (args, kwargs); write def __init__(self, shapes, ...)."),
        (NoArgument, f"NoArgument {FIRST} (); write def __init__(self, shapes, ...)."),
        (NoShapes, f"NoShapes {FIRST} (channels); write def __init__(self, shapes, ...)."),
        (NoDefault, f"NoDefault {PLAIN} false, but 'width' has no default; give it one."),
        (Anything, f"Anything {PLAIN} false, but 'others' has no default; give it one."),
        (NotPlain, f"NotPlain {PLAIN} false, but 'activation' is no such value; give it one."),
        (
            Taken,
            "A setting of Taken must have a name that spaces do not use themselves, but got 'choices'; rename the "
            "argument.",
        ),
    ],
)
def test_modules_that_are_no_spaces(module: type[nn.Module], sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        SPACES.adapted(module)
    assert str(caught.value) == sentence


class Breaks(nn.Module):
    def __init__(self, shapes: Shapes, how: Literal["raise", "size", "own"] = "raise") -> None:
        super().__init__()
        if how == "raise":
            raise KeyError("no such layer.\nLook elsewhere.")
        self.layer = nn.Linear(Size("w", (2, 4)), 2) if how == "size" else ElasticLinear(2, Size("w", (4, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            "raise",
            r"Breaks must be made for inputs of shape \(4,\) and 3 outputs without an error, but its constructor ",
        ),
        ("size", r"raised TypeError: .*; give a Size to elastic layers only, and reckon with it by Size\.map\.$"),
        ("own", r"^The values of choice 'w' must be ascending whole numbers from 1 on"),
    ],
)
def test_a_constructor_that_breaks(how: str, sentence: str) -> None:
    kind: Any = module_space(Breaks)
    with pytest.raises(ArchitectureError, match=sentence) as caught:
        kind(how=how).network(SHAPES)
    assert "\n" not in str(caught.value) and ". " not in str(caught.value)


def test_an_instance_is_told_to_be_a_class() -> None:
    with pytest.raises(SettingError) as caught:
        nasengine.search(Net(SHAPES), "darts", "sklearn:iris")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "A search space must be a name, a class or an instance of Space, but got a Net; give its class."
    )


def test_search_and_training_from_python(tmp_path: Path) -> None:
    settings = (*QUICK, "space.widths=3,6")
    found = nasengine.search(Net, "darts", "sklearn:iris", settings=settings, out=tmp_path)
    assert found.record["config"]["space"]["name"] == f"{__name__}:Net"
    trained = nasengine.train(found.path, settings=["train.epochs=1", "train.batch_size=16"])
    assert list(trained.record["config"]["space"]["widths"]) == [3, 6]
    again = nasengine.search(config=found.record["config"], out=tmp_path / "again")
    assert again.architecture == found.architecture


SCRIPT = """
from torch import nn
import nasengine
from nasengine import MixedOp

class Mine(nn.Sequential):
    def __init__(self, shapes, width: int = 3):
        super().__init__(nn.Linear(4, width), MixedOp("op", {"a": nn.Tanh(), "b": nn.ReLU()}), nn.Linear(width, 3))

if __name__ == "__main__":
    settings = ["search.epochs=1", "search.batch_size=16", "search.device=cpu", "space.width=5"]
    found = nasengine.search(Mine, "darts", "sklearn:iris", settings=settings, out="run")
    nasengine.train(found.path, settings=["train.epochs=1", "train.batch_size=16", "train.device=cpu"])
"""


def test_a_space_of_a_script_is_found_again_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    assert record(tmp_path / "run")["config"]["space"] == {"name": f"{tmp_path}/script.py:Mine", "width": 5}
    other = nasengine.train(
        tmp_path / "run", settings=["train.epochs=1", "train.batch_size=16", "train.device=cpu"], out=tmp_path / "other"
    )
    assert other.test_score == record(tmp_path / "run" / "final")["result"]["test_accuracy"]


def test_a_file_without_a_class() -> None:
    with pytest.raises(SettingError) as caught:
        SPACES["mine.py"]
    assert str(caught.value) == (
        "A file with a search space must come with a class in it, but got 'mine.py'; write mine.py:CLASS."
    )


def test_the_graph_is_a_chain_of_named_groups() -> None:
    architecture = Architecture.parse("width=4 block1/kernel=3 block1/act=tanh depth=2")
    graph = module_space(Net)().graphs(architecture)["Net"]
    assert dict(graph.nodes(data="operation")) == {"width": "4", "block1": "kernel 3, act tanh", "depth": "2"}
    assert list(graph.edges) == [("width", "block1"), ("block1", "depth")]


class Reading(nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.layer = ElasticLinear(4, Size("width", (2, 4)))


def test_a_constructor_that_reads_tensors() -> None:
    with pytest.raises(ArchitectureError) as caught:
        module_space(Reading)().choices(SHAPES)
    assert str(caught.value).endswith(
        "; it is also made on the meta device, where tensors have no values: reckon with plain numbers."
    )


def test_sizes_may_be_numpy_numbers() -> None:
    width = Size("width", (2, 4))
    layer = ElasticLinear(np.prod((2, 2)), width)
    assert layer.linear.weight.shape == (4, 4)
    with pytest.raises(ArchitectureError, match="must be texts without space or '=', but choice 'op' has 3"):
        MixedOp("op", {3: nn.ReLU(), 5: nn.Tanh()})  # type: ignore[dict-item]
