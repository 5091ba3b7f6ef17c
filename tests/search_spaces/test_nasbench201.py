"""NAS-Bench-201: its cell, its networks, its text form."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasengine.architecture import Architecture
from nasengine.drawing import changes, draw, text
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.seeding import generator
from nasengine.separable import by_formula
from nasengine.supernet import MixedOp, Shared
from nasengine.task import Shapes
from nasengine.testing import check_space
from search_spaces.nasbench201 import OPERATIONS, NASBench201, Network, ResidualBlock, derived_cell, search_cell

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
LABELS = ("cell/0-1", "cell/0-2", "cell/1-2", "cell/0-3", "cell/1-3", "cell/2-3")
CIFAR = Shapes((3, 32, 32), 10)
SPACE, SMALL = NASBench201(), NASBench201(channels=4, cells=1)
EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


def everywhere(operation: str) -> str:
    return f"|{operation}~0|+|{operation}~0|{operation}~1|+|{operation}~0|{operation}~1|{operation}~2|"


def counted(genotype: str, channels: int = 16, cells: int = 5, classes: int = 10) -> int:
    """The parameters of a network by the arithmetic of its parts: convolutions without bias, norms with 2 a channel."""

    def block(inputs: int, outputs: int) -> int:
        return (9 * inputs * outputs + 2 * outputs) + (9 * outputs**2 + 2 * outputs) + inputs * outputs

    used = Counter(re.findall(r"(\w+)~", genotype))
    widths = (channels, 2 * channels, 4 * channels)
    edges = sum(used["nor_conv_3x3"] * (9 * c**2 + 2 * c) + used["nor_conv_1x1"] * (c**2 + 2 * c) for c in widths)
    stem = 9 * 3 * channels + 2 * channels
    head = 2 * widths[2] + widths[2] * classes + classes
    return stem + block(*widths[:2]) + block(*widths[1:]) + head + cells * edges


def parameters(space: NASBench201, genotype: str, shapes: Shapes = CIFAR) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in space.build(space.read(genotype), shapes).parameters())


# Choices


def test_choices_of_the_published_space() -> None:
    choices = SPACE.choices(CIFAR)
    assert tuple(choices) == LABELS
    assert all(choice.options == NAMES for choice in choices.values())


@pytest.mark.parametrize("shapes", [Shapes((3, 8, 8), 10), Shapes((1, 8, 8), 10), Shapes((2, 5, 7), 3)], ids=str)
def test_laws(shapes: Shapes) -> None:
    check_space(SMALL, shapes)


def test_the_heaviest_operation_wins_even_if_it_is_none() -> None:
    rows = {label: torch.eye(5)[place % 5] for place, label in enumerate(LABELS)}
    derived = SPACE.derive(SPACE.choices(), rows)
    assert derived == Architecture({label: NAMES[place % 5] for place, label in enumerate(LABELS)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "space.channels must be at least 1, but got 0"),
        ({"cells": 0}, "space.cells must be at least 1, but got 0"),
        ({"cells": 1.5}, "space.cells must be a whole number, but got 1.5"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(SPACE, **settings)  # type: ignore[arg-type]


def test_final_settings_are_at_least_the_published_ones() -> None:
    assert SMALL.final() == SPACE == NASBench201(channels=16, cells=5)
    assert NASBench201(channels=32, cells=1).final() == NASBench201(channels=32, cells=5)


# Networks


@pytest.mark.parametrize(
    ("genotype", "published"),
    [
        (everywhere("skip_connect"), 73_306),
        (everywhere("none"), 73_306),
        (everywhere("nor_conv_3x3"), 1_531_546),
        (BEST, 802_426),
        ("|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|", 129_306),
    ],
)
def test_parameters_are_the_published_ones(genotype: str, published: int) -> None:
    assert parameters(SPACE, genotype) == counted(genotype) == published


def test_parameters_of_other_sizes() -> None:
    space = NASBench201(channels=6, cells=2)
    assert parameters(space, EXAMPLE, Shapes((3, 16, 16), 7)) == counted(EXAMPLE, 6, 2, 7)


@pytest.mark.parametrize(
    ("operation", "factor"), [("none", 0.0), ("skip_connect", 4.0), ("avg_pool_3x3", 4.0)], ids=lambda value: str(value)
)
def test_a_cell_without_weights_is_arithmetic(operation: str, factor: float) -> None:
    """Node 1 is x, node 2 is x + x, node 3 is x + x + 2x; the border of a pooling counts real pixels only."""
    x = torch.full((2, 3, 5, 4), 1.5)
    assert torch.equal(derived_cell(SPACE.read(everywhere(operation)), 3)(x), factor * x)


def test_a_node_is_the_sum_of_its_edges() -> None:
    cell = derived_cell(SPACE.read("|nor_conv_1x1~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|"), 3)
    x = torch.randn(2, 3, 5, 4, generator=generator(0))
    first, second = (next(cell.edges[edge].parameters()) for edge in ("0-1", "1-2"))
    one = F.batch_norm(F.conv2d(x.relu(), first), None, None, training=True)
    two = F.batch_norm(F.conv2d(one.relu(), second, padding=1), None, None, training=True)
    torch.testing.assert_close(cell(x), two)


def test_1x1_convolutions_in_compiled_loops_are_the_plain_ones() -> None:
    operation = OPERATIONS["nor_conv_1x1"](5, True, nn.ReLU())
    x = torch.randn(3, 5, 6, 4, generator=generator(0)).requires_grad_()
    inputs = [x, *operation.parameters()]

    def derivatives() -> list[torch.Tensor]:
        output = operation(x)
        first = torch.autograd.grad(output, inputs, output.detach().cos(), create_graph=True)
        second = torch.autograd.grad(
            torch.stack([g.square().sum() for g in first]).sum(), inputs, materialize_grads=True
        )
        return [output, *first, *second]

    found = derivatives()
    assert "Added" in str(found[0].grad_fn)
    with by_formula():
        for mine, plain in zip(found, derivatives(), strict=True):
            assert (mine - plain).norm() <= 1e-3 * plain.norm() + 1e-4


def test_residual_block() -> None:
    block = ResidualBlock(2, 3)
    x = torch.randn(2, 2, 6, 4, generator=generator(0))
    with torch.no_grad():
        plain = F.conv2d(F.avg_pool2d(x, 2), next(block.shortcut.parameters())) + block.layers(x)
        torch.testing.assert_close(block(x), plain)
        assert torch.equal(block.shortcut[0](torch.ones(1, 2, 5, 3)), torch.ones(1, 2, 3, 2))
    assert block(torch.randn(2, 2, 7, 9, generator=generator(1))).shape == (2, 3, 4, 5)


def test_stages_double_channels_and_halve_the_image() -> None:
    space, sizes = NASBench201(channels=4, cells=2), []
    network = space.build(space.read(EXAMPLE), CIFAR)
    assert isinstance(network, Network)
    for stage in network.stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 3 + [(16, 8, 8)] * 3


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 16, 16), (2, 1, 1), (1, 9, 5)], ids=str)
def test_image_sizes(shape: tuple[int, int, int]) -> None:
    supernet = SMALL.supernet(Shapes(shape, 7), F.cross_entropy)
    soft = {label: torch.full((5,), 0.2) for label in LABELS}
    assert supernet(torch.randn(4, *shape, generator=generator(0)), soft).shape == (4, 7)


def test_other_inputs_than_images_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"Space 'nasbench201' needs images .* shape \(12,\); take other data or another space\.$"
    ):
        SMALL.network(Shapes((12,), 2))


def test_cells_have_learned_scales_in_the_derived_network_only() -> None:
    for network, affine in ((SMALL.network(CIFAR), False), (SMALL.build(SMALL.read(EXAMPLE), CIFAR), True)):
        assert isinstance(network, Network)
        norms = [module for module in network.stages[0].modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all(norm.affine == affine for norm in norms)


def test_edges_that_leave_a_node_share_relu_and_pooling() -> None:
    cell, ran = search_cell(3), Counter[str]()
    inner = {module.module for module in cell.modules() if isinstance(module, Shared)}
    for module in inner:
        module.register_forward_hook(lambda module, *_: ran.update([type(module).__name__]))
    supernet = SMALL.supernet(Shapes((3, 4, 4), 2), F.cross_entropy)
    supernet.network = cell
    soft = {label: torch.full((5,), 0.2) for label in LABELS}
    supernet(torch.randn(2, 3, 4, 4, generator=generator(0)), soft)
    assert ran == {"ReLU": 3, "AvgPool2d": 3}
    assert len([module for module in cell.modules() if isinstance(module, MixedOp)]) == 6


# The text form


def test_text_form() -> None:
    architecture = SPACE.read(EXAMPLE)
    assert list(architecture) == list(LABELS)
    assert [architecture[label] for label in LABELS] == [*["nor_conv_3x3"] * 3, "skip_connect", *["nor_conv_3x3"] * 2]
    assert SPACE.write(architecture) == EXAMPLE
    assert SPACE.read(f"\n {EXAMPLE} ") == architecture


def test_every_cell_has_one_text() -> None:
    cells = [Architecture(dict(zip(LABELS, options, strict=True))) for options in product(NAMES, repeat=6)]
    texts = {SPACE.write(cell) for cell in cells}
    assert len(cells) == len(texts) == 15_625
    assert all(SPACE.read(SPACE.write(cell)) == cell for cell in cells[::97])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("+", "", r"three nodes joined by '\+', but the text has 2\.$"),
        ("|+|", "|+|+|", r"three nodes joined by '\+', but the text has 4\.$"),
        ("~1", "~2", r"\|op~0\|op~1\|op~2\|, but its node 2 is '\|nor_conv_3x3~0\|nor_conv_3x3~2\|'\.$"),
        ("~0", "", r"but its node 1 is '\|nor_conv_3x3\|'\.$"),
        ("|", "", r"but its node 1 is 'nor_conv_3x3~0\|'\.$"),
        ("|nor_conv_3x3~0|+", "+", r"but its node 1 is ''\.$"),
        ("|nor_conv_3x3~0|+", "|+", r"but its node 1 is '\|'\.$"),
        ("|nor_conv_3x3~0|+", "|nor_conv_3x3~0|none~1|+", r"but its node 1 is '\|nor_conv_3x3~0\|none~1\|'\.$"),
        ("nor_conv_3x3", "sep_conv_3x3", r"'cell/0-1' must be one of none, .*, but got 'sep_conv_3x3'\.$"),
        ("nor_conv_3x3", "", r"'cell/0-1' must be one of none, .*, but got ''\.$"),
        ("nor_conv_3x3", "none~0", r"'cell/0-1' must be one of none, .*, but got 'none~0'\.$"),
        ("nor_conv_3x3", "x" * 1000, r"'cell/0-1' must be one of none"),
    ],
)
def test_other_texts_are_refused(old: str, new: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ArchitectureError, match=message) as refused:
        SPACE.read(EXAMPLE.replace(old, new, 1))
    assert not re.search(r"[.?!] [A-Z]", str(refused.value))


@pytest.mark.parametrize("form", ["", "\0", "+" * 9, "||" * 99, "Genotype(normal=[])", "edge=none"], ids=repr)
def test_texts_of_another_kind(form: str) -> None:
    with pytest.raises(ArchitectureError, match=r"An architecture must have the form \|op~0\|\+"):
        SPACE.read(form)


def test_long_texts_are_cut_in_messages() -> None:
    with pytest.raises(ArchitectureError) as refused:
        SPACE.read(f"{'y' * 10_000}+a+b")
    assert len(str(refused.value)) < 250


# What is worth watching


def test_graphs(tmp_path: Path) -> None:
    cells = SPACE.graphs(SPACE.read(EXAMPLE.replace("nor_conv_3x3~1|+", "none~1|+")))
    graph = cells["cell"]
    assert list(cells) == ["cell"] and list(graph) == ["0", "1", "2", "3"]
    assert graph.edges["0", "3"]["operation"] == "skip_connect"
    assert sorted(graph.edges) == [("0", "1"), ("0", "2"), ("0", "3"), ("1", "3"), ("2", "3")]
    before = SPACE.graphs(SPACE.read(EXAMPLE))
    assert len(changes(before, cells)) == 1
    for number, genotype in enumerate((EXAMPLE, BEST, everywhere("none"))):
        drawn = SPACE.graphs(SPACE.read(genotype))
        draw(drawn, tmp_path / f"{number}.svg")
        assert "<svg" in (tmp_path / f"{number}.svg").read_text() and "cell" in text(drawn)


def test_skips_are_counted() -> None:
    architecture = SPACE.read(everywhere("nor_conv_3x3"))
    for skips, label in enumerate(LABELS):
        assert SPACE.indicators(architecture) == {"skips": skips}
        assert bool(SPACE.warning(architecture)) == (skips > 3)
        architecture = architecture.replace(label, "skip_connect")
    assert SPACE.warning(architecture) == (
        "6 of the 6 edges of the cell are skip connections: the search may be collapsing."
    )


def test_a_cell_without_a_path_is_told() -> None:
    dead = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|none~2|"
    told = "No path leads through the cell: its output is zero whatever comes in."
    assert SPACE.warning(SPACE.read(dead)) == told
    assert SPACE.warning(SPACE.read(dead.replace("none~2", "skip_connect~2"))) == ""
    assert torch.equal(derived_cell(SPACE.read(dead), 3)(torch.ones(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))
