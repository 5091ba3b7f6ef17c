"""Cells as sequences of architectures, and the form that isomorphic ones share."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError
from nasengine.task import Shapes
from search_spaces import _nasbench101_sequence as module
from search_spaces import nasbench101
from search_spaces._nasbench101_cells import Cells, enumerate_cells
from search_spaces._nasbench101_sequence import CellSequence, canonical, codes_of, sequence_of
from search_spaces.nasbench101 import NASBench101
from tests.search_spaces.cells101 import other_form, random_cells

SPACE = NASBench101()
CHOICES = SPACE.choices()


@pytest.fixture(scope="module")
def small() -> Cells:
    return enumerate_cells(5)


def test_everything_is_a_sequence_of_all_cells(small: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(nasbench101, "load_cells", lambda progress: calls.append(progress) or small)
    found = SPACE.everything(Shapes((3, 32, 32), 10), print)
    assert calls == [print] and len(found) == 2532 and found.cells is small and len(set(found)) == 2532
    assert all(isinstance(architecture, Architecture) for architecture in found)


def test_architectures_are_those_of_the_cells(small: Cells) -> None:
    cells = CellSequence(small)
    for row in [0, 1, 90, -1, *np.random.default_rng(0).integers(0, len(cells), 100).tolist()]:
        expected = SPACE.architecture(small.cell(row % len(cells)))
        assert cells[row] == expected and str(cells[row]) == str(expected)
        SPACE.check(CHOICES, cells[row])


def test_parts_of_a_sequence(small: Cells) -> None:
    cells = CellSequence(small)
    for part in (cells[7:200:3], cells[np.arange(7, 200, 3)], cells[[*range(7, 200, 3)]]):
        assert isinstance(part, CellSequence) and part.rows.tolist() == list(range(7, 200, 3)) and part.cells is small
        assert part == cells[7:200:3] and part[2] == cells[13] and list(part)[-1] == cells[199]
    truths = small.vertices == 3
    assert len(cells[truths]) == 6 and cells[truths][0] == cells[1]
    assert len(cells[[]]) == len(cells[np.zeros(0)]) == len(cells[5:5]) == 0 and list(cells[[]]) == []
    assert cells[::-1][0] == cells[-1] and cells[np.array([-1])][0] == cells[-1] and cells[np.int64(3)] == cells[3]
    assert cells[7:][[3, 3]] == cells[[10, 10]]


def test_what_is_no_index(small: Cells) -> None:
    cells = CellSequence(small)
    for index in (2532, -2533, np.array([2532]), np.ones(3, bool)):
        with pytest.raises(IndexError):
            cells[index]
    for row in (2532, -1):
        with pytest.raises(IndexError, match=r"not among those of 2,532 cells"):
            CellSequence(small, np.array([row]))
    with pytest.raises(TypeError):
        cells[1.5]  # type: ignore[call-overload]


def test_sequences_are_equal_by_their_cells(small: Cells) -> None:
    cells, fewer = CellSequence(small), CellSequence(enumerate_cells(4))
    assert fewer == cells[:91] and fewer != cells and fewer != cells[1:92] and cells[:2] != cells[[1, 0]]
    assert fewer != list(fewer)
    with pytest.raises(TypeError, match="unhashable"):
        hash(cells)
    assert repr(fewer[:3]) == "<CellSequence of 3 among 91 cells>"
    with pytest.raises(ValueError, match="read-only"):
        cells.rows[0] = 1


def test_what_is_in_a_sequence(small: Cells) -> None:
    cells, rng = CellSequence(small), random.Random(3)
    even = cells[::2]
    assert all((cells[row] in even) == (row % 2 == 0) for row in rng.sample(range(2532), 50))
    other = next(form for form in (other_form(small.cell(700), rng) for _ in range(99)) if form != cells[700])
    assert other not in cells and Architecture({"a": "b"}) not in cells and 1 not in cells and cells[0] not in cells[:0]


def test_hashes(small: Cells) -> None:
    cells = CellSequence(small)[[2000, 5, 5]]
    assert cells.hashes() == [small.cell(row).module_hash for row in (2000, 5, 5)]


# The first of the isomorphs


def test_any_form_of_a_cell_has_one_code(small: Cells) -> None:
    rng = random.Random(0)
    cells = CellSequence(small)
    rows = [0, *rng.sample(range(len(cells)), 300)]
    forms = [other_form(small.cell(row), rng) for row in rows]
    assert sum(form != cells[row] for form, row in zip(forms, rows, strict=True)) > 250
    assert np.array_equal(codes_of(forms).keys(), cells[rows].codes().keys())
    for form, row in zip(forms[:20], rows, strict=False):
        assert codes_of([form]).keys().tolist() == cells[[row]].codes().keys().tolist()


def test_the_code_of_cells_of_seven_vertices_is_that_of_all_their_forms() -> None:
    rng = random.Random(1)
    for cell in [cell for cell in random_cells(1, 200) if len(cell.matrix) == 7][:30]:
        codes = codes_of([other_form(cell, rng) for _ in range(20)])
        assert len(set(codes.keys().tolist())) == 1
        assert sequence_of(codes).hashes() == [cell.module_hash] * 20


def test_the_table_is_in_this_form(small: Cells) -> None:
    codes = CellSequence(small).codes()
    assert np.array_equal(canonical(codes).keys(), codes.keys()) and (np.diff(codes.keys()) > 0).all()
    assert codes.adjacency().sum(axis=(1, 2)).tolist() == [sum(map(sum, small.cell(r).matrix)) for r in range(2532)]


def test_no_cells() -> None:
    codes = codes_of([])
    assert len(codes) == 0 and codes.operations.shape == (0, 5) and len(sequence_of(codes)) == 0


def test_sequences_of_codes_have_their_hashes(small: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = CellSequence(small)[[2000, 5, 5, 700, 0]]
    found = sequence_of(cells.codes())
    assert found == cells and found.hashes() == cells.hashes() and len(found.cells) == 4
    monkeypatch.setattr(module, "_MANY", 3)
    monkeypatch.setattr(module, "load_cells", lambda: small)
    assert sequence_of(cells.codes()) == cells and sequence_of(cells.codes()).cells is small


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"op/3": "conv5x5"}, "must be among conv3x3-bn-relu, conv1x1-bn-relu, maxpool3x3, but one is 'conv5x5'"),
        ({"edge/0-1": "10"}, "must be square with the entries 0 and 1, but is [[0, '10',"),
        ({"edge/0-6": "0"}, "must be connected to its input, but no way leads from vertex 0 to vertex 6; add an edge."),
        (dict.fromkeys(module.EDGE_LABELS, "1"), "at most 7 vertices and 9 edges on its ways from input to output"),
    ],
)
def test_what_is_no_cell(changes: dict[str, str], told: str, small: Cells) -> None:
    good = CellSequence(small)[0]
    with pytest.raises(ArchitectureError) as refused:
        codes_of([good, Architecture({**good, **changes})])
    assert told in str(refused.value)


def test_architectures_of_other_spaces(small: Cells) -> None:
    with pytest.raises(ArchitectureError, match=r"^The architecture must decide 'edge/0-1', but names only \['a'\]\.$"):
        codes_of([CellSequence(small)[0], Architecture({"a": "b"})])


def test_all_cells_take_little(small: Cells) -> None:
    """26 bytes a cell in the table and 8 a row: 423,624 of them are 14 MB."""
    cells = CellSequence(small)
    arrays = (small.vertices, small.edges, small.operations, small.hashes, cells.rows)
    assert sum(array.nbytes for array in arrays) == 34 * len(cells)
