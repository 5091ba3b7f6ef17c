from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow.parquet as pq
import pytest

from nasengine.errors import ArchitectureError
from search_spaces import _nasbench101_cells as module
from search_spaces._nasbench101 import EDGES, OPERATIONS, Cell, hash_module, hash_modules, md5_rows
from search_spaces._nasbench101_cells import Cells, cache_file, enumerate_cells, labelled_graphs, load_cells

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101"
CONV3, CONV1, POOL = OPERATIONS
UNIQUE = {2: 1, 3: 6, 4: 84, 5: 2_441, 6: 62_010, 7: 359_082}
LABELLED = {2: 1, 3: 7, 4: 97, 5: 3_364, 7: 1_293_208}
CHAIN = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
INCEPTION = Cell(
    [
        [0, 1, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    ["input", CONV1, CONV3, CONV3, CONV3, POOL, "output"],
)


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"needs {name} of NAS-Bench-101 beside the repository")
    return REAL / name


def matrix_of(bits: int, vertices: int) -> list[list[int]]:
    present = {edge for bit, edge in enumerate(EDGES) if bits >> bit & 1}
    return [[int((source, target) in present) for target in range(vertices)] for source in range(vertices)]


def random_graph(rng: random.Random, vertices: int) -> tuple[int, list[int]]:
    """Edge bits and indices of operations; few edges or many, and not every vertex on a way to the output."""
    share = rng.random()
    bits = sum(1 << bit for bit in range(vertices * (vertices - 1) // 2) if rng.random() < share)
    return bits, [rng.randrange(3) for _ in range(vertices - 2)]


def random_cell(rng: random.Random, vertices: int) -> Cell:
    while True:
        bits, operations = random_graph(rng, vertices)
        try:
            return Cell(matrix_of(bits, vertices), ["input", *(OPERATIONS[i] for i in operations), "output"])
        except ArchitectureError:
            continue


@pytest.fixture(scope="module")
def small() -> Cells:
    return enumerate_cells(5)


# One cell


def test_a_cell_is_a_value() -> None:
    cell = Cell(CHAIN, ["input", CONV3, "output"])
    same = Cell(np.array(CHAIN).tolist(), ("input", CONV3, "output"))
    assert cell == same and hash(cell) == hash(same) and cell != Cell(CHAIN, ["input", CONV1, "output"])
    assert cell.matrix == ((0, 1, 0), (0, 0, 1), (0, 0, 0)) and cell.operations == ("input", CONV3, "output")
    rows: Any = np.array(CHAIN, bool)
    assert Cell(rows, ["input", CONV3, "output"]) == cell
    assert {type(entry) for row in Cell(rows, cell.operations).matrix for entry in row} == {int}
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.matrix = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("matrix", "operations", "message"),
    [
        ([[0, 1], [0]], ["input", "output"], "must be square with the entries 0 and 1, but is [[0, 1], [0]]; give"),
        ([[0, 2], [0, 0]], ["input", "output"], "must be square with the entries 0 and 1, but is [[0, 2], [0, 0]]; "),
        ([0, 1], ["input", "output"], "must be square with the entries 0 and 1, but is [0, 1]; give"),
        (["01", "00"], ["input", "output"], "must be square with the entries 0 and 1, but is ['01', '00']; give"),
        ([[1, 1], [0, 0]], ["input", "output"], "must lead to a later vertex, but one leads from 0 to 0; number"),
        ([[0, 1], [1, 0]], ["input", "output"], "must lead to a later vertex, but one leads from 1 to 0; number"),
        (CHAIN, ["input", "output"], "must have one operation a vertex, but has 2 for 3 vertices; name"),
        ([[0]], ["input"], "must begin with 'input' and end with 'output', but are ['input']; name"),
        ([], [], "must begin with 'input' and end with 'output', but are []; name"),
        (CHAIN, [CONV3, CONV3, "output"], "must begin with 'input' and end with 'output', but are ['conv3x3-bn-relu'"),
        (CHAIN, ["input", CONV3, CONV3], "must begin with 'input' and end with 'output', but are ['input', 'conv"),
        (CHAIN, ["input", "conv5x5", "output"], "conv1x1-bn-relu, maxpool3x3, but one is 'conv5x5'; use"),
        (CHAIN, ["input", "input", "output"], "conv1x1-bn-relu, maxpool3x3, but one is 'input'; use"),
        ([[0, 1, 0], [0, 0, 0], [0, 0, 0]], ["input", CONV3, "output"], "no way leads from vertex 0 to vertex 2; add"),
        ([[0, 0, 0], [0, 0, 1], [0, 0, 0]], ["input", CONV3, "output"], "no way leads from vertex 0 to vertex 2; add"),
    ],
)
def test_what_is_no_cell(matrix: list[list[int]], operations: list[str], message: str) -> None:
    with pytest.raises(ArchitectureError, match=f"^.*{re.escape(message)}[^.]*\\.$"):
        Cell(matrix, operations)


def test_limits_count_what_is_on_a_way_from_input_to_output() -> None:
    bits = sum(
        1 << EDGES.index(edge) for edge in [(0, 1), (1, 2), (2, 3), (3, 6), (0, 2), (0, 3), (0, 6), (1, 3), (1, 6)]
    )
    dead = sum(1 << EDGES.index(edge) for edge in [(0, 4), (1, 4), (5, 6)])
    operations = ["input", CONV3, CONV3, CONV3, CONV3, CONV3, "output"]
    assert sum(map(sum, Cell(matrix_of(bits | dead, 7), operations).pruned().matrix)) == 9
    tenth = 1 << EDGES.index((2, 6))
    with pytest.raises(
        ArchitectureError, match=r"at most 7 vertices and 9 edges .* but has 5 and 10; leave some out\.$"
    ):
        Cell(matrix_of(bits | tenth, 7), operations)
    path = [[int(target == source + 1) for target in range(8)] for source in range(8)]
    operations.insert(1, POOL)
    with pytest.raises(
        ArchitectureError, match=r"at most 7 vertices and 9 edges .* but has 8 and 7; leave some out\.$"
    ):
        Cell(path, operations)
    path[5][6], path[5][7] = 0, 1
    assert len(Cell(path, operations).pruned().operations) == 7


def test_pruning_of_the_published_example() -> None:
    cell = Cell([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], ["input", CONV3, POOL, "output"])
    pruned = cell.pruned()
    assert pruned == Cell(CHAIN, ["input", CONV3, "output"]) and pruned.pruned() is pruned
    assert cell.module_hash == pruned.module_hash == "b49ac8c578b4561d79ac7087988f1c61"


def test_pruning_keeps_what_is_below_the_input_and_above_the_output() -> None:
    rng = random.Random(0)
    sizes = set()
    for _ in range(300):
        cell = random_cell(rng, 7)
        graph: nx.DiGraph[int] = nx.DiGraph(np.array(cell.matrix))
        kept = sorted((nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, 6) | {6}))
        assert np.array_equal(cell.pruned().matrix, np.array(cell.matrix)[np.ix_(kept, kept)])
        assert cell.pruned().operations == tuple(cell.operations[vertex] for vertex in kept)
        sizes.add(len(kept))
    assert sizes >= {2, 4, 6} and INCEPTION.pruned() is INCEPTION


def test_other_numbers_make_the_same_cell() -> None:
    order = [0, 3, 4, 5, 1, 2, 6]
    other = INCEPTION.renumbered(order)
    assert other != INCEPTION and other.operations[1:4] == (CONV3, CONV3, POOL)
    assert [sum(row) for row in other.matrix] == [sum(INCEPTION.matrix[vertex]) for vertex in order]
    assert other.module_hash == INCEPTION.module_hash == "28cfc7874f6d200472e1a9dcd8650aa0"
    with pytest.raises(ArchitectureError, match=r"one leads from 3 to 2; number the vertices .*\.$"):
        INCEPTION.renumbered([0, 1, 4, 3, 2, 5, 6])
    with pytest.raises(ArchitectureError, match=r"must have each of 0 to 6 once, but is \[0, 1, 1\]; give a permut"):
        INCEPTION.renumbered([0, 1, 1])


# The hash


@pytest.mark.parametrize(
    ("matrix", "labels", "digits"),
    [
        ([[0, 1], [0, 0]], [-1, -2], "043721b9c7fe8c5fad811d47d83132ec"),
        (CHAIN, [-1, 0, -2], "b49ac8c578b4561d79ac7087988f1c61"),
        (CHAIN, [-1, 1, -2], "d1269d9156ddc027c40473008192958a"),
        (CHAIN, [-1, 2, -2], "53cee42601ad14d661bb6878031d6acb"),
    ],
)
def test_published_hashes(matrix: list[list[int]], labels: list[int], digits: str) -> None:
    assert hash_module(matrix, labels) == digits
    assert hash_module(np.array(matrix), np.array(labels)) == digits  # type: ignore[arg-type]


def test_hashes_of_the_published_isomorphs() -> None:
    pairs = json.loads(real("known_answers.json").read_text())["isomorphism_pairs"]
    for kind, groups in pairs.items():
        for group in groups:
            assert [hash_module(graph["m"], graph["l"]) for graph in group] == [graph["hash"] for graph in group]
            assert len({graph["hash"] for graph in group}) == (1 if kind == "equal" else len(group))


def test_any_order_of_the_vertices_has_the_same_hash() -> None:
    rng = random.Random(1)
    for vertices in (3, 5, 7):
        for _ in range(20):
            bits, operations = random_graph(rng, vertices)
            matrix, labels = np.array(matrix_of(bits, vertices)), np.array([-1, *operations, -2])
            order = rng.sample(range(vertices), vertices)
            shuffled = hash_module(matrix[np.ix_(order, order)].tolist(), labels[order].tolist())
            assert shuffled == hash_module(matrix.tolist(), labels.tolist())


@pytest.mark.parametrize("vertices", range(2, 8))
def test_the_hash_of_many_is_the_plain_one(vertices: int) -> None:
    rng = random.Random(vertices)
    graphs = [random_graph(rng, vertices) for _ in range(120)]
    edges = np.array([bits for bits, _ in graphs], np.uint32)
    operations = np.array([operations for _, operations in graphs], np.int8)
    plain = [hash_module(matrix_of(bits, vertices), [-1, *operations, -2]) for bits, operations in graphs]
    assert [row.tobytes().hex() for row in hash_modules(edges, operations)] == plain


@pytest.mark.parametrize("length", [1, 34, 55, 56, 63, 64, 65, 119, 120, 252])
@pytest.mark.parametrize("count", [1, 8_200])
def test_md5_of_rows(count: int, length: int) -> None:
    rows = np.random.default_rng(length).integers(0, 256, (count, length), np.uint8)
    assert [row.tobytes() for row in md5_rows(rows)] == [hashlib.md5(row.tobytes()).digest() for row in rows]


# All cells


def test_counts_by_vertices(small: Cells) -> None:
    assert dict(enumerate(np.bincount(small.vertices)[2:], start=2)) == {v: UNIQUE[v] for v in range(2, 6)}
    assert np.cumsum([labelled_graphs(vertices) for vertices in range(2, 6)]).tolist() == [
        LABELLED[v] for v in range(2, 6)
    ]
    assert sum(map(labelled_graphs, range(2, 8))) == LABELLED[7]


def test_every_cell_is_the_first_of_its_isomorphs(small: Cells) -> None:
    first: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    for vertices in range(2, 6):
        for bits in range(2 ** (vertices * (vertices - 1) // 2)):
            matrix = np.array(matrix_of(bits, vertices))
            if matrix.sum() <= 9 and matrix[:-1].any(axis=1).all() and matrix[:, 1:].any(axis=0).all():
                for operations in product(range(3), repeat=vertices - 2):
                    digits = hash_module(matrix.tolist(), [-1, *operations, -2])
                    first.setdefault(digits, (vertices, bits, operations))
    expected = [(*graph[:2], (*graph[2], *[-1] * (7 - graph[0])), digits) for digits, graph in first.items()]
    rows = zip(small.vertices.tolist(), small.edges.tolist(), small.operations.tolist(), small.hashes, strict=True)
    assert [(v, bits, tuple(inner), row.tobytes().hex()) for v, bits, inner, row in rows] == expected


def test_cells_are_found_by_the_hash_of_any_of_their_forms(small: Cells) -> None:
    rng = random.Random(2)
    for row in [*rng.sample(range(len(small)), 100), 0, len(small) - 1]:
        cell = small.cell(row)
        assert cell.pruned() is cell and cell.matrix == tuple(map(tuple, matrix_of(small.edges[row], len(cell.matrix))))
        graph: nx.DiGraph[int] = nx.DiGraph(np.array(cell.matrix))
        others = list(nx.all_topological_sorts(graph))
        assert small.row(cell.renumbered(rng.choice(others)).module_hash) == row
    with pytest.raises(
        ArchitectureError, match=r"^A hash must be one of the 2,532 cells, .* but 'b49a' is not; check "
    ):
        small.row("b49a")


def test_cells_are_read_only(small: Cells) -> None:
    for field in dataclasses.fields(small):
        with pytest.raises(ValueError, match="read-only"):
            getattr(small, field.name)[0] = 0
    assert small.edges.dtype == np.uint32 and (small.hashes.shape, small.operations.shape) == ((2_532, 16), (2_532, 5))


def test_the_whole_space() -> None:
    calls: list[tuple[int, int]] = []
    cells = enumerate_cells(progress=lambda done, total: calls.append((done, total)))
    assert dict(enumerate(np.bincount(cells.vertices)[2:].tolist(), start=2)) == UNIQUE
    assert len(np.unique(cells.hashes.view("S16"))) == len(cells) == 423_624
    assert (
        calls == sorted(set(calls)) and calls[-1] == (423_624, 423_624) and {total for _, total in calls} == {423_624}
    )
    assert cells.row(INCEPTION.module_hash) == np.flatnonzero(
        (cells.hashes[:, :4] == [0x28, 0xCF, 0xC7, 0x87]).all(axis=1)
    )
    keys = np.lexsort((*cells.operations.T[::-1], cells.edges, cells.vertices))
    assert np.array_equal(keys, np.arange(len(cells)))


# Published cells


def test_published_cells_have_the_published_hash() -> None:
    answers = json.loads(real("known_answers.json").read_text())
    for name in ("first_record", "best_by_mean_test_accuracy_108"):
        entry = answers[name]
        assert Cell(entry["module_adjacency"], entry["module_operations"]).module_hash == entry["hash"]
    entry = answers["inception_like"]
    assert Cell(entry["query_matrix"], entry["query_ops"]) == INCEPTION
    assert Cell(entry["stored_matrix"], entry["stored_ops"]).module_hash == INCEPTION.module_hash == entry["hash"]


def test_published_labels_have_our_hashes_and_representatives(small: Cells) -> None:
    table = pq.read_table(real("labels.parquet"), columns=["hash", "adjacency", "operations", "n_vertices"]).to_pylist()
    rows = random.Random(3).sample(table, 200) + [row for row in table if row["n_vertices"] <= 5]
    for row in rows:
        count = row["n_vertices"]
        matrix = [[int(row["adjacency"][7 * x + y]) for y in range(count)] for x in range(count)]
        cell = Cell(matrix, row["operations"].split(","))
        assert cell.module_hash == row["hash"] and cell.pruned() is cell
        if count <= 5:
            assert small.cell(small.row(row["hash"])) == cell


# The cache


@pytest.fixture
def enumerations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The progress of each enumeration; those of 2 to 4 vertices stand for all, in a cache that is empty."""
    calls: list[object] = []

    def enumerate_few(progress: module.Progress | None = None) -> Cells:
        calls.append(progress)
        return enumerate_cells(4, progress)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "enumerate_cells", enumerate_few)
    return calls


def same(one: Cells, other: Cells) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Cells)]
    return all(np.array_equal(left, right) and left.dtype == right.dtype for left, right in pairs)


def test_cells_are_enumerated_once(enumerations: list[object], tmp_path: Path) -> None:
    calls = []
    first = load_cells(lambda done, total: calls.append((done, total)))
    assert calls == [(1, 91), (7, 91), (91, 91)]
    assert same(load_cells(), first) and same(first, enumerate_cells(4)) and len(enumerations) == 1
    assert [path.name for path in (tmp_path / "cache/nasengine").iterdir()] == [cache_file().name]
    assert cache_file().suffix == ".npz" and not load_cells().edges.flags.writeable


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "foreign", "longer"])
def test_a_damaged_file_is_made_anew(enumerations: list[object], damage: str) -> None:
    first = load_cells()
    content = cache_file().read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {
        "half": content[:middle],
        "empty": b"",
        "flipped": flipped,
        "foreign": b"x" * 99,
        "longer": content + b"x",
    }
    cache_file().write_bytes(damaged[damage])
    assert same(load_cells(), first) and len(enumerations) == 2
    assert cache_file().read_bytes() == content


def test_another_version_is_another_file(enumerations: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    load_cells()
    monkeypatch.setattr(module, "_VERSION", module._VERSION + 1)
    load_cells()
    assert len(enumerations) == 2 and len(list(cache_file().parent.iterdir())) == 2


def test_what_is_interrupted_leaves_nothing(
    enumerations: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_cells(stop)
    assert not cache_file().exists()
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        load_cells()
    assert not list((tmp_path / "cache/nasengine").iterdir())


def test_a_cache_that_cannot_be_written_costs_only_time(enumerations: list[object], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    assert len(load_cells()) == len(load_cells()) == 91 and len(enumerations) == 2


def test_where_the_cache_is(enumerations: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_file().parent == tmp_path / "cache/nasengine"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_file().parent == tmp_path / ".cache/nasengine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_file().parent == tmp_path / ".cache/nasengine"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert len(load_cells()) == 91 and not (tmp_path / ".cache").exists()
