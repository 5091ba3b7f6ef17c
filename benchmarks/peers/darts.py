"""quark0/darts: the published code of DARTS."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.task import Batch
from peers.contest import (
    CHANNELS,
    CLIP,
    LAYERS,
    SHAPES,
    Contest,
    Step,
    Twin,
    final_operations,
    final_step,
    imported,
    search_operations,
    search_step,
    training_step,
    twin_differences,
)

REPOSITORY = "quark0/darts"


def _network(path: Path) -> Any:
    module = imported(path / "cnn", "model_search")
    return module.Network(CHANNELS, SHAPES.outputs, LAYERS, torch.nn.CrossEntropyLoss())


def _search_step(path: Path, second: bool) -> Step:
    """As in its train_search.py."""
    network = _network(path)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    settings = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
    architect = imported(path / "cnn", "architect").Architect(network, settings)

    def step(train: Batch, valid: Batch) -> None:
        of_both = (train.inputs, train.targets, valid.inputs, valid.targets)
        architect.step(*of_both, 0.025, optimizer, unrolled=second)
        optimizer.zero_grad()
        network._loss(train.inputs, train.targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()

    return step


def _final_step(path: Path) -> Step:
    genotype = imported(path / "cnn", "genotypes").DARTS_V2
    network = imported(path / "cnn", "model").NetworkCIFAR(36, SHAPES.outputs, 20, True, genotype)
    network.drop_path_prob = 0.1
    return training_step(network)


def _search(algorithm: DARTS | RARTS, second: bool) -> Contest:
    return Contest(
        partial(search_step, algorithm), lambda path: _search_step(path, second), search_operations(algorithm)
    )


CONTESTS: dict[str, Contest] = {
    "DARTS, first order": _search(DARTS(order="first"), second=False),
    "DARTS, second order": _search(DARTS(order="second"), second=True),
    "RARTS, exact sweep, against second order": _search(RARTS(sweep="exact"), second=True),
    "RARTS, two passes, against second order": _search(RARTS(sweep="stale"), second=True),
    "training DARTS_V2, 36 channels, 20 cells": Contest(final_step, _final_step, final_operations),
}


def differences(path: Path, size: int) -> str:
    """Of loss and gradients, at its weights."""
    network = _network(path)
    alphas = list(network.arch_parameters())
    twin = Twin(
        network, list(network.parameters()), alphas, lambda rows: torch.cat([torch.softmax(row, -1) for row in rows])
    )
    return twin_differences(twin, size)
