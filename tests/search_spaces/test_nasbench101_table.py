"""Cells as the rows of tables: what is written, what is read, and what is refused."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError
from nasengine.task import Shapes
from search_spaces import _nasbench101_table as module
from search_spaces._nasbench101 import OPERATIONS, Cell
from search_spaces._nasbench101_cells import Cells, enumerate_cells
from search_spaces._nasbench101_sequence import CellSequence
from search_spaces.nasbench101 import NASBench101
from tests.search_spaces.cells101 import other_form

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101"
CIFAR = Shapes((3, 32, 32), 10)
CONV3, CONV1, POOL = OPERATIONS
SPACE = NASBench101()
CHAIN = {"matrix": "010001000", "operations": f"input,{CONV3},output", "hash": "b49ac8c578b4561d79ac7087988f1c61"}
EDGE = {"matrix": "0100", "operations": "input,output", "hash": "043721b9c7fe8c5fad811d47d83132ec"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, five: Cells) -> CellSequence:
    """Stands for all cells."""
    monkeypatch.setattr(module, "load_cells", lambda: five)
    return CellSequence(five)


@pytest.fixture(scope="module")
def five() -> Cells:
    return enumerate_cells(5)


def table(*rows: dict[str, Any], columns: tuple[str, ...] = ("matrix", "operations")) -> pd.DataFrame:
    return pd.DataFrame([{name: row[name] for name in columns} for row in rows])


# Written and read


def test_what_is_written(small: CellSequence) -> None:
    written = SPACE.to_table(small[:91], CIFAR)
    assert list(written) == ["hash", "matrix", "operations", "parameters"] and written["parameters"].dtype == np.int64
    for row, (digits, matrix, operations, parameters) in enumerate(written.itertuples(index=False)):
        cell = small.cells.cell(row)
        assert digits == cell.module_hash and operations == ",".join(cell.operations)
        assert matrix == "".join(str(entry) for line in cell.matrix for entry in line)
        assert parameters == SPACE.costs([small[row]], CIFAR)[0][0]
    assert written.iloc[0].tolist() == [EDGE["hash"], "0100", "input,output", 882570]


def test_any_forms_are_written_as_the_published_one(small: CellSequence) -> None:
    rng = random.Random(0)
    cells = small[[*rng.sample(range(2532), 50), 7, 7]]
    forms = [other_form(small.cells.cell(row), rng) for row in cells.rows.tolist()]
    assert SPACE.to_table(forms, CIFAR).equals(SPACE.to_table(cells, CIFAR))
    assert SPACE.from_table(SPACE.to_table(forms, CIFAR)) == cells


def test_no_cells_are_a_table_too(small: CellSequence) -> None:
    written = SPACE.to_table([], CIFAR)
    assert list(written) == ["hash", "matrix", "operations", "parameters"] and len(written) == 0
    assert len(SPACE.from_table(written)) == len(SPACE.from_table(written[["hash"]])) == 0
    assert len(SPACE.from_table(pd.DataFrame({"architecture": []}))) == 0


def test_a_table_is_for_images(small: CellSequence) -> None:
    with pytest.raises(ArchitectureError, match=r"is for images .*, but got inputs of shape \(64,\)"):
        SPACE.to_table(small, Shapes((64,), 10))


@pytest.mark.parametrize("columns", [["hash"], ["matrix", "operations"], ["hash", "matrix", "operations"]])
def test_what_is_written_is_read(small: CellSequence, columns: list[str]) -> None:
    cells = small[np.random.default_rng(0).permutation(len(small))]
    found = SPACE.from_table(SPACE.to_table(cells, CIFAR)[columns])
    assert isinstance(found, CellSequence) and found == cells and found.hashes() == cells.hashes()


@pytest.mark.parametrize("count", [5, 91, 2532])
def test_what_is_written_is_read_from_a_file_of_numbers(small: CellSequence, count: int) -> None:
    """Which pandas takes for whole numbers, and so without the zeros on the left."""
    text = SPACE.to_table(small[:count], CIFAR).to_csv(index=False)
    assert SPACE.from_table(pd.read_csv(io.StringIO(text))) == small[:count]
    assert SPACE.from_table(pd.read_csv(io.StringIO(text), dtype="string")) == small[:count]


def test_any_numbers_of_the_vertices_are_the_published_cell(small: CellSequence) -> None:
    rng = random.Random(1)
    cells = small[rng.sample(range(2532), 60)]
    forms = [other_form(small.cells.cell(row), rng) for row in cells.rows.tolist()]
    raw = [{label: form[label] for label in form} for form in forms]
    bits = [[["0"] * 7 for _ in range(7)] for _ in raw]
    for matrix, form in zip(bits, raw, strict=True):
        for label in (label for label in form if form[label] == "1"):
            matrix[int(label[5])][int(label[7])] = "1"
    rows = {
        "matrix": ["".join(map("".join, matrix)) for matrix in bits],
        "operations": [",".join(["input", *(form[f"op/{v}"] for v in range(1, 6)), "output"]) for form in raw],
        "hash": cells.hashes(),
    }
    assert SPACE.from_table(pd.DataFrame(rows)) == cells


@pytest.mark.parametrize(
    "matrix",
    [
        "[[0,1,0],[0,0,1],[0,0,0]]",
        "[[0, 1, 0],\n [0, 0, 1], [0, 0, 0]]",
        [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
        np.eye(3, k=1, dtype=int),
        np.array([*np.eye(3, k=1, dtype=int), None], object)[:3],
        ((0, 1, 0), (0, 0, 1), (0,) * 3),
    ],
)
def test_forms_of_a_matrix(matrix: object, small: CellSequence) -> None:
    for operations in (CHAIN["operations"], ["input", CONV3, "output"], f"['input', '{CONV3}', 'output']"):
        rows = pd.DataFrame({"adjacency": [matrix], "operations": [operations], "hash": [CHAIN["hash"]]})
        assert SPACE.from_table(rows) == small[[1]]


def test_entries_beyond_the_vertices_do_not_count() -> None:
    padded = "0100000" + "0010000" + "0" * 35
    for count in (3, 3.0, "3"):
        rows = pd.DataFrame({"matrix": [padded, "010001000"], "operations": [CHAIN["operations"]] * 2})
        assert SPACE.from_table(rows.assign(n_vertices=[count, count])).hashes() == [CHAIN["hash"]] * 2


def test_matrices_of_more_than_seven_vertices_are_pruned() -> None:
    path = np.zeros((9, 9), int)
    path[0, 1] = path[1, 8] = path[0, 3] = 1
    operations = ",".join(["input", CONV3, *[POOL] * 6, "output"])
    rows = table(CHAIN, {"matrix": "".join(map(str, path.flat)), "operations": operations}, EDGE)
    assert SPACE.from_table(rows).hashes() == [CHAIN["hash"]] * 2 + [EDGE["hash"]]


def test_the_published_table() -> None:
    if not (REAL / "labels.parquet").exists():
        pytest.skip("needs labels.parquet of NAS-Bench-101 beside the repository")
    labels = pd.read_parquet(REAL / "labels.parquet")
    cells = SPACE.from_table(labels)
    written = SPACE.to_table(cells, CIFAR)
    assert written["hash"].tolist() == labels["hash"].tolist()
    assert written["operations"].tolist() == labels["operations"].tolist()
    assert written["parameters"].tolist() == labels["trainable_parameters"].tolist()
    spread = written["matrix"].map(lambda digits: re.findall("." * int(len(digits) ** 0.5), digits))
    padded = ["".join(line.ljust(7, "0") for line in lines).ljust(49, "0") for lines in spread]
    assert padded == labels["adjacency"].tolist()


# Architectures


def test_texts_are_read_as_they_are(small: CellSequence) -> None:
    cells = small[::20]
    for texts in (list(map(SPACE.write, cells)), list(map(str, cells)), [SPACE.write(cells[0]), str(cells[1])]):
        found = SPACE.from_table(pd.DataFrame({"architecture": texts}))
        assert isinstance(found, CellSequence) and found == cells[: len(texts)]
    rng = random.Random(2)
    forms = [SPACE.canonical(SPACE.choices(), other_form(small.cells.cell(row), rng)) for row in range(600, 640)]
    for texts in (list(map(SPACE.write, forms)), list(map(str, forms))):
        found = SPACE.from_table(pd.DataFrame({"architecture": texts}))
        assert found == forms and found != list(small[600:640])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("11-1", "A cell must have one operation a vertex, but has 2 for 3 vertices; name"),
        ("x", "A cell must have the form '111-01-1 conv3x3-bn-relu,maxpool3x3'"),
        ("11-1 'maxpool3x3'", "must be among conv3x3-bn-relu, conv1x1-bn-relu, maxpool3x3, but one is"),
        ("edge/0-6=1", "The architecture must decide 'edge/0-1'"),
        ("00-1 maxpool3x3", "must be connected"),
    ],
)
def test_texts_that_are_no_architecture(text: str, told: str, small: CellSequence) -> None:
    rest = str(small[3]) if text.startswith("edge/") else "1"
    with pytest.raises(DataError) as refused:
        SPACE.from_table(pd.DataFrame({"architecture": [rest, text]}))
    assert str(refused.value).startswith("Row 2 of a table must have an architecture: ") and told in str(refused.value)


def test_dead_parts_of_long_texts_are_refused(small: CellSequence) -> None:
    dead = Architecture({**small[0], "op/1": POOL})
    with pytest.raises(DataError, match=r"^Row 1 .*without effect must take its first option, but 'op/1' is"):
        SPACE.from_table(pd.DataFrame({"architecture": [str(dead)]}))


# Refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"matrix": "01000100"}, "a cell: A matrix must be square, but is '01000100'; write the digits of its rows"),
        ({"matrix": "[[0,1],[0]]"}, "a cell: A matrix must be square, but is '[[0,1],[0]]'; write"),
        ({"matrix": "[0,1]"}, "a cell: A matrix must be square, but is '[0,1]'; write"),
        ({"matrix": "zero"}, "a cell: A matrix must be square, but is 'zero'; write"),
        ({"matrix": ""}, "a cell: A matrix must be square, but is ''; write"),
        ({"matrix": "5"}, "a cell: The matrix of a cell must be square with the entries 0 and 1, but is [[5]]; give"),
        ({"matrix": "010002000"}, "must be square with the entries 0 and 1, but is [[0, 1, 0], [0, 0, 2], [0, 0, 0]];"),
        ({"matrix": '[[0,"a"],[0,0]]'}, "must be square with the entries 0 and 1, but is [[0, 'a'], [0, 0]]; give"),
        ({"matrix": "010001100"}, "An edge of a cell must lead to a later vertex, but one leads from 2 to 0; number"),
        ({"matrix": "110001000"}, "An edge of a cell must lead to a later vertex, but one leads from 0 to 0; number"),
        ({"matrix": "010000000"}, "must be connected to its input, but no way leads from vertex 0 to vertex 2; add"),
        ({"matrix": "0100"}, "A cell must have one operation a vertex, but has 3 for 2 vertices; name"),
        ({"operations": "input,output"}, "A cell must have one operation a vertex, but has 2 for 3 vertices; name"),
        ({"operations": "input,conv5x5,output"}, "conv1x1-bn-relu, maxpool3x3, but one is 'conv5x5'; use"),
        ({"operations": f"{CONV3},{CONV3},output"}, "must begin with 'input' and end with 'output', but are ['conv3"),
        ({"operations": ""}, "must begin with 'input' and end with 'output', but are ['']; name"),
        ({"operations": None}, "an entry in the column 'operations', but has none; fill it in or leave the row out."),
        ({"matrix": float("nan")}, "an entry in the column 'matrix', but has none; fill it in or leave the row out."),
        ({"hash": None}, "an entry in the column 'hash', but has none; fill it in or leave the row out."),
        ({"hash": EDGE["hash"]}, f"the hash of its matrix and operations, {CHAIN['hash']}, but has '0437"),
        ({"hash": "b49a"}, f"the hash of its matrix and operations, {CHAIN['hash']}, but has 'b49a'; correct one"),
        (
            {"matrix": "".join(str(int(x < y)) for x in range(6) for y in range(6)), "operations": f"input{',' + POOL}"}
            | {"operations": ",".join(["input", *[POOL] * 4, "output"])},
            "at most 7 vertices and 9 edges on its ways from input to output, but has 6 and 15; leave some out.",
        ),
    ],
)
def test_rows_that_are_no_cell(changes: dict[str, object], told: str) -> None:
    rows = table(EDGE, CHAIN, {**CHAIN, **changes}, EDGE, columns=("matrix", "operations", "hash"))
    with pytest.raises(DataError) as refused:
        SPACE.from_table(rows)
    message = str(refused.value)
    assert message.startswith("Row 3 of a table must have ") and told in message
    assert message.endswith(".") and ". " not in message and refused.value.exit_code == 2


@pytest.mark.parametrize("digits", ["0" * 32, "b49ac8c5", CHAIN["hash"].upper(), CHAIN["hash"] + " ", 7])
def test_hashes_of_no_cell(digits: object, small: CellSequence) -> None:
    shown = repr(digits) if isinstance(digits, str) else "'7'"
    with pytest.raises(DataError) as refused:
        SPACE.from_table(pd.DataFrame({"hash": [EDGE["hash"], CHAIN["hash"], digits]}))
    assert str(refused.value) == (
        "Row 3 of a table must have the hash of a cell, 32 hexadecimal digits in small letters, but has "
        f"{shown}, which no cell has; check that it is of NAS-Bench-101."
    )


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (4, "Row 2 of a table must have a cell: A matrix must have as many rows as 'n_vertices' says, 4, or 7 with"),
        (1, "Row 2 of a table must have a whole number of vertices from 2, but 'n_vertices' is '1'; count the rows"),
        ("x", "Row 2 of a table must have a whole number of vertices from 2, but 'n_vertices' is 'x'; count the rows"),
        (None, "Row 2 of a table must have an entry in the column 'n_vertices', but has none; fill it in or leave"),
    ],
)
def test_wrong_numbers_of_vertices(count: object, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        SPACE.from_table(table(CHAIN, CHAIN).assign(n_vertices=pd.Series([3, count], dtype=object)))


def test_entries_beyond_the_vertices_must_be_zeros() -> None:
    digits = "0100000" + "0010001" + "0" * 35
    with pytest.raises(DataError, match=r"^Row 1 .* says, 3, or 7 with zeros in those beyond, but is '0100000001000"):
        SPACE.from_table(table({**CHAIN, "matrix": digits}).assign(n_vertices=3))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("operations",), "'hash', 'matrix' and 'operations', or 'architecture', but has operations; name its col"),
        (("matrix",), "with the column 'matrix' must have the column 'operations' too, but has matrix; add the oper"),
        (("matrix", "hash"), "'matrix' must have the column 'operations' too, but has matrix, hash; add the oper"),
        ((), "must have the column 'hash', 'matrix' and 'operations', or 'architecture', but has none; name its col"),
    ],
)
def test_missing_columns(columns: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        SPACE.from_table(table(CHAIN, columns=columns))


def test_a_cell_of_the_table_is_a_cell() -> None:
    assert SPACE.cell(SPACE.from_table(table(EDGE))[0]) == Cell([[0, 1], [0, 0]], ["input", "output"])
