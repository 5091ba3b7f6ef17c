"""automl/NASLib: its DARTSOptimizer on its NasBench301SearchSpace.

The supernet is the published one, but for learned scales and shifts in the batch norms before the cells.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasengine.algorithms.darts import DARTS
from peers.contest import (
    OPTIONS,
    Contest,
    Step,
    Twin,
    imported,
    search_operations,
    search_step,
    supernet,
    twin_differences,
)
from search_spaces.darts import DARTS as Cells

REPOSITORY = "automl/NASLib"
FIRST_CELL, REDUCTION = 4, 6
"""The nodes of its graph that are the first cell and the first reduction cell."""
NAMES = (
    "skip_connect",
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""Its operations on an edge, in their order, by the published names."""


def _optimizer(path: Path) -> Any:
    made = imported(path, "naslib.optimizers.oneshot.darts.optimizer").DARTSOptimizer()
    space = imported(path, "naslib.search_spaces.nasbench301.graph").NasBench301SearchSpace()
    made.adapt_search_space(space, "cifar10")
    made.before_training()
    return made


def _step(path: Path) -> Step:
    """That of its optimiser, which the trainer calls with both batches."""
    optimizer = _optimizer(path)
    return lambda train, valid: optimizer.step((train.inputs, train.targets), (valid.inputs, valid.targets))


CONTESTS: dict[str, Contest] = {
    "DARTS, first order": Contest(
        partial(search_step, DARTS(order="first")), _step, search_operations(DARTS(order="first"))
    ),
}


def differences(path: Path, size: int) -> str:
    """Of loss and gradients, at its weights."""
    graph = _optimizer(path).graph
    held = dict(graph.named_parameters())
    weights = [held[_name(name)] for name, _ in supernet().named_parameters()]
    cells = [graph.nodes[node]["subgraph"] for node in (FIRST_CELL, REDUCTION)]
    alphas = [cell.edges[source + 1, node + 1].alpha for cell in cells for source, node in Cells().edges()]
    order = [NAMES.index(option) for option in OPTIONS]

    def rows(logits: list[Tensor]) -> Tensor:
        return torch.stack([torch.softmax(row, -1)[order] for row in logits])

    said = "its batch norms before the cells have learned scales and shifts, which are 1 and 0 here"
    return f"{said}\n{twin_differences(Twin(graph, weights, alphas, rows), size)}"


def _name(ours: str) -> str:
    """The name of its parameter that is one of ours."""
    part = ours.split(".")
    if part[1] == "stem":
        return f"makrograph-edge(1,2).seq.{'.'.join(part[3:])}"
    if part[1] == "classifier":
        return f"makrograph-edge(11,13).op.2.{part[2]}"
    node = FIRST_CELL + int(part[2])
    if part[3] == "preprocess":
        return _before(node, part[4], part[5:])
    kind = "reduction_cell" if node in (REDUCTION, REDUCTION + 3) else "normal_cell"
    source, end = (1 + int(place) for place in part[4].split("-"))
    place = NAMES.index(OPTIONS[int(part[6])])
    inner = _halves(part[7:]) if place == 0 else f"op.{'.'.join(part[7:])}"
    return f"makrograph-subgraph_at({node}).{kind}-edge({source},{end}).primitive-{place}.{inner}"


def _before(node: int, state: str, inner: list[str]) -> str:
    if state == "last":
        edge, reduced = (2, 3) if node == FIRST_CELL else (node - 1, node), False
    else:
        edge, reduced = (2 if node < REDUCTION else node - 2, node), node in (REDUCTION + 1, REDUCTION + 4)
    return f"makrograph-edge({edge[0]},{edge[1]})." + (_halves(inner) if reduced else f"op.{'.'.join(inner)}")


def _halves(inner: list[str]) -> str:
    """Of the two convolutions of a factorised reduction."""
    return ".".join(({"even": "conv_1", "odd": "conv_2"}[inner[0]], *inner[1:]))
