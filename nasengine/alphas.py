"""Alphas, the architecture parameters, and the relaxations that turn them into a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from nasengine.architecture import Choice
from nasengine.supernet import Gates, Mixture


def _softmax(table: Tensor) -> Tensor:
    return torch.softmax(table, dim=-1)


def _identity(table: Tensor) -> Tensor:
    return table


RELAXATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"softmax": _softmax, "identity": _identity}
"""Alphas (choices, options) -> weights of that shape: softmax (arXiv:1806.09055 eq. 2), or the alphas themselves."""


class Alphas(nn.Module):
    """One row of parameters per choice, kept in one table per group of choices.

    Choices whose labels agree up to the first "/" and that have as many options share a table of shape (choices,
    options): the cells of DARTS have two, "normal" and "reduce".

    Args:
        choices: by label.
        generator: draws the start, std * N(0, 1).
        std: standard deviation of the start.
        like: gives dtype and device.
    """

    def __init__(self, choices: Mapping[str, Choice], generator: torch.Generator, std: float, like: Tensor) -> None:
        super().__init__()
        groups: dict[str, list[str]] = {}
        for label, choice in choices.items():
            key = f"{label.partition('/')[0]}-{len(choice.options)}".replace(".", "_")
            groups.setdefault(key, []).append(label)
        self._labels = groups
        self.tables = nn.ParameterDict()
        for key, labels in groups.items():
            start = std * torch.randn(
                len(labels), len(choices[labels[0]].options), generator=generator, dtype=torch.float64
            )
            self.tables[key] = nn.Parameter(start.to(like))

    def mixture(self, relaxation: str) -> dict[str, Tensor]:
        """The weights over the options of every choice, differentiable in the alphas."""
        relax = RELAXATIONS[relaxation]
        rows = {key: relax(table).unbind() for key, table in self.tables.items()}
        return {
            label: row for key, labels in self._labels.items() for label, row in zip(labels, rows[key], strict=True)
        }


def detached(mixture: Mixture) -> dict[str, Any]:
    """The same mixture without gradient."""
    return {label: _detached(weights) for label, weights in mixture.items()}


def _detached(weights: Tensor | Gates | int) -> Tensor | Gates | int:
    if isinstance(weights, Gates):
        return Gates(weights.values.detach())
    return weights if isinstance(weights, int) else weights.detach()


def entropy(mixture: Mapping[str, Tensor]) -> float:
    """Mean entropy of the rows of |weights| as a share of the largest possible: 1 if uniform, 0 if all is decided."""
    sizes = [weights.detach().double().abs() for weights in mixture.values() if len(weights) > 1]
    rows = [size / size.sum().clamp(min=1e-300) for size in sizes]
    shares = [torch.special.entr(row).sum() / torch.log(torch.tensor(float(len(row)))) for row in rows]
    return float(torch.stack(shares).mean()) if shares else 0.0
