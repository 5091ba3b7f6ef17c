"""Architectures as arrays, which is how predictors see them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from nasengine.architecture import Architecture, Choice


@dataclass(frozen=True, eq=False)
class Graphs:
    """N architectures as directed acyclic graphs of at most V nodes, and K numbers of each.

    Attributes:
        operations: (N, V) int16, indices in `vocabulary`; -1 where there is no node.
        adjacency: (N, V, V) bool, an edge from node x to node y; nodes are in topological order, x < y.
        numbers: (N, K) float32: what is known of an architecture without training it, such as its sizes.
        vocabulary: what the operations are.
        identities: those of them that give what they get, such as a skip connection.
    """

    operations: NDArray[np.int16]
    adjacency: NDArray[np.bool_]
    numbers: NDArray[np.float32]
    vocabulary: tuple[str, ...]
    identities: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.operations)

    def take(self, rows: slice | NDArray[Any]) -> Graphs:
        """Some of the architectures."""
        arrays = self.operations[rows], self.adjacency[rows], self.numbers[rows]
        return Graphs(*arrays, self.vocabulary, self.identities)

    def contracted(self) -> Graphs:
        """The graphs without their identities, whose ways are kept."""
        operations, adjacency = self.operations.copy(), self.adjacency.copy()
        skipped = np.isin(operations, [self.vocabulary.index(word) for word in self.identities])
        for node in range(operations.shape[1]):
            here = skipped[:, node, None, None]
            adjacency |= here & adjacency[:, :, node, None] & adjacency[:, None, node, :]
            adjacency[:, node] &= ~here[:, 0]
            adjacency[:, :, node] &= ~here[:, 0]
        operations[skipped] = -1
        return Graphs(operations, adjacency, self.numbers, self.vocabulary)

    def unique(self) -> tuple[Graphs, NDArray[np.intp]]:
        """The different ones in an order that does not depend on theirs, and where each of these is in it."""
        count = len(self)
        sides = [self.operations, np.packbits(self.adjacency.reshape(count, -1), axis=1), self.numbers]
        rows = np.concatenate([np.ascontiguousarray(side).view(np.uint8).reshape(count, -1) for side in sides], axis=1)
        _, first, places = np.unique(rows.view(f"V{rows.shape[1]}"), return_index=True, return_inverse=True)
        return self.take(first), places.reshape(-1)


def concatenate(several: Sequence[Graphs]) -> Graphs:
    """All architectures of encodings of one space, padded to the most nodes."""
    width = max(graphs.operations.shape[1] for graphs in several)
    missing = [width - graphs.operations.shape[1] for graphs in several]
    pairs = list(zip(several, missing, strict=True))
    return Graphs(
        np.concatenate([np.pad(g.operations, ((0, 0), (0, more)), constant_values=-1) for g, more in pairs]),
        np.concatenate([np.pad(g.adjacency, ((0, 0), (0, more), (0, more))) for g, more in pairs]),
        np.concatenate([graphs.numbers for graphs in several]),
        several[0].vocabulary,
        several[0].identities,
    )


def encode_choices(
    choices: Mapping[str, Choice], idle: Sequence[Collection[str]], taken: Sequence[Architecture]
) -> Graphs:
    """A chain of the choices, the operation "label=option" each; idle ones are left out.

    The numbers are the places of the ordinal choices among their options, 0 to 1; 0 where they are idle.
    """
    vocabulary = tuple(f"{label}={option}" for label, choice in choices.items() for option in choice.options)
    index = {word: place for place, word in enumerate(vocabulary)}
    operations = np.full((len(taken), len(choices)), -1, np.int16)
    adjacency = np.zeros((len(taken), len(choices), len(choices)), bool)
    sizes = {label: choice for label, choice in choices.items() if choice.ordinal and len(choice.options) > 1}
    numbers = np.zeros((len(taken), len(sizes)), np.float32)
    for row, (architecture, out) in enumerate(zip(taken, idle, strict=True)):
        kept = [(place, label) for place, label in enumerate(choices) if label not in out]
        for place, label in kept:
            operations[row, place] = index[f"{label}={architecture[label]}"]
        for (one, _), (other, _) in pairwise(kept):
            adjacency[row, one, other] = True
        for column, (label, choice) in enumerate(sizes.items()):
            if label not in out:
                numbers[row, column] = choice.options.index(architecture[label]) / (len(choice.options) - 1)
    return Graphs(operations, adjacency, numbers, vocabulary)


def encode_cells(
    cells: Sequence[Mapping[str, nx.DiGraph[str]]],
    operations: Sequence[str],
    inputs: Sequence[str] = ("input",),
    identities: Sequence[str] = (),
) -> Graphs:
    """What `Space.graphs` gives, several graphs side by side, with `operations` on nodes or edges.

    An operation on an edge becomes a node. A node without an operation is left out and its ways are kept, but for the
    ends: the first ones that nothing leads to are the `inputs`, the last node is the "output". What is on no way
    between them is left out, so that a cell that connects nothing has no nodes.
    """
    names = list(cells[0]) if cells else []
    words = [*inputs, *operations, "output"]
    vocabulary = tuple(f"{name}/{word}" if len(names) > 1 else word for name in names for word in words)
    same = tuple(word for word in vocabulary if word.rpartition("/")[2] in identities)
    index = {word: place for place, word in enumerate(words)}
    parts = [[_ordered(graphs[name], inputs) for name in names] for graphs in cells]
    width = max((sum(len(part) for part, _ in row) for row in parts), default=1) or 1
    coded = np.full((len(cells), width), -1, np.int16)
    adjacency = np.zeros((len(cells), width, width), bool)
    for row, several in enumerate(parts):
        first = 0
        for number, (part, edges) in enumerate(several):
            coded[row, first : first + len(part)] = [number * len(words) + index[word] for word in part]
            for source, target in edges:
                adjacency[row, first + source, first + target] = True
            first += len(part)
    return Graphs(coded, adjacency, np.zeros((len(cells), 0), np.float32), vocabulary, same)


def _ordered(graph: nx.DiGraph[str], inputs: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Operations in topological order, and the edges between their places."""
    flat: nx.DiGraph[Any] = nx.DiGraph()
    blank = [node for node in graph if not graph.nodes[node].get("operation")]
    sources = [node for node in blank if not graph.pred[node]][: len(inputs)]
    last = list(graph)[-1]
    ends = {**dict(zip(sources, inputs, strict=False)), last: "output"}
    for node in graph:
        flat.add_node(node, word=ends.get(node) or graph.nodes[node].get("operation", ""))
    operation: str | None
    for source, target, operation in graph.edges(data="operation"):
        if operation:
            flat.add_node((source, target), word=operation)
            nx.add_path(flat, [source, (source, target), target])
        else:
            flat.add_edge(source, target)
    words: dict[Any, str] = nx.get_node_attributes(flat, "word")
    below = set(sources).union(*(nx.descendants(flat, node) for node in sources))
    live = below & {last, *nx.ancestors(flat, last)}
    flat.remove_nodes_from([node for node in list(flat) if node not in live])
    for node in [node for node in flat if not words[node]]:
        flat.add_edges_from([(source, target) for source in flat.pred[node] for target in flat.succ[node]])
        flat.remove_node(node)
    order = list(nx.topological_sort(flat))
    place = {node: number for number, node in enumerate(order)}
    return [words[node] for node in order], [(place[source], place[target]) for source, target in flat.edges]
