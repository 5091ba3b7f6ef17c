"""Cells of NAS-Bench-101 in forms that are not the published ones."""

from __future__ import annotations

import random

import networkx as nx
import numpy as np

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError
from search_spaces._nasbench101 import OPERATIONS, Cell
from search_spaces._nasbench101_sequence import FIRST


def other_form(cell: Cell, rng: random.Random) -> Architecture:
    """With other numbers, gaps between its vertices, and operations and edges on those that are left out."""
    graph: nx.DiGraph[int] = nx.DiGraph(np.array(cell.matrix))
    cell = cell.renumbered(rng.choice(list(nx.all_topological_sorts(graph))))
    places = [0, *sorted(rng.sample(range(1, 6), len(cell.matrix) - 2)), 6]
    kinds = {f"op/{vertex}": rng.choice(OPERATIONS) for vertex in range(1, 6)}
    kinds |= {f"op/{place}": kind for place, kind in zip(places[1:-1], cell.operations[1:-1], strict=True)}
    ends = [(x, y) for x, row in enumerate(cell.matrix) for y, entry in enumerate(row) if entry]
    edges = {f"edge/{places[x]}-{places[y]}": "1" for x, y in ends}
    dead = {f"edge/{x}-{y}": "1" for x, y in [(0, 2), (1, 3), (2, 5), (4, 5)] if y not in places}
    return Architecture({**FIRST, **kinds, **edges, **dead})


def random_cells(seed: int, count: int) -> list[Cell]:
    """Of seven vertices at most, not all of them in the form that is published."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        share, vertices = rng.uniform(0.2, 0.7), rng.randint(2, 7)
        matrix = [[int(x < y and rng.random() < share) for y in range(vertices)] for x in range(vertices)]
        try:
            found.append(Cell(matrix, ["input", *rng.choices(OPERATIONS, k=vertices - 2), "output"]).pruned())
        except ArchitectureError:
            continue
    return found
