from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nasengine
from nasengine._cli.main import main
from nasengine.architecture import Architecture
from nasengine.config import SearchSettings, resolve_settings
from nasengine.drawing import changes, draw, text
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.seeding import generator
from nasengine.supernet import MixedOp, Shared
from nasengine.task import Shapes
from nasengine.testing import check_space
from search_spaces.darts import DARTS
from search_spaces.nasbench201 import NASBench201, Network, ResidualBlock, derived_cell, search_cell

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench201/nasbench201.parquet"
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
    with pytest.raises(DataError, match=r"Space 'nasbench201' needs images .* shape \(12,\)"):
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


# The table

ROWS = {
    everywhere("skip_connect"): (39.75, 54.25),
    everywhere("none"): (9.75, 10.0),
    BEST: (91.5, 94.25),
}


def columns() -> dict[str, list[object]]:
    """A small table in the layout of the real one, in percent."""
    return {
        "index": list(range(len(ROWS))),
        "architecture": list(ROWS),
        "cifar10_validation_accuracy": [valid for valid, _ in ROWS.values()],
        "cifar10_test_accuracy": [test for _, test in ROWS.values()],
        "cifar100_validation_accuracy_one_seed": [15, 1, 70],
        "xeon_latency_ms": [1.0, 2.0, 3.0],
    }


def save(path: Path, table: Mapping[str, Sequence[object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    return path


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_accuracies_are_looked_up_as_shares(tmp_path: Path, name: str) -> None:
    benchmark = SPACE.benchmark(save(tmp_path / name, columns()))
    known = benchmark(SPACE.read(everywhere("skip_connect")))
    assert list(known.items()) == [
        ("cifar10_test_accuracy", 0.5425),
        ("cifar10_validation_accuracy", 0.3975),
        ("cifar100_validation_accuracy_one_seed", 0.15),
    ]
    assert benchmark(SPACE.read(BEST))["cifar10_test_accuracy"] == 0.9425
    assert all(type(value) is float for value in known.values())
    known.clear()
    assert benchmark(SPACE.read(everywhere("skip_connect")))


def test_the_file_is_read_once(tmp_path: Path) -> None:
    path = save(tmp_path / "table.csv", columns())
    benchmark = SPACE.benchmark(path)
    path.unlink()
    assert benchmark(SPACE.read(BEST))["cifar10_test_accuracy"] == 0.9425


def test_an_architecture_that_is_not_in_the_table(tmp_path: Path) -> None:
    benchmark = SPACE.benchmark(save(tmp_path / "table.csv", columns()))
    with pytest.raises(DataError) as refused:
        benchmark(SPACE.read(EXAMPLE))
    assert str(refused.value) == (
        f"{tmp_path}/table.csv must have every architecture that is found, but {EXAMPLE} is not among its 3; give the "
        "whole table, or leave out --benchmark."
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "architecture",
            None,
            "must have a column architecture and columns of accuracies such as .*, but has 'index, ",
        ),
        ("architecture", [*list(ROWS)[:2], EXAMPLE[:-1]], r"must have the form .*, but row 2 has '\|nor_conv_3x3~0\|"),
        ("architecture", [EXAMPLE] * 3, r"must have every architecture once, but \|nor_.* is in rows 0 and 1\.$"),
        ("architecture", [1, 2, 3], "The column architecture of .* must have a text in every row, but has not"),
        ("cifar10_test_accuracy", [1.0, None, 2.0], "column cifar10_test_accuracy of .* must be percentages from 0 to"),
        ("cifar10_test_accuracy", [1.0, 101.0, 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", [1.0, -1.0, 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", [1.0, float("nan"), 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", ["high", "low", ""], "must be percentages from 0 to 100, but is not everywhere"),
    ],
)
def test_tables_of_another_layout(
    tmp_path: Path, suffix: str, column: str, values: list[object] | None, message: str
) -> None:
    table = {**columns(), column: values or []}
    if values is None:
        del table[column]
    path = save(tmp_path / f"table.{suffix}", table)
    with pytest.raises(DataError, match=message) as refused:
        SPACE.benchmark(path)
    assert str(path) in str(refused.value) and not re.search(r"[.?!] [A-Z]", str(refused.value))


def test_a_table_without_accuracies_or_rows(tmp_path: Path) -> None:
    few: dict[str, list[object]] = {"architecture": list(ROWS), "latency": [1, 2, 3]}
    with pytest.raises(DataError, match=r"columns of accuracies .*, but has 'architecture, latency'\.$"):
        SPACE.benchmark(save(tmp_path / "table.csv", few))
    empty: dict[str, list[object]] = {name: [] for name in columns()}
    with pytest.raises(DataError, match=r"must have a text in every row, but has not"):
        SPACE.benchmark(save(tmp_path / "table.parquet", empty))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and then nothing", "must be a whole parquet or CSV file, but .* is not one"),
        (b"", "must be a whole parquet or CSV file, but .* is not one"),
        (b"\xff\xfe\x00\x01" * 64, "table"),
        (b"\xff\xfe,x\n1,2\n", "must be a whole parquet or CSV file, but .* is not one"),
        (b"architecture,a_accuracy\n\xff\xfe,3\n", "must have a text in every row, but has not"),
        (b"architecture,a_accuracy,a_accuracy\nx,3,4\n", "a_accuracy, a_accuracy"),
        (b"\n" * 64, "table"),
        (bytes(range(256)) * 16, "table"),
        (b'architecture,a_accuracy\n"|none~0', "table"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_files_that_are_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        SPACE.benchmark(tmp_path / "table")
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_a_parquet_file_that_was_cut(tmp_path: Path) -> None:
    path = save(tmp_path / "table.parquet", columns())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="must be a whole parquet or CSV file"):
        SPACE.benchmark(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a readable file, but .*/none is not: No such file or directory\.$"):
        SPACE.benchmark(tmp_path / "none")
    with pytest.raises(DataError, match=r"must be a readable file, but .* is not: Is a directory\.$"):
        SPACE.benchmark(tmp_path)


def test_a_space_without_a_table_says_so() -> None:
    with pytest.raises(SettingError, match=r"space 'darts' has none, .* table.csv .*; leave out --benchmark\.$"):
        DARTS().benchmark(Path("table.csv"))


# The look-up in a search


def whole(path: Path) -> Path:
    """A table of all cells whose test accuracy tells which cell it is."""
    cells = [Architecture(dict(zip(LABELS, options, strict=True))) for options in product(NAMES, repeat=6)]
    accuracies: list[object] = [100.0 * place / len(cells) for place in range(len(cells))]
    texts: list[object] = [SPACE.write(cell) for cell in cells]
    halves: list[object] = [50] * len(cells)
    return save(
        path, {"architecture": texts, "cifar10_validation_accuracy": halves, "cifar10_test_accuracy": accuracies}
    )


def share(genotype: str) -> float:
    """The accuracy of a cell in that table."""
    place = 0
    for option in SPACE.read(genotype).values():
        place = 5 * place + NAMES.index(option)
    return 100.0 * place / 5**6 / 100.0


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data spec: 40 grey images of 8x8 pixels in 4 classes."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    rng, labels = np.random.default_rng(0), np.arange(40) % 4
    np.savez(tmp_path / "tiny.npz", x=rng.integers(255, size=(40, 8, 8), dtype=np.uint8), y=labels)
    return f"npz:{tmp_path}/tiny.npz"


SEARCH = ("space.channels=2", "space.cells=1", "search.epochs=2", "search.batch_size=8", "search.device=cpu")
KNOWN = ("benchmark_cifar10_test_accuracy", "benchmark_cifar10_validation_accuracy")


def test_a_search_writes_what_is_known(digits: str, tmp_path: Path) -> None:
    settings = (*SEARCH, f"search.benchmark={whole(tmp_path / 'all.parquet')}")
    found = nasengine.search("nasbench201", task=digits, settings=settings, out=tmp_path / "run")
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert tuple(name for name in row if "benchmark" in name) == KNOWN
        assert float(row[KNOWN[0]]) == pytest.approx(share(row["architecture"]), abs=1e-15)
        assert row[KNOWN[1]] == "0.5"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["search"]["benchmark"] == str(tmp_path / "all.parquet")
    assert record["result"][KNOWN[0]] == pytest.approx(share(found.text), abs=1e-15)
    assert record["result"][KNOWN[1]] == 0.5


def test_without_a_table_nothing_is_written(digits: str, tmp_path: Path) -> None:
    found = nasengine.search("nasbench201", task=digits, settings=SEARCH, out=tmp_path / "run")
    assert "benchmark" not in (tmp_path / "run" / "history.csv").read_text()
    assert not any("benchmark" in name for name in found.record["result"])
    assert found.record["config"]["search"]["benchmark"] is None


def test_the_command_line_shows_what_is_known(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = whole(tmp_path / "all.csv")
    flags = [part for setting in SEARCH for part in ("--set", setting)]
    arguments = ["--space", "nasbench201", "--data", digits, *flags, "--out", str(tmp_path / "run")]
    assert main(["search", *arguments, "--benchmark", str(table)]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert re.search(rf"\nepoch 2/2 .*  benchmark {result[KNOWN[0]]:.1%}  [\d.]+ s/step", out)
    assert f"\nbenchmark, cifar10 test accuracy: {result[KNOWN[0]]:.2%}\n" in out
    assert "\nbenchmark, cifar10 validation accuracy: 50.00%\n" in out
    assert f"\n{result['genotype']}\n" in out


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("nasbench201", "nasengine: A benchmark table must be a readable file, but gone.csv is not: No such file or "),
        ("darts", "nasengine: A benchmark must be a table of the space, but space 'darts' has none, "),
    ],
)
def test_a_bad_table_stops_before_anything_is_written(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str, message: str
) -> None:
    arguments = ["--space", space, "--data", digits, "--out", str(tmp_path / "run"), "--benchmark", "gone.csv"]
    assert main(["search", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message) and not (tmp_path / "run").exists()


def test_none_takes_the_table_away() -> None:
    stored = {"benchmark": "table.csv"}
    assert resolve_settings(SearchSettings, stored, {}, "search").benchmark == "table.csv"
    assert resolve_settings(SearchSettings, stored, {"benchmark": "none"}, "search").benchmark is None


# The real table


@pytest.mark.skipif(not REAL.is_file(), reason="the real table of NAS-Bench-201 is not on this machine")
def test_the_real_table() -> None:
    table = pq.read_table(REAL).to_pydict()
    genotypes = table["architecture"]
    cells = [SPACE.read(genotype) for genotype in genotypes]
    assert len(set(cells)) == 15_625 and [SPACE.write(cell) for cell in cells] == genotypes
    pairs = zip(genotypes, table["params_millions"], strict=True)
    gaps = [abs(counted(genotype) - 1e6 * millions) for genotype, millions in pairs]
    other = [gap for gap in gaps if gap > 0.5]
    assert len(other) == 204  # of which the table has a mean of two or three runs, one with other operations
    operations = [count * size for count in (1, 2) for size in (28_000, 243_040)]  # of a 1x1 and of a 3x3 convolution
    assert all(min(abs(runs * gap - size) for runs in (2, 3) for size in operations) < 1 for gap in other)

    benchmark = SPACE.benchmark(REAL)
    known = [benchmark(cell)["cifar10_test_accuracy"] for cell in cells]
    assert known == pytest.approx([value / 100 for value in table["cifar10_test_accuracy"]], abs=1e-12)
    assert list(benchmark(cells[0])) == [
        *("cifar10_test_accuracy", "cifar10_validation_accuracy", "cifar10_validation_accuracy_12_epochs"),
        *("cifar10_test_accuracy_12_epochs", "cifar100_validation_accuracy_one_seed"),
        "imagenet16_validation_accuracy_one_seed",
    ]
    assert max(known) == pytest.approx(0.9437, abs=5e-5)  # the published optimum


@pytest.mark.skipif(not REAL.is_file(), reason="the real table of NAS-Bench-201 is not on this machine")
def test_the_collapse_of_darts_is_its_published_figure() -> None:
    """arXiv:2001.00326, table 5: DARTS ends at 54.30 on CIFAR-10, validation 39.77."""
    known = SPACE.benchmark(REAL)(SPACE.read(everywhere("skip_connect")))
    assert 100 * known["cifar10_test_accuracy"] == pytest.approx(54.30, abs=0.1)
    assert 100 * known["cifar10_validation_accuracy"] == pytest.approx(39.77, abs=0.1)
