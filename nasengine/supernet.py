"""The supernet: one module that holds all architectures, and the choices inside it.

A `Mixture` says under which weights over the options each choice is evaluated. It is bound for the length of one call
and read by the modules that hold choices, so that the author's `forward` stays ordinary. Calls may be nested or
interleaved: nothing of a mixture outlives its call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasengine.architecture import Architecture, Choice
from nasengine.errors import ArchitectureError
from nasengine.task import Batch

if TYPE_CHECKING:
    from nasengine.space import Space

Mixture = Mapping[str, Tensor | int]
"""Per label: weights over the options, shape (options,), or the index of the one option to evaluate."""

Weights = Mapping[str, Tensor]
"""Parameters by name, as `dict(module.named_parameters())` gives them."""


class _Call(NamedTuple):
    mixture: Mixture
    shared: dict[int, tuple[Tensor, Tensor]] | None


_call: ContextVar[_Call | None] = ContextVar("nasengine_supernet_call", default=None)


@contextmanager
def _bound(mixture: Mixture, share: bool) -> Iterator[None]:
    token = _call.set(_Call(mixture, {} if share else None))
    try:
        yield
    finally:
        _call.reset(token)


class Zero(nn.Module):
    """The operation that gives nothing: zeros of the input's shape, reduced by `stride` on the last two axes."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x if self.stride == 1 else x[..., :: self.stride, :: self.stride])


class Shared(nn.Module):
    """Computes `module` once per supernet call for all the places that ask for it with the same input tensor.

    Put one instance into several options (the ReLU, or the pooling, of all edges that leave a state). Outside a
    supernet call it is the module itself.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        call = _call.get()
        if call is None or call.shared is None:
            output: Tensor = self.module(x)
            return output
        known = call.shared.get(id(self))
        if known is None or known[0] is not x:
            known = call.shared[id(self)] = (x, self.module(x))
        return known[1]


class MixedOp(nn.Module):
    """A categorical choice between modules that take the same input and give outputs of the same shape.

    Under a soft mixture: the weighted sum of all options, sum_o w_o * o(x) (arXiv:1806.09055, eq. 2 after the
    softmax); the options that are `Zero` keep their share of the weights and cost nothing. Under a hard mixture: the
    chosen option alone.
    """

    def __init__(self, label: str, options: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, option in options.items():
            if not isinstance(option, nn.Module):
                raise ArchitectureError(
                    f"Every option of choice {label!r} must be a torch module, but {name!r} is {type(option).__name__}."
                )
        self.choice = Choice(label, tuple(options))
        self.options = nn.ModuleList(options.values())

    def forward(self, x: Tensor) -> Tensor:
        weights = self._weights()
        if isinstance(weights, int):
            output: Tensor = self.options[weights](x)
            return output
        total: Tensor | None = None
        for weight, option in zip(weights.unbind(), self.options, strict=True):
            if not isinstance(option, Zero):
                term = option(x)
                total = weight * term if total is None else self._add(total, term, weight)
        return self.options[0](x) if total is None else total

    def _weights(self) -> Tensor | int:
        call, label = _call.get(), self.choice.label
        if call is None or label not in call.mixture:
            raise ArchitectureError(
                f"Choice {label!r} must be decided by a mixture: call the supernet as supernet(inputs, mixture)."
            )
        return call.mixture[label]

    def _add(self, total: Tensor, term: Tensor, weight: Tensor) -> Tensor:
        if term.shape != total.shape:
            raise ArchitectureError(
                f"All options of choice {self.choice.label!r} must give one shape, but got "
                f"{tuple(total.shape)} and {tuple(term.shape)}."
            )
        return total + weight * term  # a fused addcmul rounds otherwise than the published sum, which flips kinks


def choices_of(network: nn.Module) -> dict[str, Choice]:
    """The choices inside a module by label, in the order of its modules. Raises ArchitectureError if two disagree."""
    choices: dict[str, Choice] = {}
    for module in network.modules():
        choice = getattr(module, "choice", None)
        if isinstance(choice, Choice) and choices.setdefault(choice.label, choice) != choice:
            raise ArchitectureError(
                f"Modules that share choice {choice.label!r} must have the same options, but got "
                f"{choices[choice.label].options} and {choice.options}."
            )
    return choices


def fix(network: nn.Module, architecture: Architecture) -> nn.Module:
    """A deep copy of `network` in which every choice is replaced by the module that `architecture` takes."""

    def fixed(module: nn.Module) -> nn.Module:
        while isinstance(module, MixedOp):
            module = module.options[module.choice.options.index(architecture[module.choice.label])]
        for name, child in list(module._modules.items()):  # named_children leaves out a child's second name
            if child is not None:
                setattr(module, name, fixed(child))
        return module

    return fixed(copy.deepcopy(network))


class Evaluation(NamedTuple):
    """One pass: the loss, and the outputs of the network without gradient."""

    loss: Tensor
    outputs: Tensor


class Supernet(nn.Module):
    """All architectures of a space in one module with shared weights.

    Args:
        space: whose rules derive an architecture.
        network: an ordinary module with choices inside.
        loss: (outputs, targets) -> scalar.
        share: compute what `Shared` modules hold once per call; False is the plain path, for reference.
    """

    def __init__(
        self, space: Space, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], share: bool = True
    ) -> None:
        super().__init__()
        self.space = space
        self.network = network
        self.choices = choices_of(network)
        self.loss = loss
        self.share = share
        self._scratch: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor, mixture: Mixture) -> Tensor:
        with _bound(mixture, self.share):
            outputs: Tensor = self.network(inputs)
        return outputs

    def evaluate(self, batch: Batch, mixture: Mixture, weights: Weights | None = None) -> Evaluation:
        """Loss on a batch.

        With `weights` the pass is a virtual one: it runs at those weights, and neither the supernet's own weights nor
        its batch-norm statistics change.
        """
        if weights is None:
            outputs = self(batch.inputs, mixture)
        else:
            scratch = self._scratch_buffers() if self.training else {}  # in evaluation no statistics change
            outputs = functional_call(self, {**weights, **scratch}, (batch.inputs, mixture))
        return Evaluation(self.loss(outputs, batch.targets), outputs.detach())

    def hard(self, architecture: Architecture) -> dict[str, int]:
        """The mixture that evaluates one architecture and nothing else."""
        return {label: choice.options.index(architecture[label]) for label, choice in self.choices.items()}

    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        """The soft mixture that gives all weight to one architecture."""
        like = next(self.parameters())
        return {
            label: torch.eye(len(self.choices[label].options), dtype=like.dtype, device=like.device)[index]
            for label, index in self.hard(architecture).items()
        }

    def derive(self, weights: Mapping[str, Tensor]) -> Architecture:
        """The architecture that a soft mixture stands for, by the rules of the space."""
        return self.space.derive(self.choices, weights)

    def extract(self, architecture: Architecture) -> nn.Module:
        """The stand-alone network of an architecture, with a copy of the weights it has here."""
        return fix(self.network, architecture)

    def _scratch_buffers(self) -> dict[str, Tensor]:
        for name, buffer in self.named_buffers():
            known = self._scratch.get(name)
            if known is None or known.device != buffer.device or known.dtype != buffer.dtype:
                self._scratch[name] = buffer.clone()
        return self._scratch
