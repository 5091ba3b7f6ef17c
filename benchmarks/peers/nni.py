"""microsoft/nni 3: its DARTS space as the supernet of its DARTS strategy.

Its step runs without Lightning, whose hooks would take time of their own. The supernet differs from the published
one: learned scales and shifts in all batch norms, none after poolings, the results of an edge stacked with a block of
zeros in place of the operation `none`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasengine.algorithms.darts import DARTS
from peers.contest import (
    CHANNELS,
    LABELS,
    LAYERS,
    OPTIONS,
    Contest,
    Step,
    Twin,
    first_order,
    imported,
    search_operations,
    search_step,
    twin_differences,
)

REPOSITORY = "microsoft/nni"
NAMES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "none",
)
"""Its operations on an edge, in their order; the last is its block of zeros."""


def _network(path: Path) -> Any:
    strategy = imported(path, "nni.nas.strategy").DARTS()
    space = imported(path, "nni.nas.hub.pytorch").DARTS(width=CHANNELS, num_cells=LAYERS, dataset="cifar")
    return strategy.mutate_model(space)


def _alphas(network: nn.Module) -> dict[str, Tensor]:
    """By the label of the edge: cells of a kind share them."""
    found: dict[str, Tensor] = {}
    for module in network.modules():
        if isinstance(held := getattr(module, "_arch_alpha", None), nn.ParameterDict):
            found |= held.items()
    return found


def _step(path: Path) -> Step:
    """That of its DartsLightningModule: the validation loss moves the alphas, the training loss the weights."""
    network = _network(path)
    alphas = list(_alphas(network).values())
    own = {id(alpha) for alpha in alphas}
    return first_order(network, [weight for weight in network.parameters() if id(weight) not in own], alphas)


CONTESTS: dict[str, Contest] = {
    "DARTS, first order": Contest(
        partial(search_step, DARTS(order="first")), _step, search_operations(DARTS(order="first"))
    ),
}


def differences(path: Path, size: int) -> str:
    """Of loss and gradients, at its weights, where poolings have no share: it has no batch norm after them."""
    network = _network(path)
    alphas = _alphas(network)
    with torch.no_grad():
        for alpha in alphas.values():
            alpha[[NAMES.index("max_pool_3x3"), NAMES.index("avg_pool_3x3")]] = -torch.inf
    order = [NAMES.index(option) for option in OPTIONS]

    def rows(logits: list[Tensor]) -> Tensor:
        return torch.stack([torch.softmax(row, -1)[order] for row in logits])

    twin = Twin(network, _weights(network), [alphas[_edge(label)] for label in LABELS], rows)
    said = "without poolings, which have no batch norm there; scales and shifts of its other batch norms are 1 and 0"
    return f"{said}\n{twin_differences(twin, size)}"


def _edge(label: str) -> str:
    """Its label of an edge of ours, as normal/2_0 for normal/0-2."""
    kind, _, states = label.partition("/")
    source, node = states.split("-")
    return f"{kind}/{node}_{source}"


def _weights(network: nn.Module) -> list[Tensor]:
    """Those of the stem, the convolutions and the classifier: it holds them in the order of ours."""
    kept = []
    for name, module in network.named_modules():
        if name.startswith("stem") or isinstance(module, (nn.Conv2d, nn.Linear)):
            kept += list(module.parameters(recurse=False))
    return kept
