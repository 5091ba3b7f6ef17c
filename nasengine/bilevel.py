"""Hypergradients: how the validation loss after a weight step changes with the alphas.

Each is a function of the same signature. `train` and `valid` evaluate the loss of one batch at given weights and at
the current alphas; the weights may carry gradient. Nothing is changed, neither weights nor batch-norm statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from nasengine.supernet import Evaluation, Weights

Evaluate = Callable[[Weights], Evaluation]


@dataclass(frozen=True)
class VirtualStep:
    """The weight step that the bilevel problem looks ahead: w' = w - rate * (momentum * buffer + gradient + decay * w).

    Attributes:
        rate: xi of arXiv:1806.09055 eq. 6, the current learning rate of the weights.
        momentum: of the weight optimiser.
        weight_decay: of the weight optimiser.
        buffers: its momentum buffers by name; empty before its first step.
    """

    rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    buffers: Mapping[str, Tensor] | None = None

    def __call__(self, weights: Weights, gradients: list[Tensor]) -> dict[str, Tensor]:
        names, at, buffers = list(weights), list(weights.values()), self.buffers or {}
        directions = list(torch._foreach_add(gradients, at, alpha=self.weight_decay))
        kept = [place for place, name in enumerate(names) if name in buffers]
        if kept:
            before = [buffers[names[place]] for place in kept]
            turned = torch._foreach_add([directions[place] for place in kept], before, alpha=self.momentum)
            for place, direction in zip(kept, turned, strict=True):
                directions[place] = direction
        return dict(zip(names, torch._foreach_add(at, directions, alpha=-self.rate), strict=True))


class Hypergradient(NamedTuple):
    """Gradients for the alphas, in their order, and the validation pass they came from."""

    gradients: list[Tensor]
    valid: Evaluation


def first_order(
    train: Evaluate, valid: Evaluate, weights: Weights, alphas: Sequence[Tensor], virtual: VirtualStep
) -> Hypergradient:
    """grad_alpha L_val(w, alpha): no virtual step (arXiv:1806.09055, section 2.3, xi = 0). One backward pass."""
    del train, virtual
    evaluation = valid(_detached(weights))
    return Hypergradient(_gradients(evaluation.loss, alphas), _without_graph(evaluation))


def second_order(
    train: Evaluate, valid: Evaluate, weights: Weights, alphas: Sequence[Tensor], virtual: VirtualStep
) -> Hypergradient:
    """grad_alpha L_val(w', alpha) - xi * (grad_alpha L_train(w+) - grad_alpha L_train(w-)) / (2 eps).

    arXiv:1806.09055 eqs. 7 and 8, with eps = 0.01 / |grad_w' L_val(w', alpha)|. Four backward passes.
    """
    start = _detached(weights, requires_grad=True)
    moved = virtual(_detached(weights), _gradients(train(start).loss, list(start.values())))
    moved = _detached(moved, requires_grad=True)
    evaluation = valid(moved)
    both = _gradients(evaluation.loss, [*alphas, *moved.values()])
    gradients, vector = both[: len(alphas)], both[len(alphas) :]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vector)))
    epsilon = 0.01 / torch.where(norm == 0, 1, norm)  # to branch on it would be to wait for the device
    plus = _gradients(train(_shifted(weights, vector, epsilon)).loss, alphas)
    minus = _gradients(train(_shifted(weights, vector, -epsilon)).loss, alphas)
    scale = torch.where(norm == 0, 0, virtual.rate / (2 * epsilon))
    corrected = [g - scale * (p - m) for g, p, m in zip(gradients, plus, minus, strict=True)]
    return Hypergradient(corrected, _without_graph(evaluation))


def exact(
    train: Evaluate, valid: Evaluate, weights: Weights, alphas: Sequence[Tensor], virtual: VirtualStep
) -> Hypergradient:
    """d/d alpha of L_val(w'(alpha), alpha) by differentiating through the virtual step (arXiv:1806.09055 eq. 6).

    What `second_order` approximates; it needs second derivatives of every operation and the memory of two passes.
    """
    start = _detached(weights, requires_grad=True)
    inner = torch.autograd.grad(train(start).loss, list(start.values()), create_graph=True, materialize_grads=True)
    evaluation = valid(virtual(start, list(inner)))
    return Hypergradient(_gradients(evaluation.loss, alphas), _without_graph(evaluation))


HYPERGRADIENTS: Final = {"first": first_order, "second": second_order, "exact": exact}


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, materialize_grads=True))


def _detached(weights: Weights, requires_grad: bool = False) -> dict[str, Tensor]:
    return {name: weight.detach().requires_grad_(requires_grad) for name, weight in weights.items()}


def _shifted(weights: Weights, vector: list[Tensor], epsilon: Tensor) -> dict[str, Tensor]:
    at = [weight.detach() for weight in weights.values()]
    return dict(zip(weights, torch._foreach_add(at, torch._foreach_mul(vector, epsilon)), strict=True))


def _without_graph(evaluation: Evaluation) -> Evaluation:
    return Evaluation(evaluation.loss.detach(), evaluation.outputs)
