"""Parameters and multiply-adds of many cells, and their arrays for predictors."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.cost import multiply_adds, parameters
from nasengine.errors import ArchitectureError
from nasengine.task import Shapes
from search_spaces._nasbench101 import EDGES, OPERATIONS, Cell
from search_spaces._nasbench101_cells import Cells, enumerate_cells
from search_spaces._nasbench101_costs import vertex_channels
from search_spaces._nasbench101_sequence import FIRST, CellSequence, Codes, codes_of
from search_spaces.nasbench101 import NASBench101, channels_of
from tests.search_spaces.cells101 import other_form, random_cells

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101"
CIFAR = Shapes((3, 32, 32), 10)
SPACE = NASBench101()
NETWORKS = [
    (SPACE, CIFAR, 20),
    (NASBench101(channels=16, stacks=2, cells=2), Shapes((1, 13, 10), 7), 80),
    (NASBench101(channels=11, stacks=4, cells=1), Shapes((2, 7, 1), 3), 80),
    (NASBench101(channels=7, stacks=1, cells=1), Shapes((3, 5, 5), 2), 80),
]


@pytest.fixture(scope="module")
def small() -> Cells:
    return enumerate_cells(5)


def representative(architecture: Architecture) -> Architecture:
    codes = codes_of([architecture])
    count = int(codes.vertices[0])
    matrix = codes.adjacency()[0, :count, :count].tolist()
    inner = [OPERATIONS[index] for index in codes.operations[0, : count - 2]]
    return SPACE.architecture(Cell(matrix, ["input", *inner, "output"]))


def same_arrays(one: Any, other: Any) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("operations", "adjacency", "numbers")]
    return all(left.dtype == right.dtype and left.tobytes() == right.tobytes() for left, right in pairs)


# Costs


@pytest.mark.parametrize(("space", "shapes", "count"), NETWORKS)
def test_costs_are_those_of_the_network(space: NASBench101, shapes: Shapes, count: int) -> None:
    forms = [SPACE.architecture(cell) for cell in random_cells(count, count)]
    found_parameters, found_adds = space.costs(forms, shapes)
    assert found_parameters.dtype == found_adds.dtype == np.int64
    for row, architecture in enumerate(map(representative, forms)):
        with torch.device("meta"):
            assert found_parameters[row] == parameters(space.build(architecture, shapes))
        assert found_adds[row] == multiply_adds(lambda taken=architecture: space.build(taken, shapes), shapes)


@pytest.mark.parametrize("outputs", [5, 16, 128])
def test_channels_are_those_of_single_cells(outputs: int) -> None:
    for cell in random_cells(outputs, 200):
        count = len(cell.matrix)
        bits = sum(1 << bit for bit, (x, y) in enumerate(EDGES[: count * (count - 1) // 2]) if cell.matrix[x][y])
        inner = [OPERATIONS.index(operation) for operation in cell.operations[1:-1]]
        operations = np.array([[*inner, *[-1] * (7 - count)]], np.int8)
        codes = Codes(np.array([count], np.uint8), np.array([bits], np.uint32), operations)
        expected = [*channels_of(cell, 0, outputs), *[0] * (7 - count)]
        assert vertex_channels(codes, codes.adjacency(), outputs).tolist() == [expected]


def test_parameters_of_the_published_table() -> None:
    if not (REAL / "labels.parquet").exists():
        pytest.skip("needs labels.parquet of NAS-Bench-101 beside the repository")
    table = pd.read_parquet(REAL / "labels.parquet")
    forms = []
    for digits, operations, count in zip(table["adjacency"], table["operations"], table["n_vertices"], strict=True):
        places = [*range(count - 1), 6]
        edges = {f"edge/{places[x]}-{places[y]}": "1" for x, y in EDGES if y < count and digits[7 * x + y] == "1"}
        inner = {f"op/{place}": kind for place, kind in enumerate(operations.split(",")[1:-1], start=1)}
        forms.append(Architecture({**FIRST, **edges, **inner}))
    assert np.array_equal(SPACE.costs(forms, CIFAR)[0], table["trainable_parameters"])


# Arrays


def test_arrays_of_cells(small: Cells) -> None:
    cells = CellSequence(small)
    graphs = SPACE.encode(cells, CIFAR)
    assert graphs.vocabulary == ("input", *OPERATIONS, "output") and len(graphs) == 2532
    assert (graphs.operations.dtype, graphs.adjacency.dtype, graphs.numbers.dtype) == (np.int16, bool, np.float32)
    for row in [0, 1, 90, *range(100, 2532, 50)]:
        cell = small.cell(row)
        count = len(cell.matrix)
        names = [graphs.vocabulary[index] for index in graphs.operations[row, :count]]
        assert tuple(names) == cell.operations and (graphs.operations[row, count:] == -1).all()
        assert np.array_equal(graphs.adjacency[row, :count, :count], cell.matrix)
        assert graphs.adjacency[row].sum() == sum(map(sum, cell.matrix))
    both: list[NDArray[np.int64]] = [*SPACE.costs(cells, CIFAR)]
    assert graphs.numbers[7, :2].tolist() == [np.float32(math.log(kind[7])) for kind in both]


def test_the_other_numbers_say_how_a_cell_is_spread() -> None:
    matrix = [[0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    cell = Cell(matrix, ["input", "maxpool3x3", "conv1x1-bn-relu", "conv3x3-bn-relu", "output"])
    (numbers,) = SPACE.encode([SPACE.architecture(cell)], CIFAR).numbers  # all inner vertices have half the channels
    shares = [0.5, 0.5, 0.5]
    weights = [math.log((3 * 0.5) ** 2 + 0.02), math.log(0.5**2 + 0.02), math.log(0.5**2 + 0.02)]
    projected = 0.5 + 0.5 + 1.0
    expected = [*shares, *shares, *weights, projected - 1.0, 1.0, math.log(projected + 0.02), 1 / 2]
    np.testing.assert_allclose(numbers[2:], expected, rtol=1e-6)


def test_numbers_are_of_the_settings_and_shapes(small: Cells) -> None:
    cells, space = CellSequence(small)[100:110], NASBench101(channels=16)
    wide, narrow = (each.encode(cells, CIFAR).numbers[:, :2] for each in (SPACE, space))
    large = space.encode(cells, Shapes((3, 64, 64), 10)).numbers[:, :2]
    assert (narrow < wide).all() and (narrow[:, 0] == large[:, 0]).all() and (narrow[:, 1] < large[:, 1]).all()


def test_isomorphic_cells_have_the_same_arrays_in_any_company(small: Cells) -> None:
    """At 11 channels a split among three sources depends on the numbers of the vertices."""
    space, rng = NASBench101(channels=11, stacks=2), random.Random(4)
    cells = CellSequence(small)[[*rng.sample(range(2532), 80), 2, 2]]
    forms = [other_form(small.cell(row), rng) for row in cells.rows.tolist()]
    assert sum(form != cell for form, cell in zip(forms, cells, strict=True)) > 40
    graphs = space.encode(cells, CIFAR)
    assert same_arrays(graphs, space.encode(forms, CIFAR)) and same_arrays(graphs, space.encode(list(cells), CIFAR))
    backward = space.encode(forms[::-1], CIFAR)
    assert (backward.numbers[::-1] == graphs.numbers).all() and (backward.adjacency[::-1] == graphs.adjacency).all()
    for row, form in enumerate(forms):
        alone = space.encode([form], CIFAR)
        assert alone.numbers.tobytes() == graphs.numbers[row].tobytes()
        assert alone.adjacency.tobytes() == graphs.adjacency[row].tobytes()
        assert alone.operations.tobytes() == graphs.operations[row].tobytes()


def test_no_cells_have_arrays_of_the_same_form() -> None:
    graphs = SPACE.encode([], CIFAR)
    assert (graphs.operations.shape, graphs.adjacency.shape, graphs.numbers.shape) == ((0, 7), (0, 7, 7), (0, 15))


def test_what_has_no_arrays(small: Cells) -> None:
    told = r"^The space 'nasbench101' is for images .*, but got inputs of shape \(64,\); choose another space\.$"
    for call in (SPACE.encode, SPACE.costs):
        with pytest.raises(ArchitectureError, match=told):
            call(CellSequence(small), Shapes((64,), 10))
        with pytest.raises(ArchitectureError, match=r"^The architecture must decide 'edge/0-1', but names only"):
            call([Architecture({"op/1": OPERATIONS[0]})], CIFAR)
