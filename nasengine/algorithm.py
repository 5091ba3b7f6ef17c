"""The contract of a search algorithm, and the two groups of settings that gradient-based ones share."""

from __future__ import annotations

import abc
import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.proposals import Candidate, around
from nasengine.settings import setting, validate
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Batch


class StepInfo(NamedTuple):
    """What is only worth logging of a step; all tensors are without gradient.

    Attributes:
        train_loss, valid_loss: 0-dim.
        train_outputs, valid_outputs: of the network on the two batches, at the weights before the step; of the
            validation batch None, as its loss, where the algorithm does not look at it.
    """

    train_loss: Tensor
    train_outputs: Tensor
    valid_loss: Tensor | None = None
    valid_outputs: Tensor | None = None


State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class Algorithm(abc.ABC, Generic[State]):
    """A search method. The fields are hyper-parameters and never change; all that changes is in the state.

    A subclass is a frozen dataclass with a class attribute `name`; its state is a dataclass of modules, optimisers,
    generators, tensors and numbers, so that `state_dict` can save it.
    """

    name: ClassVar[str] = ""

    @abc.abstractmethod
    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> State:
        """The state before the first of `steps` steps. Takes the supernet over: its weights change with the state."""

    @abc.abstractmethod
    def step(self, state: State, train: Batch, valid: Batch) -> StepInfo:
        """One update from one pair of batches. Changes `state` in place."""

    @abc.abstractmethod
    def mixture(self, state: State) -> Mixture:
        """What the supernet would be evaluated under now, without gradient."""

    @abc.abstractmethod
    def supernet(self, state: State) -> Supernet:
        """The supernet that is judged and from which weights are inherited."""

    @abc.abstractmethod
    def derive(self, state: State, budget: Budget | None = None) -> Architecture:
        """The architecture the search would answer now, within a budget if there is one. Changes nothing.

        Raises:
            LimitError: no architecture keeps the limits of the budget.
        """

    def propose(self, state: State, count: int, budget: Budget) -> list[Candidate]:
        """Up to `count` different candidates of the search's own distribution, the derived one first.

        Raises:
            LimitError: no architecture keeps the limits of the budget.
        """
        supernet = self.supernet(state)
        derived = self.derive(state, budget)
        return around(supernet.space, supernet.choices, derived, self.mixture(state), count, budget)

    def indicators(self, state: State) -> dict[str, float]:
        """Numbers of a state that are worth watching during a search."""
        del state
        return {}


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """Descent on the weights of a supernet; the published values of DARTS (arXiv:1806.09055, A.1).

    Transformers want adamw, with a learning rate of about 0.001 and a weight decay of about 0.05.

    Differs from the paper: the cosine falls at every step, not once an epoch.
    """

    optimizer: Literal["sgd", "adamw"] = setting("sgd", "momentum descent, or adam with decoupled weight decay")
    lr: float = setting(0.025, "learning rate at the start", above=0)
    lr_min: float = setting(0.001, "learning rate at the end of the cosine", low=0)
    momentum: float = setting(0.9, "momentum, or the decay of adamw's mean of gradients", low=0, high=0.999)
    weight_decay: float = setting(3e-4, "weight decay, in sgd part of the gradient", low=0)
    clip: float = setting(5.0, "largest norm of the gradient, 0 for no limit", low=0)
    nesterov: bool = setting(False, "sgd: momentum of Nesterov's form")

    def __post_init__(self) -> None:
        validate(self, "algo.weights")
        if self.nesterov and not self.momentum:
            raise SettingError("algo.weights.nesterov needs a momentum above 0, but algo.weights.momentum is 0.")

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return weight_optimizer(
            list(parameters), self.optimizer, self.lr, self.momentum, self.weight_decay, self.nesterov
        )

    def rate(self, step: int, steps: int) -> float:
        """Cosine from `lr` at step 0 to `lr_min` at step `steps`."""
        return cosine(self.lr, self.lr_min, step / steps)


@dataclass(frozen=True, kw_only=True)
class AlphaSettings:
    """The optimiser of the alphas; the published values of DARTS (arXiv:1806.09055, A.1)."""

    optimizer: Literal["adam", "sgd"] = setting("adam", "adam, or sgd for plain gradient descent")
    lr: float = setting(3e-4, "learning rate", above=0)
    beta1: float = setting(0.5, "adam: decay of the mean of gradients", low=0, high=0.9999)
    beta2: float = setting(0.999, "adam: decay of the mean of squared gradients", low=0, high=0.99999)
    weight_decay: float = setting(1e-3, "weight decay, part of the gradient", low=0)
    std: float = setting(1e-3, "standard deviation of the start", low=0)

    def __post_init__(self) -> None:
        validate(self, "algo.alphas")

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        parameters = list(parameters) or [torch.zeros(0)]  # where gates decide everything there are no alphas
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, weight_decay=self.weight_decay)
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, self.lr, betas=betas, weight_decay=self.weight_decay)


def cosine(high: float, low: float, progress: float) -> float:
    """Half a cosine from `high` at progress 0 to `low` at progress 1."""
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def weight_optimizer(
    parameters: Sequence[Tensor],
    name: Literal["sgd", "adamw"],
    rate: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """SGD, or AdamW with the momentum as its first beta; in one call for all parameters where PyTorch has that."""
    fused = all(map(_can_be_fused, parameters))
    if name == "adamw":
        return torch.optim.AdamW(parameters, rate, (momentum, 0.999), weight_decay=weight_decay, fused=fused)
    optimizer = torch.optim.SGD(
        parameters, rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused
    )
    if fused and momentum:  # of parameters whose gradients come later than others' it would miss the buffers
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _can_be_fused(parameter: Tensor) -> bool:
    """Whether its numbers lie together: fused optimisers read buffers and gradients in their order."""
    known = parameter.device.type in ("cpu", "cuda") and parameter.dtype in (torch.float32, torch.float64)
    return known and (parameter.is_contiguous() or torch.empty_like(parameter).stride() == parameter.stride())


def descend(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Iterable[Tensor],
    rate: float | None,
    clip: float,
) -> None:
    """One step with the given gradients, at learning rate `rate` (None: its own), norm clipped to `clip` (0: not)."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = _laid_out(gradient, parameter)
    optimise(optimizer, rate, clip)


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient whose numbers lie as those of its parameter, in which order fused optimisers read both."""
    same = gradient.is_contiguous() and parameter.is_contiguous()
    return gradient if same or gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def optimise(optimizer: torch.optim.Optimizer, rate: float | None, clip: float) -> None:
    """One step as `descend`, with the gradients that the parameters hold, which are then forgotten."""
    if clip:
        weights = [p for part in optimizer.param_groups for p in part["params"]]
        nn.utils.clip_grad_norm_(weights, clip, foreach=weights[0].device.type in ("cpu", "cuda"))
    if rate is not None:
        for part in optimizer.param_groups:
            part["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def priced(
    gradients: Sequence[Tensor], supernet: Supernet, mixture: Mixture, variables: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the variables of a mixture, with those of the price of its expected cost added."""
    price = supernet.price(mixture) if supernet.price is not None else None
    if not isinstance(price, Tensor) or not price.requires_grad:
        return list(gradients)
    added = torch.autograd.grad(price, variables, materialize_grads=True, allow_unused=True)
    return [g + a for g, a in zip(gradients, added, strict=True)]


def state_dict(state: object) -> dict[str, Any]:
    """The fields of a state as tensors and plain values."""
    return {field.name: _saved(getattr(state, field.name)) for field in dataclasses.fields(cast(Any, state))}


def load_state_dict(state: object, saved: Mapping[str, Any]) -> None:
    """Puts what `state_dict` gave back into a state of the same shape."""
    for name, value in saved.items():
        current = getattr(state, name)
        if isinstance(current, (nn.Module, torch.optim.Optimizer)):
            current.zero_grad()  # a step that failed half-way may have left some
        if isinstance(current, torch.Generator):
            current.set_state(value.cpu())
        elif hasattr(current, "load_state_dict"):
            current.load_state_dict(copy.deepcopy(value))  # an optimiser would keep the tensors it is given
        else:
            setattr(state, name, value)


def _saved(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value.state_dict() if hasattr(value, "state_dict") else value
