"""DARTS: differentiable architecture search as a bilevel problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nasengine.algorithm import Algorithm, AlphaSettings, StepInfo, WeightSettings, descend
from nasengine.alphas import Alphas, detached
from nasengine.architecture import Architecture
from nasengine.bilevel import HYPERGRADIENTS, VirtualStep
from nasengine.settings import group, setting, validate
from nasengine.supernet import Supernet, Weights
from nasengine.task import Batch


@dataclass(kw_only=True)
class DARTSState:
    """All that changes in a search by DARTS."""

    supernet: Supernet
    alphas: Alphas
    weight_optimizer: torch.optim.Optimizer
    alpha_optimizer: torch.optim.Optimizer
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class DARTS(Algorithm[DARTSState]):
    """DARTS: alphas learn on the validation loss, weights on the training loss, in turns.

    min_alpha L_val(w*(alpha), alpha)  subject to  w*(alpha) = argmin_w L_train(w, alpha)        (eqs. 3, 4)

    Each step: alpha on the hypergradient (`order`: first, second by finite differences, or exact), then w by one step
    of momentum descent. First order costs 2 backward passes a step, second order 5.

    Differs from the paper: validation passes leave the batch-norm statistics alone; the cosine falls at every step.

    References: Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055.
    """

    name: ClassVar[str] = "darts"

    order: Literal["first", "second", "exact"] = setting("first", "how the alphas look through the weight step")
    relaxation: Literal["softmax", "identity"] = setting("softmax", "how alphas become weights over the options")
    weights: WeightSettings = group(WeightSettings, "optimiser of the weights")
    alphas: AlphaSettings = group(AlphaSettings, "optimiser of the alphas")

    def __post_init__(self) -> None:
        validate(self, "algo")

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> DARTSState:
        alphas = Alphas(supernet.choices, generator, self.alphas.std, like=next(supernet.parameters()))
        return DARTSState(
            supernet=supernet,
            alphas=alphas,
            weight_optimizer=self.weights.optimizer(supernet.parameters()),
            alpha_optimizer=self.alphas.make(alphas.parameters()),
            step=0,
            steps=steps,
        )

    def step(self, state: DARTSState, train: Batch, valid: Batch) -> StepInfo:
        rate = self.weights.rate(state.step, state.steps)
        supernet, weights = state.supernet, dict(state.supernet.named_parameters())
        hypergradient = HYPERGRADIENTS[self.order](
            lambda at: supernet.evaluate(train, state.alphas.mixture(self.relaxation), at),
            lambda at: supernet.evaluate(valid, state.alphas.mixture(self.relaxation), at),
            weights,
            list(state.alphas.parameters()),
            VirtualStep(rate, self.weights.momentum, self.weights.weight_decay, _momentum(state, weights)),
        )
        descend(state.alpha_optimizer, list(state.alphas.parameters()), hypergradient.gradients, rate=None, clip=0)

        evaluation = supernet.evaluate(train, self.mixture(state))
        gradients = torch.autograd.grad(evaluation.loss, list(weights.values()), materialize_grads=True)
        descend(state.weight_optimizer, list(weights.values()), gradients, rate, self.weights.clip)
        state.step += 1
        valid_loss, valid_outputs = hypergradient.valid
        return StepInfo(evaluation.loss.detach(), valid_loss, evaluation.outputs, valid_outputs)

    def mixture(self, state: DARTSState) -> dict[str, Tensor]:
        return detached(state.alphas.mixture(self.relaxation))

    def supernet(self, state: DARTSState) -> Supernet:
        return state.supernet

    def derive(self, state: DARTSState) -> Architecture:
        return state.supernet.derive(self.mixture(state))


def _momentum(state: DARTSState, weights: Weights) -> dict[str, Tensor]:
    optimizer = state.weight_optimizer.state
    buffers = {
        name: optimizer[weight].get("momentum_buffer") for name, weight in weights.items() if weight in optimizer
    }
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}
