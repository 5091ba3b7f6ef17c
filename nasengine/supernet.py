"""The supernet: one module that holds all architectures, and the choices inside it.

A `Mixture` says under which weights over the options each choice is evaluated. It is bound for the length of one call
and read by the modules that hold choices, so that the author's `forward` stays ordinary. Calls may be nested or
interleaved: nothing of a mixture outlives its call.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice, Place
from nasengine.errors import ArchitectureError
from nasengine.microbatches import outputs_of
from nasengine.precision import Precision, at_precision
from nasengine.separable import by_formula
from nasengine.sharding import is_sharded, over_shards, to_shards
from nasengine.task import Batch
from nasengine.virtual import call_at

if TYPE_CHECKING:
    from nasengine.space import Space

T = TypeVar("T")


class Gates(NamedTuple):
    """One factor per unit of a size (per channel, say), shape (units,), in place of weights over its options."""

    values: Tensor


Mixture = Mapping[str, Tensor | Gates | int]
"""Per label: weights over the options, shape (options,); the index of the one option to evaluate; or gates."""

Weights = Mapping[str, Tensor]
"""Parameters by name, as `dict(module.named_parameters())` gives them."""


class _Call(NamedTuple):
    mixture: Mixture
    shared: dict[int, tuple[Tensor, Tensor]] | None
    known: dict[object, Any]


class _Current(threading.local):
    def __init__(self) -> None:
        self.call: _Call | None = None


_current = _Current()  # torch.compile cannot trace a ContextVar


@contextmanager
def _bound(mixture: Mixture, share: bool) -> Iterator[None]:
    before, _current.call = _current.call, _Call(mixture, {} if share else None, {})
    try:
        with nullcontext() if share else by_formula():
            yield
    finally:
        _current.call = before


def decided(label: str) -> Tensor | Gates | int:
    """What the mixture of the current call says about a choice. Raises ArchitectureError if it says nothing."""
    call = _current.call
    if call is None:
        raise ArchitectureError(
            f"Choice {label!r} must be decided by a mixture: call the supernet as supernet(inputs, mixture), and do "
            "without recomputation in backward (torch.utils.checkpoint)."
        )
    if label not in call.mixture:
        raise ArchitectureError(
            f"Choice {label!r} must be decided by the mixture, but that has only {', '.join(call.mixture) or 'none'}; "
            "if it is missing among the choices, put its module into an nn.ModuleList in place of a Python list."
        )
    return call.mixture[label]


def in_call() -> bool:
    """Whether a supernet is being called."""
    return _current.call is not None


def once_a_call(key: object, compute: Callable[[], T]) -> T:
    """What `compute` gives, computed once per supernet call for all who ask with an equal key."""
    call = _current.call
    assert call is not None
    if key not in call.known:
        call.known[key] = compute()
    known: T = call.known[key]
    return known


class Decision(nn.Module, abc.ABC):
    """A module whose work depends on choices; all that the supernet knows of the author's network.

    Attributes:
        choices: what has to be decided for it.
    """

    choices: tuple[Choice, ...]

    @abc.abstractmethod
    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        """The module that stands for it in the network of an architecture: it shares the children, copies slices.

        With `inherit` new modules get its weights, else they keep the start that torch gives them.
        """

    def parts(self) -> list[tuple[nn.Module, str]]:
        """The modules inside that run only under some options of its first choice: a pair for each such option."""
        return []


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
        call = _current.call
        if call is None or call.shared is None:
            output: Tensor = self.module(x)
            return output
        known = call.shared.get(id(self))
        if known is None or known[0] is not x:
            known = call.shared[id(self)] = (x, self.module(x))
        return known[1]


class MixedOp(Decision):
    """A categorical choice between modules that take the same input and give outputs of the same shape.

    Under a soft mixture: the weighted sum of all options, sum_o w_o * o(x) (arXiv:1806.09055, eq. 2 after the
    softmax); the options that are `Zero` keep their share of the weights and cost nothing. Under a hard mixture: the
    chosen option alone.
    """

    def __init__(self, label: str, options: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not isinstance(options, (Mapping, nn.ModuleDict)):
            raise ArchitectureError(
                f"The options of choice {label!r} must be a dictionary of names and modules, but got a "
                f"{type(options).__name__}; name them."
            )
        for name, option in options.items():
            if not isinstance(option, nn.Module):
                raise ArchitectureError(
                    f"Every option of choice {label!r} must be a torch module, but {name!r} is {type(option).__name__}."
                )
        self.choice = Choice(label, tuple(options))
        self.choices = (self.choice,)
        self.options = nn.ModuleList(options.values())

    def forward(self, x: Tensor) -> Tensor:
        weights = decided(self.choice.label)
        if isinstance(weights, int):
            output: Tensor = self.options[weights](x)
            return output
        if isinstance(weights, Gates):
            raise ArchitectureError(f"Choice {self.choice.label!r} is between operations, which have no gates.")
        total: Tensor | None = None
        for weight, name, option in zip(weights.unbind(), self.choice.options, self.options, strict=True):
            if not isinstance(option, Zero):
                term = option(x)
                total = weight * term if total is None else self._add(total, term, weight, name)
        return self.options[0](x) if total is None else total

    def is_zero(self) -> bool:
        """Whether the current call takes an option that gives nothing."""
        weights = decided(self.choice.label)
        return isinstance(weights, int) and isinstance(self.options[weights], Zero)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        del inherit
        return self.options[self.choice.options.index(architecture[self.choice.label])]

    def parts(self) -> list[tuple[nn.Module, str]]:
        return list(zip(self.options, self.choice.options, strict=True))

    def _add(self, total: Tensor, term: Tensor, weight: Tensor, name: str) -> Tensor:
        if term.shape != total.shape:
            raise ArchitectureError(
                f"All options of choice {self.choice.label!r} must give one shape, but got "
                f"{tuple(total.shape)} and {tuple(term.shape)} from {name!r}."
            )
        return total + weight * term  # a fused addcmul rounds otherwise than the published sum, which flips kinks


def choices_of(network: nn.Module) -> dict[str, Choice]:
    """The choices inside a module by label, in the order of its modules. Raises ArchitectureError if two disagree."""
    choices: dict[str, Choice] = {}
    places: dict[str, list[Place]] = {}
    for module, place in _decisions(network, {}, {}):
        for choice in module.choices:
            known = places.setdefault(choice.label, [])
            if place not in known:
                known.append(place)
            if choices.setdefault(choice.label, choice) != choice:
                one, other = (
                    f"the {'sizes' if c.ordinal else 'operations'} {', '.join(c.options)}"
                    for c in (choices[choice.label], choice)
                )
                raise ArchitectureError(
                    f"Modules that share choice {choice.label!r} must have the same options, but got {one} and "
                    f"{other}; give one of them another name."
                )
    return {label: dataclasses.replace(choice, places=tuple(places[label])) for label, choice in choices.items()}


def _decisions(
    module: nn.Module, place: Place, parts: Mapping[nn.Module, tuple[str, set[str]]]
) -> Iterator[tuple[Decision, Place]]:
    """The decisions inside a module, in the order of its modules, as often as they have a place."""
    if module in parts:
        label, options = parts[module]
        place, parts = {**place, label: options & set(place.get(label, options))}, {}
    if isinstance(module, Decision):
        yield module, place
        inside: dict[nn.Module, tuple[str, set[str]]] = {}
        for part, option in module.parts():
            inside.setdefault(part, (module.choices[0].label, set()))[1].add(option)
        parts = inside
    for child in module.children():
        yield from _decisions(child, place, parts)


def fix(network: nn.Module, architecture: Architecture, inherit: bool = True) -> nn.Module:
    """A copy of `network` in which every choice is replaced by the module that `architecture` takes.

    With `inherit` it has the network's weights; without, the parts cut out of larger ones start anew.
    """
    known: dict[nn.Module, nn.Module] = {}  # a layer that is used twice stays one layer

    def fixed(module: nn.Module) -> nn.Module:
        if module not in known and isinstance(module, Decision):
            known[module] = fixed(module.fixed(architecture, inherit))
        elif module not in known:
            known[module] = module
            for name, child in list(module._modules.items()):  # named_children leaves out a child's second name
                if child is not None:
                    setattr(module, name, fixed(child))
        return known[module]

    # to copy a supernet takes long, and what is in the memo is taken to be copied already
    return fixed(copy.deepcopy(network, {id(part): part for part in _left_out(network, architecture)}))


def _left_out(network: nn.Module, architecture: Architecture) -> set[nn.Module]:
    """The parts of decisions that have no place in the network of an architecture."""
    taken, left = set[nn.Module](), set[nn.Module]()

    def visit(module: nn.Module, others: set[nn.Module]) -> None:
        holds = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if module in others:
            left.add(module)
            return
        if module in taken and not holds:
            return
        taken.add(module)
        if isinstance(module, Decision):
            parts = module.parts()
            run = {part for part, option in parts if option == architecture[module.choices[0].label]}
            others = {part for part, _ in parts} - run
        elif not holds:
            others = set()
        for child in module.children():
            visit(child, others)

    visit(network, set())
    return left - taken


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

    Attributes:
        price: what a mixture's expected cost above the limits is worth, added to the loss of the alphas; or None.
        precision: of passes; outputs and losses are float32 in both.
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
        self.price: Callable[[Mixture], Tensor | float] | None = None
        self.precision: Precision = "float32"

    def forward(self, inputs: Tensor, mixture: Mixture) -> Tensor:
        with _bound(mixture, self.share):
            outputs: Tensor = at_precision(self.precision, self.network, inputs)
        return outputs

    def evaluate(self, batch: Batch, mixture: Mixture, weights: Weights | None = None) -> Evaluation:
        """Loss on a batch.

        With `weights` the pass is a virtual one: it runs at those weights, and neither the supernet's own weights nor
        its batch-norm statistics change. Of a shard (`nasengine.sharding`) the loss is that of the whole batch, the
        outputs are those of the shard.
        """
        if weights is not None:
            outputs = self.forward_at(batch.inputs, mixture, weights)
        elif is_sharded():
            own, mixture = _to_shards(dict(self.named_parameters()), mixture)
            outputs = call_at(self, dict(own), (batch.inputs, mixture))
        else:
            outputs = outputs_of(self, batch.inputs, (mixture,))
        return Evaluation(over_shards(self.loss(outputs, batch.targets)), outputs.detach())

    def forward_at(self, inputs: Tensor, mixture: Mixture, weights: Weights) -> Tensor:
        """Outputs of a virtual pass: at `weights`, and without a trace in the supernet."""
        if is_sharded():
            weights, mixture = _to_shards(weights, mixture)
        outputs: Tensor = outputs_of(self, inputs, (mixture,), weights)
        return outputs

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

    def full(self) -> dict[str, Tensor | int]:
        """The mixture of the full network: the largest of all sizes, all operations of a choice with equal weights."""
        like = next(self.parameters())
        return {
            label: len(choice.options) - 1 if choice.ordinal else like.new_full((len(choice.options),), 1).softmax(0)
            for label, choice in self.choices.items()
        }

    def derive(self, weights: Mapping[str, Tensor]) -> Architecture:
        """The architecture that a soft mixture stands for, by the rules of the space."""
        return self.space.derive(self.choices, weights)

    def extract(self, architecture: Architecture) -> nn.Module:
        """The stand-alone network of an architecture, with a copy of the weights it has here."""
        return fix(self.network, architecture)


def _to_shards(weights: Weights, mixture: Mixture) -> tuple[Weights, Mixture]:
    """The same values for a pass over a shard, with the gradients of the whole batch."""
    soft = {label: w.values if isinstance(w, Gates) else w for label, w in mixture.items() if not isinstance(w, int)}
    passed = to_shards([*weights.values(), *soft.values()])
    soft = dict(zip(soft, passed[len(weights) :], strict=True))
    return dict(zip(weights, passed, strict=False)), {
        label: w if isinstance(w, int) else Gates(soft[label]) if isinstance(w, Gates) else soft[label]
        for label, w in mixture.items()
    }
