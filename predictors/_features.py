"""Numbers that describe the graph of an architecture and do not depend on how its nodes are numbered.

Counts of operations, of edges and ways between them, how often each is met by a path, and by a walk that goes back from
the output and takes every input of a node with the same probability: since normalised activations have about the same
size, that is the share which each part has in what the network computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from nasengine.encoding import Graphs

Floats = NDArray[np.float32]

_PAIRS: Final = 24  # most operations for which pairs are counted,
_TRIPLES: Final = 8  # and triples
_DECIMALS: Final = 4
_CELLS: Final = 4_000_000  # numbers of the largest array of a chunk


@dataclass(frozen=True, eq=False)
class Features:
    """Standardised features in groups, fitted on a pool of architectures.

    Attributes:
        bins: longest path that is told from longer ones.
        kept: (all,) whether a feature differs within the pool.
        mean: (F,) of the kept ones; `scale` (F,) their standard deviations.
        groups: (F,) the number of the group of each kept feature; groups are counted from 0 without gaps.
    """

    bins: int
    kept: NDArray[np.bool_]
    mean: Floats
    scale: Floats
    groups: NDArray[np.int64]

    @classmethod
    def fitted(cls, pool: Graphs) -> Self:
        bins = pool.operations.shape[1]
        parts = [_all_groups(chunk, bins) for chunk in _chunks(pool)]
        columns = np.concatenate([np.concatenate(part, axis=1) for part in parts])
        group = np.repeat(np.arange(len(parts[0])), [part.shape[1] for part in parts[0]])
        mean, scale = columns.mean(axis=0, dtype=np.float64), columns.std(axis=0, dtype=np.float64)
        kept = scale > 1e-6 * np.maximum(1.0, np.abs(mean))
        if not kept.any():  # one network alone: a feature that is 0 in all the pool stands for it
            kept[0], scale[0] = True, 1.0
        groups = np.unique(group[kept], return_inverse=True)[1]
        return cls(bins, kept, mean[kept].astype(np.float32), scale[kept].astype(np.float32), groups)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, for `restored`."""
        names = ("kept", "mean", "scale", "groups")
        return {"features.bins": np.array(self.bins), **{f"features.{name}": getattr(self, name) for name in names}}

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        names = ("kept", "mean", "scale", "groups")
        return cls(int(arrays["features.bins"]), *(arrays[f"features.{name}"] for name in names))

    def __call__(self, graphs: Graphs) -> Floats:
        """(N, F): what is kept, less its mean, by its standard deviation.

        Rounded, so that trees do not split between sums of the same terms in another order.
        """
        result = np.empty((len(graphs), len(self.mean)), np.float32)
        first = 0
        for chunk in _chunks(graphs):
            columns = np.concatenate(_all_groups(chunk, self.bins), axis=1)
            result[first : first + len(chunk)] = (columns[:, self.kept] - self.mean) / self.scale
            first += len(chunk)
        return np.round(result, _DECIMALS)


def _chunks(graphs: Graphs) -> Iterator[Graphs]:
    nodes, words = graphs.operations.shape[1], len(graphs.vocabulary)
    largest = max(nodes * nodes, nodes * words, nodes * (nodes + 1) * (1 + words if words <= _PAIRS else 1))
    size = max(1, _CELLS // largest)
    for start in range(0, len(graphs), size):
        yield graphs.take(slice(start, start + size))


def _all_groups(graphs: Graphs, bins: int) -> list[Floats]:
    """The groups, (N, columns) each, in an order that depends on nothing but the vocabulary.

    Where there are identities the graphs count with them and without.
    """
    groups = [graphs.numbers.astype(np.float32), *_groups(graphs, bins)]
    return [*groups, *_groups(graphs.contracted(), bins)] if graphs.identities else groups


def _groups(graphs: Graphs, bins: int) -> list[Floats]:
    one_hot = (graphs.operations[:, :, None] == np.arange(len(graphs.vocabulary))).astype(np.float32)
    edges = graphs.adjacency.astype(np.float32)
    view = _View(one_hot, edges, (graphs.operations >= 0).astype(np.float32))
    groups = [*_counts(view), *_lengths(view, bins)]
    if len(graphs.vocabulary) <= _PAIRS:
        groups += [*_pairs(view), *_paths(view, bins), *_walks(view, bins)]
    if len(graphs.vocabulary) <= _TRIPLES:
        groups += [_triples(view, edges), _triples(view, view.back * view.visits[:, None, :], view.back)]
    return groups


class _View:
    """What several features share, of N graphs with V nodes and K operations.

    Attributes:
        words: (N, V, K) one-hot operations; `live` (N, V) is 1 where a node is.
        edges: (N, V, V); `into` and `out` (N, V) are the degrees.
        first, last: (N, V): 1 at the sources and at the sinks.
        back: (N, V, V): the probability that a walk goes from the second node back to the first.
        visits: (N, V): how often such walks from all sinks come by.
    """

    def __init__(self, words: Floats, edges: Floats, live: Floats) -> None:
        self.words, self.edges, self.live = words, edges, live
        self.into, self.out = edges.sum(axis=1), edges.sum(axis=2)
        self.first, self.last = live * (self.into == 0), live * (self.out == 0)
        self.back = edges / np.maximum(self.into, 1)[:, None, :]
        self.visits = self.last.copy()
        for node in reversed(range(edges.shape[1])):
            self.visits += self.back[:, :, node] * self.visits[:, node, None]

    def by_word(self, values: Floats) -> Floats:
        """Sums over the nodes of each operation: (N, V) -> (N, K)."""
        sums: Floats = np.einsum("nv,nvk->nk", values, self.words)
        return sums


def _counts(view: _View) -> list[Floats]:
    degrees = [view.by_word(view.into), view.by_word(view.out)]
    levels = [((d == level) * view.live).sum(axis=1)[:, None] for d in (view.into, view.out) for level in range(1, 7)]
    sizes = np.stack([view.live.sum(axis=1), view.edges.sum(axis=(1, 2))], axis=1)
    return [view.words.sum(axis=1), sizes, np.concatenate([*degrees, *levels], axis=1).astype(np.float32)]


def _lengths(view: _View, bins: int) -> list[Floats]:
    """Longest and shortest path in nodes of each kind; operations by their depth from both ends."""
    kinds = _kinds(view)
    nodes = range(view.edges.shape[1])
    most = np.where(view.first[:, :, None] > 0, kinds, -np.inf)
    least = np.where(view.first[:, :, None] > 0, kinds, np.inf)
    for node in nodes:
        before = view.edges[:, :, node, None] > 0
        longest = np.where(before, most, -np.inf).max(axis=1)
        shortest = np.where(before, least, np.inf).min(axis=1)
        inner = view.into[:, node, None] > 0
        most[:, node] = np.where(inner, longest + kinds[:, node], most[:, node])
        least[:, node] = np.where(inner, shortest + kinds[:, node], least[:, node])
    last = view.last[:, :, None] > 0
    ends = [np.where(last, most, -np.inf).max(axis=1), np.where(last, least, np.inf).min(axis=1)]
    lengths = np.nan_to_num(np.concatenate(ends, axis=1), posinf=0.0, neginf=0.0).astype(np.float32)
    if view.words.shape[2] > _PAIRS:
        return [lengths]
    down, up = _depths(view.edges), _depths(view.edges[:, ::-1, ::-1].transpose(0, 2, 1))[:, ::-1]
    levels = [
        view.by_word(((np.minimum(depth, bins) == level) * view.live).astype(np.float32))
        for depth in (down, up)
        for level in range(1, bins + 1)
    ]
    return [lengths, np.concatenate(levels, axis=1)]


def _kinds(view: _View) -> Floats:
    """(N, V, kinds): whether a node is there, and, for few operations, whether it is of each."""
    everything = view.live[:, :, None]
    return everything if view.words.shape[2] > _PAIRS else np.concatenate([everything, view.words], axis=2)


def _depths(edges: Floats) -> NDArray[np.int64]:
    """(N, V): the most edges on a way from any source to each node."""
    depths = np.zeros(edges.shape[:2], np.int64)
    for node in range(edges.shape[1]):
        depths[:, node] = np.where(edges[:, :, node] > 0, depths + 1, 0).max(axis=1)
    return depths


def _pairs(view: _View) -> list[Floats]:
    """Edges between operations, pairs of which one is before the other, and edges as the walks take them."""
    turned = view.words.transpose(0, 2, 1)
    reach = view.edges > 0
    for node in range(view.edges.shape[1]):
        reach |= reach[:, :, node, None] & reach[:, None, node, :]
    kinds = [view.edges, reach.astype(np.float32), view.back * view.visits[:, None, :]]
    return [(turned @ kind @ view.words).reshape(len(turned), -1) for kind in kinds]


def _triples(view: _View, second: Floats, first: Floats | None = None) -> Floats:
    """Two edges in a row by their three operations, the sum of the products of the edges' weights."""
    start = view.words.transpose(0, 2, 1) @ (second if first is None else first)
    end = second @ view.words
    count, words = len(start), view.words.shape[2]
    middle = (start[:, :, None, :] * view.words.transpose(0, 2, 1)[:, None, :, :]).reshape(count, words * words, -1)
    return (middle @ end).reshape(count, -1)


def _paths(view: _View, bins: int) -> list[Floats]:
    """Number of paths, the share that meets each operation, and the shares that meet a kind 0, 1, 2, ... times."""
    ways = view.first.copy()
    for node in range(view.edges.shape[1]):
        ways[:, node] += np.einsum("nu,nu->n", ways, view.edges[:, :, node])
    after = view.last.copy()
    for node in reversed(range(view.edges.shape[1])):
        after[:, node] += np.einsum("nu,nu->n", after, view.edges[:, node])
    total = np.maximum((ways * view.last).sum(axis=1, keepdims=True), 1.0)
    shares = _met(view, view.edges, bins) / total[:, :, None]
    return [np.log(total), view.by_word(ways * after) / total, shares.reshape(len(total), -1)]


def _walks(view: _View, bins: int) -> list[Floats]:
    """How often walks meet each operation, and the shares, means and squares of how often they meet a kind."""
    shares = _met(view, view.back, bins)
    times = np.arange(shares.shape[2], dtype=np.float32)
    moments = [shares @ times, shares @ times**2]
    met = np.concatenate([view.by_word(view.visits), (view.visits**2).sum(axis=1, keepdims=True)], axis=1)
    return [met, np.concatenate([shares.reshape(len(shares), -1), *moments], axis=1)]


def _met(view: _View, weights: Floats, bins: int) -> Floats:
    """(N, kinds, bins + 1): the weight of the paths that meet nodes of a kind so many times; the last bin has the rest.

    A path weighs the product of the weights (N, V, V) of its edges.
    """
    kinds = _kinds(view)
    count, nodes, number = kinds.shape
    met = np.zeros((count, nodes, number * (bins + 1)), np.float32)
    for node in range(nodes):
        here = np.matmul(weights[:, None, :, node], met).reshape(count, number, bins + 1)
        here[:, :, 0] += view.first[:, node, None]
        moved = np.concatenate([np.zeros_like(here[:, :, :1]), here[:, :, :-1]], axis=2)
        moved[:, :, -1] += here[:, :, -1]
        met[:, node] = np.where(kinds[:, node, :, None] > 0, moved, here).reshape(count, -1)
    ends: Floats = np.einsum("nv,nvc->nc", view.last, met)
    return ends.reshape(count, number, bins + 1)
