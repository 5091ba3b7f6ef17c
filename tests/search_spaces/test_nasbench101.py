"""NAS-Bench-101 as a space: published parameter counts, channels written out, texts, and that it is not searched."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import nasengine
from nasengine.architecture import Architecture
from nasengine.cost import parameters
from nasengine.errors import ArchitectureError, SettingError
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces._nasbench101 import MAX_EDGES, OPERATIONS, Cell
from search_spaces.nasbench101 import CellNetwork, NASBench101, channels_of

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101"
CIFAR = Shapes((3, 32, 32), 10)
CONV3, CONV1, POOL = OPERATIONS
SPACE = NASBench101()
CHOICES = SPACE.choices()
SMALL = NASBench101(channels=8, stacks=2, cells=1)
FIRST = Cell(  # the first record of the published table
    [
        [0, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    ["input", CONV3, POOL, CONV3, CONV3, CONV1, "output"],
)
EDGE = Cell([[0, 1], [0, 0]], ["input", "output"])


def weights(architecture: Architecture) -> int:
    with torch.device("meta"):
        return parameters(SPACE.build(architecture, CIFAR))


def matrix(*rows: str) -> list[list[int]]:
    return [[int(entry) for entry in row] for row in rows]


def test_published_parameters() -> None:
    assert weights(SPACE.architecture(FIRST)) == 8_555_530


def test_parameters_of_many_cells_of_the_table() -> None:
    if not (REAL / "labels.parquet").exists():
        pytest.skip("needs labels.parquet of NAS-Bench-101 beside the repository")
    table = pq.read_table(REAL / "labels.parquet").slice(1000, 60).to_pylist()
    for row in table:
        count = row["n_vertices"]
        cell = Cell(
            [[int(row["adjacency"][7 * x + y]) for y in range(count)] for x in range(count)],
            row["operations"].split(","),
        )
        architecture = SPACE.architecture(cell)
        assert SPACE.cell(architecture).module_hash == row["hash"]
        assert weights(architecture) == row["trainable_parameters"]


@pytest.mark.parametrize("answer", ["first_record", "best_by_mean_test_accuracy_108"])
def test_known_answers(answer: str) -> None:
    if not (REAL / "known_answers.json").exists():
        pytest.skip("needs known_answers.json of NAS-Bench-101 beside the repository")
    known = json.loads((REAL / "known_answers.json").read_text())[answer]
    cell = Cell(known["module_adjacency"], known["module_operations"])
    assert cell.module_hash == known["hash"]
    assert weights(SPACE.architecture(cell)) == known["trainable_parameters"]


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "channels"),
    [
        (("01", "00"), 8, 15, [8, 15]),
        (("0110", "0001", "0001", "0000"), 8, 15, [8, 8, 7, 15]),
        (("0101", "0010", "0001", "0000"), 8, 15, [8, 15, 15, 15]),
        (("01001", "00100", "00011", "00001", "00000"), 8, 16, [8, 8, 8, 8, 16]),
    ],
)
def test_channels_are_split_among_the_sources_of_the_output(
    rows: tuple[str, ...], inputs: int, outputs: int, channels: list[int]
) -> None:
    inner = [CONV3] * (len(rows) - 2)
    assert channels_of(Cell(matrix(*rows), ["input", *inner, "output"]), inputs, outputs) == channels


def test_a_cell_written_out() -> None:
    cell = Cell(matrix("01101", "00110", "00001", "00001", "00000"), ["input", CONV1, POOL, CONV3, "output"])
    network = CellNetwork(cell, 3, 5).double().eval()
    assert network.channels == [3, 3, 3, 2, 5]
    x = torch.randn(2, 3, 4, 4, generator=generator(0), dtype=torch.float64)
    first, pool, last = network.operations
    project = network.projections
    one = first(project["1"](x))
    two = pool(one + project["2"](x))
    three = last(one[:, :2])
    torch.testing.assert_close(network(x), torch.cat([two, three], 1) + project["4"](x))
    assert set(project) == {"1", "2", "4"}


def test_the_published_network() -> None:
    network = SPACE.build(SPACE.architecture(EDGE), CIFAR)
    cells = [module for module in network.modules() if isinstance(module, CellNetwork)]
    assert [cell.channels for cell in cells] == [
        [a, b] for a, b in zip([128] * 4 + [256] * 3 + [512] * 2, [128] * 3 + [256] * 3 + [512] * 3, strict=True)
    ]
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == 2


def test_texts_of_cells() -> None:
    architecture = SPACE.architecture(FIRST)
    text = f"100110-10000-1001-010-10-1 {CONV3},{POOL},{CONV3},{CONV3},{CONV1}"
    assert SPACE.write(architecture) == text and SPACE.read(text) == architecture
    assert SPACE.write(SPACE.architecture(EDGE)) == "1" and SPACE.read(" 1 ") == SPACE.architecture(EDGE)
    gap = SPACE.read(f"010000-00000-0001-000-00-0 {CONV3},{POOL},{CONV3},{CONV3},{CONV1}")
    assert SPACE.cell(gap) == Cell(matrix("010", "001", "000"), ["input", POOL, "output"])


def test_architectures_with_gaps_keep_them_in_their_text() -> None:
    plain = {label: choice.options[0] for label, choice in CHOICES.items()}
    gap = Architecture({**plain, "edge/0-3": "1", "edge/3-6": "1", "op/3": POOL})
    SPACE.check(CHOICES, gap)
    assert SPACE.read(SPACE.write(gap)) == gap != SPACE.architecture(SPACE.cell(gap))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "A cell must have the form '111-01-1 conv3x3-bn-relu,maxpool3x3', the rows of its matrix above"),
        ("12-1 x", "A cell must have the form"),
        ("11-1-1 maxpool3x3", "A cell must have the form"),
        ("11-1", "A cell must have one operation a vertex, but has 2 for 3 vertices"),
        ("11-1 sep_conv", "must be among conv3x3-bn-relu, conv1x1-bn-relu, maxpool3x3, but one is 'sep_conv'"),
        ("00-1 maxpool3x3", "The output of a cell must be connected to its input"),
        (f"111111-11111-1111-111-11-1 {','.join([CONV3] * 5)}", "at most 7 vertices and 9 edges on its ways"),
        ("edge/0-6=1", "The architecture must decide 'edge/0-1'"),
    ],
)
def test_texts_that_are_no_cell(text: str, told: str) -> None:
    with pytest.raises(ArchitectureError) as refused:
        SPACE.read(text)
    assert told in str(refused.value)


def test_what_is_on_no_way_is_idle() -> None:
    plain = {label: choice.options[0] for label, choice in CHOICES.items()}
    dead = Architecture({**plain, "edge/0-6": "1", "edge/0-2": "1", "op/2": POOL})
    canonical = SPACE.canonical(CHOICES, dead)
    assert canonical == SPACE.architecture(EDGE)
    with pytest.raises(ArchitectureError, match="without effect must take its first option, but 'edge/0-2' is '1'"):
        SPACE.check(CHOICES, dead)


def test_derived_cells_are_cells() -> None:
    rng = generator(3)
    for _ in range(200):
        shares = {label: torch.rand(len(choice.options), generator=rng) for label, choice in CHOICES.items()}
        found = SPACE.derive(CHOICES, shares)
        SPACE.check(CHOICES, found)
        heavy = [edge for edge in CHOICES if edge.startswith("edge") and shares[edge][1] > shares[edge][0]]
        assert sum(found[label] == "1" for label in heavy) <= MAX_EDGES


def test_where_nothing_is_joined_the_heaviest_way_is_taken() -> None:
    shares = {label: torch.tensor([1.0, 0.0, 0.0][: len(choice.options)]) for label, choice in CHOICES.items()}
    assert SPACE.derive(CHOICES, shares) == SPACE.architecture(EDGE)
    for edge in ("edge/0-2", "edge/2-5", "edge/5-6"):
        shares[edge] = torch.tensor([0.55, 0.45])
    found = SPACE.derive(CHOICES, shares)
    assert [label for label in found if found[label] == "1"] == ["edge/0-2", "edge/2-5", "edge/5-6"]


def test_samples_are_uniform_over_all_cells() -> None:
    rng = generator(0)
    found = [SPACE.cell(SPACE.sample(CHOICES, rng)) for _ in range(1000)]
    assert len({cell.module_hash for cell in found}) > 995
    counts = [sum(len(cell.matrix) == vertices for cell in found) for vertices in range(2, 8)]
    shares = [1000 * count / 423_624 for count in (1, 6, 84, 2_441, 62_010, 359_082)]
    assert all(abs(count - share) < 5 * (share + 1) ** 0.5 for count, share in zip(counts, shares, strict=True))


def test_it_is_not_searched(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as refused:
        nasengine.search("nasbench101", "darts", "digits", out=tmp_path / "run")
    assert str(refused.value) == (
        "A space to search must have a supernet, but 'nasbench101' has none: its cells can be ranked and trained, not "
        "searched; choose another --space."
    )
    assert not (tmp_path / "run").exists()


def test_a_cell_is_trained(tmp_path: Path) -> None:
    settings = ["space.channels=4", "space.stacks=2", "space.cells=1", "train.epochs=1", "train.device=cpu"]
    text = SMALL.write(SMALL.architecture(FIRST))
    trained = nasengine.train(genotype=text, space="nasbench101", task="digits", settings=settings, out=tmp_path)
    assert 0 <= trained.test_score <= 1 and (tmp_path / "network.safetensors").exists()
