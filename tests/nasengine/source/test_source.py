"""Written code computes what the network computes, whatever its author wrote."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.errors import ExportError
from nasengine.interface import Interface
from nasengine.operations import DropPath
from nasengine.source import source
from nasengine.task import Shapes
from tests.nasengine.exports import assert_generated, generated, interface_of, unsettled

IMAGES, ROWS, WORDS = Shapes((3, 6, 6), 4), Shapes((5, 8), 4), Shapes((7,), 4, vocabulary=9)


def plain(forward: Callable[..., Tensor], shapes: Shapes = ROWS, **children: nn.Module) -> nn.Module:
    """A network of some children and a forward."""
    kind = type("Plain", (nn.Module,), {"forward": forward})
    network: nn.Module = kind()
    for name, child in children.items():
        network.add_module(name, child)
    return unsettled(network)


def head(size: int = 8) -> nn.Module:
    return nn.Linear(size, 4)


def text_of(network: nn.Module, shapes: Shapes, folder: Path) -> str:
    return assert_generated(network, shapes, folder).partition("WEIGHTS = ")[2].partition("def preprocess")[0]


def forward_of(text: str, name: str = "Plain") -> list[str]:
    """The lines of the forward of a class."""
    body = text.partition(f"class {name}(")[2].partition("def forward(")[2].partition("\n\n")[0]
    return [line.strip() for line in body.splitlines()[1:] if line.strip()]


def test_layers_are_constructors_and_the_forward_is_as_it_was_written(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)) + 1)

    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    text = text_of(plain(forward, body=body, head=head()), IMAGES, tmp_path)
    layers = ["nn.Conv2d(3, 8, 3, padding=1, bias=False)", "nn.BatchNorm2d(8)", "nn.ReLU(inplace=True)"]
    assert "self.body = nn.Sequential(\n            " + ",\n            ".join(layers) + ",\n        )\n" in text
    assert forward_of(text) == ["return self.head(self.body(x).mean(dim=(2, 3)) + 1)"]


def test_sizes_of_the_batch_stay_open_and_all_others_are_numbers(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        batch, rows, columns = x.shape
        flat = x.reshape(batch * rows, columns)
        assert len(flat) == batch * rows
        halves = self.mix(flat).view(batch, rows, 2, columns // 2)
        return self.head(halves.transpose(1, 2).reshape(len(x), -1)) + x.new_zeros(batch, 4)

    text = text_of(plain(forward, mix=nn.Linear(8, 8), head=head(40)), ROWS, tmp_path)
    assert "10007" not in text and "5 * x.shape[0], 8)" in text


def test_sizes_of_the_batch_inside_a_module_that_gets_rows_of_several_examples(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return rows.view(len(rows) // 5, 5, 8)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.rows(x.flatten(0, 1)).mean(1))

    text = text_of(plain(forward, rows=Rows(), head=head()), ROWS, tmp_path)
    assert forward_of(text, "Rows") == ["return rows.view(1 * rows.shape[0] // 5, 5, 8)"]


def test_what_changes_tensors_in_place_keeps_its_place(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = x * 2
        before = y + 1
        y[:, 0] = 0.5
        y += 1
        y.clamp_(max=1.0)
        z = y.clone()
        self.relu(z)
        return self.head((before + y + z - x).sum(1))

    lines = forward_of(text_of(plain(forward, relu=nn.ReLU(inplace=True), head=head()), ROWS, tmp_path))
    assert [line for line in lines if "[:, 0] = 0.5" in line] and any("clamp_(" in line for line in lines)


def test_operators_keep_their_order(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = 1 - (2 - x) / (x * x + 3) - (x - 1) * (x + 2) ** 2 + 2 / (x.abs() + 1) - (-x) ** 2 @ self.weight.weight
        return self.head((y > 0).to(torch.float32).sum(1) + y.mean(1))

    text_of(plain(forward, weight=nn.Linear(8, 8, bias=False), head=head()), ROWS, tmp_path)


def test_modules_that_take_and_give_several_tensors(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, xs: list[Tensor], *more: Tensor, scale: float, both: bool = True) -> tuple[Tensor, Tensor]:
            total = xs[0] * scale + xs[1] + more[0]
            return (total, total) if both else (total, xs[0])

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        first, second = self.pair([x, x + 1], x, scale=0.5)
        third, fourth = self.pair([second, first], x, scale=0.5)
        values, places = third.max(dim=1)
        chunks = fourth.chunk(2, dim=2)
        return self.head(values + places * 0.1 + torch.cat([chunks[1], chunks[0]], dim=2).mean(1))

    text = text_of(plain(forward, pair=Pair(), head=head()), ROWS, tmp_path)
    assert "def forward(self, xs: list[Tensor], more_0: Tensor) -> tuple[Tensor, ...]:" in text


def test_functions_constants_and_weights(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))
            self.scales = nn.ParameterList([torch.randn(8), torch.randn(8)])
            self.register_buffer("shift", torch.randn(8))
            self.register_buffer("fixed", torch.arange(8.0), persistent=False)
            self.constant = torch.tensor([0.5, -0.5] * 4)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(5, device=x.device).view(1, 5, 1) * torch.tensor([1.0, 2.0] * 4)
            x = F.layer_norm(x @ self.weight * self.scales[1], (8,)) + self.shift + self.fixed - self.constant
            return F.gelu(x + places, approximate="tanh")

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.own(x).mean(1))

    text = text_of(plain(forward, own=Own(), head=head()), ROWS, tmp_path)
    assert "self.weight = nn.Parameter(torch.zeros((8, 8)))" in text and "persistent=False" in text
    assert "F.gelu(" in text and 'approximate="tanh"' in text


def test_torchs_larger_modules(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        mixed = self.encoder(mixed)
        sequence, (last, _) = self.memory(mixed)
        return self.head(sequence.mean(1) + last[0])

    network = plain(
        forward,
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        encoder=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        memory=nn.LSTM(8, 8, batch_first=True),
        head=head(),
    )
    text = text_of(network, ROWS, tmp_path)
    assert "nn.MultiheadAttention(8, 2" in text and "nn.LSTM(8, 8, batch_first=True)" in text


def test_dropout_stays_and_dropped_paths_do_not(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head((self.path(self.drop(x)) + x).mean(1))

    text = text_of(plain(forward, drop=nn.Dropout(0.3), path=DropPath(), head=head()), ROWS, tmp_path)
    assert forward_of(text) == ["return self.head((self.drop(x) + x).mean(1))"]
    assert "self.drop = nn.Dropout(p=0.3)" in text and "self.path" not in text


def test_modules_that_are_alike_have_one_class_and_others_a_number(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(8, size), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) + x
        x = self.named["a b"](self.blocks[0](x))
        return self.head(x.mean(1))

    blocks = nn.ModuleList([Block(8), Block(8)])
    network = plain(forward, blocks=blocks, named=nn.ModuleDict({"a b": Block(12), "never": Block(3)}), head=head(12))
    text = text_of(network, ROWS, tmp_path)
    assert "self.blocks = nn.ModuleList([Block(), Block()])" in text and 'nn.ModuleDict({"a b": Block2()})' in text
    assert text.count("class Block") == 2 and "unused" not in text and '"""blocks.0, blocks.1."""' in text


def test_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))

    network = plain(forward, embed=nn.Embedding(9, 8), head=head())
    module = generated(network, WORDS, tmp_path)
    assert module.VOCABULARY == 9 and not hasattr(module, "MEAN")
    tokens = torch.randint(9, (3, 7))
    assert torch.equal(module.preprocess(tokens.int()), tokens)
    assert torch.equal(module.load()(tokens), network(tokens))


@pytest.mark.parametrize("shapes", [IMAGES, ROWS])
def test_preprocessing_is_that_of_the_task_to_the_bit(shapes: Shapes, tmp_path: Path) -> None:
    from nasengine.batches import _normalised

    interface = interface_of(shapes)
    mean, std = (0.1 + torch.rand(2, shapes.input[0])).unbind()
    interface = Interface(**{**vars(interface), "mean": tuple(mean.tolist()), "std": tuple(std.tolist())})
    network = unsettled(nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shapes.input).numel(), 4)))
    (tmp_path / "model.py").write_text(source(network, interface, "", ""))
    module: dict[str, object] = {"__file__": str(tmp_path / "model.py"), "__name__": "model"}
    exec((tmp_path / "model.py").read_text(), module)
    raw = (
        torch.randint(256, (4, *shapes.input), dtype=torch.uint8) if interface.dtype == "uint8" else torch.rand(4, 5, 8)
    )
    preprocess = module["preprocess"]
    assert callable(preprocess)
    assert torch.equal(preprocess(raw), _normalised(raw, mean, std))


def test_targets_in_their_own_units(tmp_path: Path) -> None:
    moments = {"regression": True, "target_mean": (3.0, 0.5, 0.0, -7.0), "target_std": (2.0, 0.25, 1.0, 10.0)}
    interface = Interface(**{**vars(interface_of(Shapes((5,), 4))), **moments})
    network = unsettled(nn.Sequential(nn.Linear(5, 4)))
    text = source(network, interface, "", "")
    assert "# (batch, 4): a number a target, standardised: see postprocess" in text
    module: dict[str, Any] = {"__file__": str(tmp_path / "model.py"), "__name__": "model"}
    exec(text, module)
    assert module["postprocess"](torch.ones(2, 4)).tolist() == [[5.0, 0.75, 1.0, 3.0]] * 2
    assert "postprocess" not in source(network, interface_of(Shapes((5,), 4)), "", "")


def test_texts_of_others_stay_texts(tmp_path: Path) -> None:
    classes = ("it's", 'a "b"', "@MEAN@", "\\n", "ä")
    interface = Interface(**{**vars(interface_of(Shapes((5,), 5))), "classes": classes})
    rude = 'about """ \\N and "'
    text = source(unsettled(nn.Sequential(nn.Linear(5, 5))), interface, rude, 'x="""@STD@' + "long words " * 40)
    assert (ast.get_docstring(ast.parse(text)) or "").startswith(rude + "\n")
    (tmp_path / "model.py").write_text(text, encoding="utf-8")
    found = {node.targets[0].id: node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(found["CLASSES"]) == classes
    assert ast.literal_eval(found["ARCHITECTURE"]) == 'x="""@STD@' + "long words " * 40
    assert max(map(len, text.splitlines())) <= 120


def test_the_file_runs_where_there_is_torch_alone(tmp_path: Path) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    generated(plain(forward, body=nn.Conv2d(3, 8, 3), head=head()), IMAGES, tmp_path)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((tmp_path / "model.py").read_text()))
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        )
    }
    assert imported - {""} <= {"torch", *sys.stdlib_module_names}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", tmp_path / "model.py"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert done.stdout == "Plain: 260 parameters, (2, 3, 6, 6) -> (2, 4)\n"


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


_ELSEWHERE = nn.Linear(8, 200)


def _by_value(self: nn.Module, x: Tensor) -> Tensor:
    return x.mean(1)[:, :4] if bool(x.sum() > 0) else x.mean(1)[:, 4:]


def _twice(self: nn.Module, x: Tensor) -> Tensor:
    return self.count(self.count(x)).mean(1)[:, :4]


def _of_another(self: nn.Module, x: Tensor) -> Tensor:
    return _ELSEWHERE(x).mean(1)[:, :4]


def _of_aten(self: nn.Module, x: Tensor) -> Tensor:
    return torch.ops.aten.relu(x).mean(1)[:, :4]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (_by_value, "A network must run without knowing the values of its inputs to be written as Python code, but"),
        (_twice, "A module that is called more than once must do the same each time to be written as Python code, but"),
        (_of_another, "to be written as Python code, but Plain"),
        (_of_aten, "to be written as Python code, but Plain"),
    ],
)
def test_what_cannot_be_written_is_told(forward: Callable[..., Tensor], said: str) -> None:
    with pytest.raises(ExportError) as error:
        source(plain(forward, count=_Counting()), interface_of(ROWS), "", "")
    assert said in str(error.value) and "leave py out of the formats (--format)" in str(error.value)
