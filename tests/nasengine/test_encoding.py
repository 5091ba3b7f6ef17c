from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs, concatenate, encode_cells, encode_choices
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces.darts import DARTS
from search_spaces.nasbench201 import NASBench201

CIFAR = Shapes((3, 32, 32), 10)
CHOICES = {
    "width": Choice("width", ("8", "16", "32"), ordinal=True),
    "kernel": Choice("kernel", ("3", "5"), ordinal=True),
    "pool": Choice("pool", ("mean", "max")),
    "only": Choice("only", ("one",), ordinal=True),
}


def named(graphs: Graphs, row: int) -> tuple[list[str], set[tuple[str, str]]]:
    """The operations of one architecture, and its edges by them."""
    words = [graphs.vocabulary[word] for word in graphs.operations[row] if word >= 0]
    ends = zip(*np.nonzero(graphs.adjacency[row]), strict=True)
    return words, {(words[source], words[target]) for source, target in ends}


def test_choices_are_a_chain_with_their_sizes() -> None:
    taken = [
        Architecture({"width": "16", "kernel": "5", "pool": "max", "only": "one"}),
        Architecture({"width": "32", "kernel": "3", "pool": "mean", "only": "one"}),
    ]
    graphs = encode_choices(CHOICES, [(), {"kernel"}], taken)
    assert graphs.vocabulary == (
        "width=8",
        "width=16",
        "width=32",
        "kernel=3",
        "kernel=5",
        "pool=mean",
        "pool=max",
        "only=one",
    )
    words, edges = named(graphs, 0)
    assert words == ["width=16", "kernel=5", "pool=max", "only=one"]
    assert edges == {("width=16", "kernel=5"), ("kernel=5", "pool=max"), ("pool=max", "only=one")}
    assert graphs.operations[1].tolist() == [2, -1, 5, 7]
    assert np.argwhere(graphs.adjacency[1]).tolist() == [[0, 2], [2, 3]]
    assert graphs.numbers.tolist() == [[0.5, 1.0], [1.0, 0.0]]
    assert (graphs.operations.dtype, graphs.adjacency.dtype, graphs.numbers.dtype) == (np.int16, bool, np.float32)


def test_a_cell_with_operations_on_edges() -> None:
    space = NASBench201()
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
    graphs = space.encode([space.read(text)], CIFAR)
    words, edges = named(graphs, 0)
    assert sorted(words) == ["avg_pool_3x3", "input", "nor_conv_1x1", "nor_conv_3x3", "output", "skip_connect"]
    assert edges == {
        ("input", "nor_conv_3x3"),
        ("nor_conv_3x3", "skip_connect"),
        ("skip_connect", "nor_conv_1x1"),
        ("nor_conv_1x1", "output"),
        ("input", "avg_pool_3x3"),
        ("avg_pool_3x3", "output"),
    }
    assert words[0] == "input" and words[-1] == "output" and graphs.numbers.shape == (1, 0)


@pytest.mark.parametrize(
    "text",
    [
        "|nor_conv_1x1~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",  # leads nowhere
        "|none~0|+|none~0|skip_connect~1|+|nor_conv_3x3~0|none~1|nor_conv_1x1~2|",  # comes from nowhere
        "|avg_pool_3x3~0|+|none~0|skip_connect~1|+|nor_conv_3x3~0|none~1|none~2|",  # two nodes lead nowhere
    ],
)
def test_what_is_on_no_way_is_left_out(text: str) -> None:
    space = NASBench201()
    words, edges = named(space.encode([space.read(text)], CIFAR), 0)
    assert words == ["input", "nor_conv_3x3", "output"]
    assert edges == {("input", "nor_conv_3x3"), ("nor_conv_3x3", "output")}


@pytest.mark.parametrize(
    "text",
    [
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|skip_connect~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|",
    ],
)
def test_a_cell_that_connects_nothing_has_no_node(text: str) -> None:
    space = NASBench201()
    graphs = space.encode([space.read(text)], CIFAR)
    assert graphs.operations.tolist() == [[-1]] and not graphs.adjacency.any()
    other = space.encode([space.read(text), next(iter(random_cells(1)))], CIFAR)
    assert (other.operations[0] == -1).all() and len(other.unique()[0]) == 2


def random_cells(count: int) -> list[Architecture]:
    space, rng = NASBench201(), generator(0)
    return [space.sample(space.choices(), rng) for _ in range(count)]


def test_two_cells_side_by_side() -> None:
    space = DARTS()
    choices = space.choices(CIFAR)
    architecture = space.sample(choices, generator(0))
    graphs = space.encode([architecture], CIFAR)
    words, edges = named(graphs, 0)
    for kind in ("normal", "reduce"):
        mine = [word for word in words if word.startswith(f"{kind}/")]
        operations = [operation for pairs in space.inputs(architecture, kind) for _, operation in pairs]
        assert len(operations) == 8
        ends = [f"{kind}/{end}" for end in ("c_{k-2}", "c_{k-1}", "output")]
        assert sorted(mine) == sorted(
            [*(f"{kind}/{operation}" for operation in operations), *(end for end in ends if end in words)]
        )
        assert f"{kind}/output" in words
    assert all(source.split("/")[0] == target.split("/")[0] for source, target in edges)


def test_operations_on_nodes_and_blank_nodes_in_between() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(
        [("in", {}), ("conv", {"operation": "conv"}), ("sum", {}), ("pool", {"operation": "pool"}), ("out", {})]
    )
    graph.add_edges_from(
        [("in", "conv"), ("in", "sum"), ("conv", "sum"), ("sum", "pool"), ("sum", "out"), ("pool", "out")]
    )
    words, edges = named(encode_cells([{"cell": graph}], ["conv", "pool"]), 0)
    assert words == ["input", "conv", "pool", "output"]
    assert edges == {
        ("input", "conv"),
        ("input", "pool"),
        ("conv", "pool"),
        ("input", "output"),
        ("conv", "output"),
        ("pool", "output"),
    }


def test_nodes_are_in_topological_order() -> None:
    space = NASBench201()
    graphs = space.encode(random_cells(100), CIFAR)
    assert not np.tril(graphs.adjacency).any()
    there = graphs.operations >= 0
    assert not graphs.adjacency[~there].any() and not graphs.adjacency.transpose(0, 2, 1)[~there].any()
    assert (np.diff(there.astype(int), axis=1) <= 0).all()  # and come first


def random_graphs(count: int, width: int, seed: int = 0) -> Graphs:
    rng = np.random.default_rng(seed)
    adjacency = np.triu(rng.integers(0, 2, (count, width, width)), 1).astype(bool)
    numbers = rng.integers(0, 2, (count, 1)).astype(np.float32)
    return Graphs(rng.integers(0, 2, (count, width)).astype(np.int16), adjacency, numbers, ("a", "b"))


def rows(graphs: Graphs) -> list[Any]:
    return [
        (operations.tolist(), adjacency.tolist(), numbers.tolist())
        for operations, adjacency, numbers in zip(graphs.operations, graphs.adjacency, graphs.numbers, strict=True)
    ]


def test_unique_ones_do_not_depend_on_the_order() -> None:
    graphs = random_graphs(100, 3)
    unique, places = graphs.unique()
    every = rows(graphs)
    assert len(unique) == len({str(row) for row in every}) < 100
    assert [rows(unique)[place] for place in places] == every
    order = np.random.default_rng(1).permutation(100)
    other, moved = graphs.take(order).unique()
    assert rows(other) == rows(unique) and np.array_equal(moved, places[order])


@pytest.mark.parametrize("part", ["operations", "adjacency", "numbers"])
def test_each_part_tells_architectures_apart(part: str) -> None:
    graphs = random_graphs(1, 3)
    changed = {name: getattr(graphs, name).copy() for name in ("operations", "adjacency", "numbers")}
    changed[part].flat[1 if part == "adjacency" else 0] = 1 - changed[part].flat[1 if part == "adjacency" else 0]
    assert len(concatenate([graphs, Graphs(**changed, vocabulary=graphs.vocabulary)]).unique()[0]) == 2
    assert len(concatenate([graphs, graphs]).unique()[0]) == 1


def test_concatenated_ones_have_room_for_the_most_nodes() -> None:
    small, large = random_graphs(4, 2), random_graphs(3, 5)
    both = concatenate([small, large])
    assert len(both) == 7 and both.operations.shape == (7, 5) and both.vocabulary == ("a", "b")
    assert (
        (both.operations[:4, 2:] == -1).all()
        and not both.adjacency[:4, 2:].any()
        and not both.adjacency[:4, :, 2:].any()
    )
    assert np.array_equal(both.operations[:4, :2], small.operations) and rows(both.take(slice(4, 7))) == rows(large)
    assert np.array_equal(both.adjacency[:4, :2, :2], small.adjacency)


def test_contracted_graphs_keep_the_ways_of_identities() -> None:
    operations = np.array([[0, 1, 1, 2, 3], [0, 2, 1, 3, -1]], np.int16)
    adjacency = np.zeros((2, 5, 5), bool)
    for row, edges in enumerate(([(0, 1), (1, 2), (2, 3), (1, 4), (3, 4)], [(0, 1), (1, 3), (0, 2), (2, 3)])):
        for source, target in edges:
            adjacency[row, source, target] = True
    graphs = Graphs(operations, adjacency, np.zeros((2, 0), np.float32), ("in", "skip", "conv", "out"), ("skip",))
    found = graphs.contracted()
    assert found.operations.tolist() == [[0, -1, -1, 2, 3], [0, 2, -1, 3, -1]]
    assert np.argwhere(found.adjacency[0]).tolist() == [[0, 3], [0, 4], [3, 4]]
    assert np.argwhere(found.adjacency[1]).tolist() == [[0, 1], [0, 3], [1, 3]]
    assert graphs.operations[0, 1] == 1 and graphs.adjacency[0, 0, 1], "the graphs themselves are as they were"
