"""A space of one's own that is wrong is told in one sentence with the choice's name, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import record

Refuse = Callable[..., str]
QUICK = ("--epochs", "1", "--device", "cpu", "--data", "digits", "--set", "data.train_size=150")

HEAD = """
import torch
from torch import nn
from nasengine import *

WIDTH = Size("width", (8, 16, 32))

class Mine(nn.Sequential):
    def __init__(self, shapes{arguments}):
        super().__init__(nn.Flatten(), {layers})
"""

GOOD = "ElasticLinear(64, WIDTH), MixedOp('act', {'relu': nn.ReLU(), 'tanh': nn.Tanh()}), ElasticLinear(WIDTH, 10)"


def write(layers: str, arguments: str = "") -> str:
    Path("mine.py").write_text(HEAD.format(layers=layers, arguments=arguments), encoding="utf-8")
    return "mine.py:Mine"


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            "ElasticLinear(64, WIDTH), nn.ReLU(), nn.Linear(32, 10)",
            "The network of 'Mine' must run whatever choice 'width' decides, but fails (in '3', Linear, with "
            "width=16): RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x16 and 32x10); take an elastic "
            "layer of that size, or leave the option out.",
        ),
        (
            "ElasticLinear(64, WIDTH), ElasticLinear(Size('width', (8, 32)), 10)",
            "Modules that share choice 'width' must have the same options, but got the sizes 8, 16, 32 and the sizes "
            "8, 32; give one of them another name.",
        ),
        (
            "ElasticLinear(64, Size('a', (8, 10))), MixedOp('a', {'8': nn.ReLU(), '10': nn.Tanh()})",
            "Modules that share choice 'a' must have the same options, but got the sizes 8, 10 and the operations 8, "
            "10; give one of them another name.",
        ),
        (
            "MixedOp('act', {'relu': torch.relu, 'tanh': nn.Tanh()})",
            "Every option of choice 'act' must be a torch module, but 'relu' is builtin_function_or_method.",
        ),
        (
            "MixedOp('act', [nn.ReLU(), nn.Tanh()])",
            "The options of choice 'act' must be a dictionary of names and modules, but got a list; name them.",
        ),
        ("MixedOp('act', {})", "Choice 'act' must have one or more different options, but got ()."),
        ("ElasticConv1d(64, 10, Size('kernel', (2, 4)))", "Kernels must be odd, but choice 'kernel' has [2, 4]."),
        ("ElasticConv1d(64, 10, 4)", "Kernels must be odd, so that inputs keep their size, but got 4."),
        (
            "ElasticDepth('depth', [nn.ReLU(), nn.ReLU()], least=3)",
            "The least depth of choice 'depth' must be from 1 to its 2 layers, but got 3.",
        ),
        (
            "ElasticLinear(64, Size('width', (16, 8)))",
            "The values of choice 'width' must be ascending whole numbers from 1 on, one an option, but got [16, 8] "
            "for the options 16, 8.",
        ),
        (
            "ElasticLinear(64, Size('width', (8, 8)))",
            "Choice 'width' must have one or more different options, but got ('8', '8').",
        ),
        (
            "ElasticLinear(64, Size('width', '8'))",
            "The values of choice 'width' must be ascending whole numbers from 1 on, one an option, but got ['8'] for "
            "the options 8.",
        ),
        (
            "ElasticDepth('depth', [nn.Linear(64, 64), nn.Linear(64, 10)])",
            "Layers that choice 'depth' can leave out must keep the shape, but layer 2 makes (2, 10) of (2, 64) "
            "(in '1', ElasticDepth).",
        ),
        (
            "ElasticLinear(64, Size('my width', (8, 16)))",
            "Labels and options must be texts without space or '=', but choice 'my width' has 'my width'.",
        ),
        (
            "nn.Linear(64, 10)",
            "There must be something to search, but the network of 'Mine' has no choices; put a Size, an ElasticDepth "
            "or a MixedOp into modules that it registers, and no Python lists.",
        ),
        (
            "nn.Linear(64, WIDTH)",
            "Mine must be made for inputs of shape (1, 8, 8) and 10 outputs without an error, but its constructor "
            "raised TypeError: ",
        ),
        (
            "ElasticLinear(64, WIDTH), ElasticLinear(WIDTH, 7)",
            "The outputs of a network must have the shape (batch, 10), but for a batch of 2 it gave (2, 7); end it "
            "with a layer of shapes.outputs numbers.",
        ),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--max-params", "10")], ids=["run", "dry run", "limit"])
def test_spaces_that_are_wrong(refuse: Refuse, layers: str, sentence: str, more: tuple[str, ...]) -> None:
    assert refuse("search", "--space", write(layers), *QUICK, *more).startswith(sentence)
    assert [path.name for path in Path().iterdir() if path.name != "__pycache__"] == ["mine.py"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ", width",
            "Mine must take shapes and then settings with defaults that are numbers, tuples of whole numbers, ",
        ),
        (", name='x'", "A setting of Mine must have a name that spaces do not use themselves, but got 'name'; rename "),
        ("=None", "Mine must take the shapes as its first argument to be a space, but takes (shapes); write def "),
    ],
)
def test_constructors_that_are_wrong(refuse: Refuse, arguments: str, sentence: str) -> None:
    assert refuse("search", "--space", write(GOOD, arguments), *QUICK).startswith(sentence)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("mine.py", "A file with a search space must come with a class in it, but got 'mine.py'; write mine.py:CLASS."),
        (
            "mine.py:Gone",
            "The search space 'mine.py:Gone' must name something in its file, but there is no 'Gone'; it has Mine.",
        ),
        (
            "mine.py:WIDTH",
            "The search space 'mine.py:WIDTH' must be a subclass of Space or of torch.nn.Module, but is not: it is of "
            "type Size.",
        ),
    ],
)
def test_names_that_are_wrong(refuse: Refuse, space: str, sentence: str) -> None:
    write(GOOD)
    assert refuse("search", "--space", space, *QUICK).startswith(sentence)


def test_settings_of_ones_own(cli: Run, refuse: Refuse) -> None:
    space = write(GOOD, ", width: int = 3, sizes: tuple[int, ...] = (1, 2)")
    told = refuse("search", "--space", space, *QUICK, "--set", "space.widht=4")
    assert told == "Unknown setting 'space.widht': did you mean 'space.width' (known: space.sizes, space.width)?"
    assert refuse("search", "--space", space, *QUICK, "--set", "space.width=x") == (
        "space.width must be a whole number, but got 'x'."
    )
    code, out, err = cli("search", "--space", space, *QUICK, "--set", "space.sizes=3,4", "--out", "run")
    assert code == 0 and err == "" and "\nMine\n  width = " in out
    assert record(Path("run"))["config"]["space"] == {"name": f"{Path.cwd()}/mine.py:Mine", "width": 3, "sizes": [3, 4]}


def test_the_line_of_a_mistake_is_told(refuse: Refuse) -> None:
    space = write(GOOD)
    with Path("mine.py").open("a", encoding="utf-8") as file:
        file.write("\n    def forward(self, x):\n        return super().forward(x).undefined()\n")
    line = 1 + Path("mine.py").read_text(encoding="utf-8").splitlines().index(
        "        return super().forward(x).undefined()"
    )
    told = f"AttributeError: 'Tensor' object has no attribute 'undefined' (mine.py, line {line})"
    assert told in refuse("search", "--space", space, *QUICK)
