"""Graph features against their definitions, written out path by path with networkx."""

from __future__ import annotations

import random
from collections.abc import Iterator

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray

from nasengine.encoding import Graphs, concatenate
from predictors import _features as module
from predictors._features import Features, _all_groups

Floats = NDArray[np.float64]

NODES = 6
WORDS = ("in", "conv", "pool", "out")
NAMES = ("numbers", "words", "sizes", "degrees", "lengths", "levels")
NAMES += ("edges", "reach", "taken", "ways", "shares", "times", "visits", "walks", "triples", "walked triples")


def random_graph(rng: random.Random, words: int = len(WORDS)) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    for node in range(rng.randint(1, NODES)):
        graph.add_node(node, word=rng.randrange(words))
        graph.add_edges_from((source, node) for source in range(node) if rng.random() < 0.5)
    return graph


def random_graphs(seed: int, count: int = 30, words: int = len(WORDS)) -> list[nx.DiGraph[int]]:
    rng = random.Random(seed)
    return [random_graph(rng, words) for _ in range(count)]


def encoded(graphs: list[nx.DiGraph[int]], width: int = NODES, words: tuple[str, ...] = WORDS) -> Graphs:
    operations = np.full((len(graphs), width), -1, np.int16)
    adjacency = np.zeros((len(graphs), width, width), bool)
    for row, graph in enumerate(graphs):
        place = {node: number for number, node in enumerate(graph)}
        for node, number in place.items():
            operations[row, number] = graph.nodes[node]["word"]
        for source, target in graph.edges:
            adjacency[row, place[source], place[target]] = True
    numbers = np.array([[graph.number_of_edges() ** 0.5] for graph in graphs], np.float32)
    return Graphs(operations, adjacency, numbers, words)


def renumbered(graph: nx.DiGraph[int], rng: random.Random) -> nx.DiGraph[int]:
    """The same graph, its nodes in another topological order."""
    order = rng.choice(list(nx.all_topological_sorts(graph)))
    other: nx.DiGraph[int] = nx.DiGraph()
    other.add_nodes_from((node, graph.nodes[node]) for node in order)
    other.add_edges_from(graph.edges)
    return other


# Definitions


def paths(graph: nx.DiGraph[int]) -> list[list[int]]:
    """All from a source to a sink."""
    sources = [node for node in graph if graph.in_degree(node) == 0]
    sinks = [node for node in graph if graph.out_degree(node) == 0]
    found = [[node] for node in sources if node in sinks]
    for source in sources:
        for sink in sinks:
            found += list(nx.all_simple_paths(graph, source, sink)) if source != sink else []
    return found


def walk(graph: nx.DiGraph[int], path: list[int]) -> float:
    """The probability that a walk from the last node back takes this path."""
    return float(np.prod([1.0 / graph.in_degree(node) for node in path[1:]]))


def met(graph: nx.DiGraph[int], path: list[int], kind: int) -> int:
    """How many nodes of a kind are on a path; kind 0 is all, kind k the word k - 1."""
    return sum(kind == 0 or graph.nodes[node]["word"] == kind - 1 for node in path)


def one(graph: nx.DiGraph[int], node: int) -> Floats:
    return np.eye(len(WORDS))[graph.nodes[node]["word"]]


def visits(graph: nx.DiGraph[int], node: int) -> float:
    return sum(walk(graph, path) for path in paths(graph) if node in path)


def taken(graph: nx.DiGraph[int], source: int, target: int) -> float:
    """How often walks take an edge."""
    return visits(graph, target) / graph.in_degree(target)


def depths(graph: nx.DiGraph[int]) -> dict[int, int]:
    """Most edges from a source."""
    return {node: nx.dag_longest_path_length(graph.subgraph(nx.ancestors(graph, node) | {node})) for node in graph}


def counted(pairs: Iterator[tuple[float, tuple[int, ...]]], graph: nx.DiGraph[int]) -> Floats:
    """Sums of weights by the operations of some nodes in a row."""
    size = len(WORDS) ** 2
    values: dict[int, float] = {}
    for weight, nodes in pairs:
        place = 0
        for node in nodes:
            place = place * len(WORDS) + graph.nodes[node]["word"]
        size = len(WORDS) ** len(nodes)
        values[place] = values.get(place, 0.0) + weight
    return np.array([values.get(place, 0.0) for place in range(size)])


def described(graph: nx.DiGraph[int]) -> dict[str, Floats]:
    """The groups of one graph."""
    ways, kinds = paths(graph), range(len(WORDS) + 1)
    chance = [walk(graph, path) for path in ways]
    into, out = dict(graph.in_degree), dict(graph.out_degree)
    down, up = depths(graph), depths(graph.reverse())
    words = sum((one(graph, node) for node in graph), np.zeros(len(WORDS)))
    levels = [[d == level for d in degree.values()] for degree in (into, out) for level in range(1, 7)]
    times = [[met(graph, path, kind) for path in ways] for kind in kinds]
    share = [[np.mean([t == n for t in row]) for n in range(NODES + 1)] for row in times]
    weighed = [[sum(c for c, t in zip(chance, row, strict=True) if t == n) for n in range(NODES + 1)] for row in times]
    moments = [[sum(c * t**power for c, t in zip(chance, row, strict=True)) for row in times] for power in (1, 2)]
    twice = [(x, y, z) for x, y in graph.edges for z in graph.succ[y]]
    by_level = [
        sum((one(graph, node) for node in graph if depth[node] == level), np.zeros(len(WORDS)))
        for depth in (down, up)
        for level in range(1, NODES + 1)
    ]
    return {
        "words": words,
        "sizes": np.array([len(graph), graph.number_of_edges()], float),
        "degrees": np.concatenate(
            [
                *(sum((d[node] * one(graph, node) for node in graph), 0.0 * words) for d in (into, out)),
                np.sum(levels, 1),
            ]
        ),
        "lengths": np.array([max(row) for row in times] + [min(row) for row in times], float),
        "levels": np.concatenate(by_level),
        "numbers": np.array([graph.number_of_edges() ** 0.5]),
        "edges": counted(((1.0, edge) for edge in graph.edges), graph),
        "reach": counted(((1.0, pair) for pair in nx.transitive_closure(graph).edges), graph),
        "taken": counted(((taken(graph, *edge), edge) for edge in graph.edges), graph),
        "ways": np.array([np.log(len(ways))]),
        "shares": sum((one(graph, n) * np.mean([n in path for path in ways]) for n in graph), 0.0 * words),
        "times": np.ravel(share),
        "visits": np.append(
            sum((one(graph, n) * visits(graph, n) for n in graph), 0.0 * words),
            sum(visits(graph, n) ** 2 for n in graph),
        ),
        "walks": np.concatenate([np.ravel(weighed), *moments]),
        "triples": counted(((1.0, nodes) for nodes in twice), graph) if twice else np.zeros(len(WORDS) ** 3),
        "walked triples": counted(((taken(graph, y, z) / graph.in_degree(y), (x, y, z)) for x, y, z in twice), graph)
        if twice
        else np.zeros(len(WORDS) ** 3),
    }


def test_every_group_is_what_it_is_defined_as() -> None:
    graphs = random_graphs(0)
    groups = _all_groups(encoded(graphs), NODES)
    assert len(groups) == len(NAMES)
    for row, graph in enumerate(graphs):
        expected = described(graph)
        for name, group in zip(NAMES, groups, strict=True):
            assert group.dtype == np.float32
            np.testing.assert_allclose(group[row], expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{name} of {row}")


def test_where_there_are_identities_graphs_count_with_them_and_without() -> None:
    graphs = [graph for graph in random_graphs(3) if graph.number_of_nodes() > 2]
    plain = encoded(graphs)
    marked = Graphs(plain.operations, plain.adjacency, plain.numbers, plain.vocabulary, plain.vocabulary[1:2])
    groups = _all_groups(marked, NODES)
    apart = [*_all_groups(plain, NODES), *_all_groups(marked.contracted(), NODES)[1:]]
    assert len(groups) == len(apart)
    for one, other in zip(groups, apart, strict=True):
        np.testing.assert_array_equal(one, other)


def test_long_paths_share_the_last_bin() -> None:
    chain: nx.DiGraph[int] = nx.path_graph(5, create_using=nx.DiGraph)
    nx.set_node_attributes(chain, 1, "word")
    groups = dict(zip(NAMES, _all_groups(encoded([chain]), 3), strict=True))
    times = groups["times"].reshape(len(WORDS) + 1, 4)
    assert times.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    levels = groups["levels"].reshape(2, 3, len(WORDS))
    assert levels[:, :, 1].tolist() == [[1, 1, 2], [1, 1, 2]]


@pytest.mark.parametrize("words", [WORDS, tuple(map(str, range(12))), tuple(map(str, range(30)))], ids=len)
def test_numbering_padding_and_chunks_do_not_matter(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    rng, graphs = random.Random(1), random_graphs(1, 40, len(words))
    pool = encoded(graphs, words=words)
    features = Features.fitted(pool)
    found = features(pool)
    others = [renumbered(graph, rng) for graph in graphs]
    assert any(list(one) != list(other) for one, other in zip(graphs, others, strict=True))
    np.testing.assert_allclose(features(encoded(others, words=words)), found, atol=2e-4)
    np.testing.assert_allclose(features(encoded(graphs, NODES + 2, words)), found, atol=2e-4)
    monkeypatch.setattr(module, "_CELLS", 1000)
    assert len(list(module._chunks(pool))) > 3
    np.testing.assert_allclose(features(pool), found, atol=2e-4)
    np.testing.assert_allclose(Features.fitted(pool)(pool), found, atol=2e-4)


def test_what_is_fitted() -> None:
    pool = encoded(random_graphs(2, 200))
    features = Features.fitted(pool)
    found = features(pool)
    assert found.shape == (200, len(features.mean)) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=1e-3)
    widths = [group.shape[1] for group in _all_groups(pool, NODES)]
    assert features.bins == NODES and len(features.kept) == sum(widths) and features.kept.sum() == found.shape[1]
    columns = np.concatenate(_all_groups(pool, NODES), axis=1)
    assert np.array_equal(features.kept, columns.std(axis=0) > 1e-6)
    assert np.array_equal(np.unique(features.groups), np.arange(features.groups.max() + 1))
    assert np.array_equal(found, np.round(found, 4))


def test_features_come_back_from_arrays() -> None:
    pool = encoded(random_graphs(3))
    features = Features.fitted(pool)
    again = Features.restored(features.arrays())
    assert again.bins == features.bins and np.array_equal(again.groups, features.groups)
    assert np.array_equal(again(pool), features(pool))
    wider = encoded(random_graphs(3), NODES + 3)
    assert again(wider).shape == features(pool).shape


def test_many_operations_have_no_pairs() -> None:
    words = tuple(map(str, range(30)))
    groups = _all_groups(encoded(random_graphs(4, words=30), words=words), NODES)
    assert [group.shape[1] for group in groups] == [1, 30, 2, 72, 2]
    few = _all_groups(encoded(random_graphs(4, words=12), words=words[:12]), NODES)
    assert len(few) == len(NAMES) - 2


def test_one_network_alone() -> None:
    pool = encoded([random_graphs(5, 1)[0]] * 3)
    features = Features.fitted(pool)
    assert features(pool).tolist() == [[0.0]] * 3 and features.groups.tolist() == [0]
    other = features(encoded(random_graphs(6)))
    assert other.shape == (30, 1) and np.isfinite(other).all()


def test_no_node_at_all() -> None:
    empty: nx.DiGraph[int] = nx.DiGraph()
    graphs = random_graphs(7)
    features = Features.fitted(encoded([*graphs, empty]))
    alone, among = features(encoded([empty], 1)), features(concatenate([encoded(graphs), encoded([empty], 1)]))
    assert np.isfinite(alone).all() and np.array_equal(alone[0], among[-1])
