"""What architectures cost, exactly and in expectation, and the limits that a search must keep."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import le
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.cost import multiply_adds
from nasengine.descent import nearest
from nasengine.elastic import ElasticDepth, ElasticLayer, ElasticResolution, Product, Size, largest
from nasengine.errors import ArchitectureError
from nasengine.space import Space
from nasengine.supernet import Decision, Gates, MixedOp, Mixture, Supernet, choices_of
from nasengine.task import Shapes
from nasengine.work import OwnWork, Path

Number = Tensor | float
Vectors = dict[str, tuple[int, ...]]
"""Per label one value per option."""


class Cost(NamedTuple):
    """Weights of a network, and multiply-adds of its convolutions and matrix products for one input."""

    parameters: int
    multiply_adds: int


class FullCost(NamedTuple):
    """A cost with the seconds of a forward pass and the bytes of inference for one input."""

    parameters: int
    multiply_adds: int
    latency: float
    memory: int


class Measured(Protocol):
    """What tells seconds and bytes of derived networks, such as `nasengine.footprint.Footprint`."""

    def latency(self, architecture: Architecture) -> float: ...

    def memory(self, architecture: Architecture) -> int: ...

    def prepare(self, architectures: Sequence[Architecture]) -> None: ...

    def measure(self, architecture: Architecture) -> float: ...

    def is_calibrated(self) -> bool: ...

    def roughly(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Limits:
    """The most parameters, multiply-adds, seconds and bytes a derived network may take; None for no limit.

    The seconds are those of a forward pass, the bytes those of weights and live activations for one input.
    """

    parameters: int | None = None
    multiply_adds: int | None = None
    latency: float | None = None
    memory: int | None = None

    def all(self) -> tuple[float | None, ...]:
        """The limits in the order of a cost."""
        return self.parameters, self.multiply_adds, self.latency, self.memory

    def __bool__(self) -> bool:
        return any(limit is not None for limit in self.all())

    def excess(self, cost: Sequence[Number]) -> Number:
        """Sum over the limits of the share by which a cost is above it; 0 if it keeps all.

        A cost may end early, as an expected one does, which says nothing of seconds and bytes.
        """
        over = [c / limit - 1 for c, limit in zip(cost, self.all(), strict=False) if limit]
        return sum((torch.relu(o) if isinstance(o, Tensor) else max(o, 0.0) for o in over), start=0.0)


class _Polynomial:
    """A sum of coefficients times products over labels: the expectation of a cost over independent choices."""

    def __init__(self) -> None:
        self.terms: dict[tuple[tuple[str, tuple[int, ...]], ...], float] = {}

    def add(self, coefficient: float, vectors: Vectors) -> None:
        if coefficient:
            key = tuple(sorted(vectors.items()))
            self.terms[key] = self.terms.get(key, 0.0) + coefficient

    def at(self, places: Mapping[str, int]) -> float:
        """The value where every choice takes the option at its place."""
        return math.fsum(
            coefficient * math.prod(values[places[label]] for label, values in key)
            for key, coefficient in self.terms.items()
        )

    def expected(self, shares: Mapping[str, Tensor | int]) -> Number:
        """The mean over options drawn by their shares, shape (options,), or taken at a place."""
        means: dict[tuple[str, tuple[int, ...]], Number] = {}
        total: Number = 0.0
        for key, coefficient in self.terms.items():
            term: Number = coefficient
            for factor in key:
                if factor not in means:
                    means[factor] = _mean(factor[1], shares[factor[0]])
                term = term * means[factor]
            total = total + term
        return total


def _mean(values: tuple[int, ...], shares: Tensor | int) -> Number:
    if isinstance(shares, int):
        return float(values[shares])
    return shares @ _row(values, shares.dtype, shares.device)


@functools.lru_cache(10_000)  # a copy to a device waits for it
def _row(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


class CostModel:
    """Costs of all architectures of a space, from one pass on the meta device.

    A layer's cost is a product of its sizes; the choices are independent under a mixture, so that the expected cost is
    a polynomial in the weights of the options, differentiable, and exact where all is decided. Weights in several
    places count once if one place always runs when the others do, else for each.

    Seconds and bytes are no such polynomials: they come from outside, an architecture at a time, and only where they
    are limited.

    Args:
        space, shapes: of the networks; the space in its final form where derived networks have another one.
        measured: tells seconds and bytes of derived networks.
        form: what the final form changes, for messages.

    Raises:
        ArchitectureError: a choice is of a kind whose costs are not known.
    """

    measured: Measured | None = None
    form: str = ""

    def __init__(self, space: Space, shapes: Shapes, measured: Measured | None = None, form: str = "") -> None:
        self.space, self.shapes, self.measured = space, shapes, measured
        self.form = f"{form} (another form by --set final.NAME=VALUE)" if form else ""
        with torch.device("meta"):
            network = space.blueprint(shapes).eval().requires_grad_(False)
        _check_kinds(network)
        self.choices = choices_of(network)
        self._parameters, self._multiply_adds = _Polynomial(), _Polynomial()
        self._add_parameters(network)
        self._add_work(*self._works(network))

    def check(self) -> None:
        """Raises ArchitectureError if the derived networks do work on sizes of which no elastic layer knows."""
        smallest = self.space.smallest(self.choices)
        counted = multiply_adds(lambda: self.space.build(smallest, self.shapes), self.shapes)
        if self.of(smallest).multiply_adds != counted:
            raise ArchitectureError(
                f"Where costs are limited, all work on sizes must be done by elastic layers, but the smallest network "
                f"of {self.space.name!r} has {counted:,} multiply-adds and its layers say "
                f"{self.of(smallest).multiply_adds:,}; take ElasticAttention and the like, or leave out the limits."
            )

    def of(self, architecture: Architecture) -> Cost:
        """The cost of the derived network of an architecture."""
        places = {label: choice.options.index(architecture[label]) for label, choice in self.choices.items()}
        return Cost(round(self._parameters.at(places)), round(self._multiply_adds.at(places)))

    def expected(self, mixture: Mixture) -> tuple[Number, Number]:
        """Expected parameters and multiply-adds under a mixture, differentiable in it; gated sizes count fully."""
        shares = {label: _shares(mixture[label], choice) for label, choice in self.choices.items()}
        return self._parameters.expected(shares), self._multiply_adds.expected(shares)

    def full(self, architecture: Architecture, limits: Limits) -> FullCost:
        """The cost of the derived network with the seconds and bytes that are limited, 0 for those that are not."""
        measured = self.measured
        latency = measured.latency(architecture) if measured is not None and limits.latency else 0.0
        memory = measured.memory(architecture) if measured is not None and limits.memory else 0
        return FullCost(*self.of(architecture), latency, memory)

    def prepare(self, architectures: Sequence[Architecture], limits: Limits) -> None:
        """Measures together what the costs of some architectures need."""
        if self.measured is not None and limits.latency:
            self.measured.prepare(architectures)

    def excess(self, architecture: Architecture, limits: Limits) -> float:
        """`Limits.excess` of an architecture."""
        return float(limits.excess(self.full(architecture, limits)))

    def nearest(self, limits: Limits) -> Architecture:
        """The architecture that is least above the limits, found by `nasengine.descent.nearest`. Raises LimitError."""
        return nearest(self, limits)

    def _add_parameters(self, network: nn.Module) -> None:
        head = getattr(network, "auxiliary", None)  # `cost.parameters` leaves it out as well
        without = set(head.parameters()) if isinstance(head, nn.Module) else set()
        for owner, unders in _owners(network).items():
            for under in _widest(unders) if owner not in without else ():
                for number, vectors in _products(owner):
                    self._parameters.add(float(number), _times(under, vectors))

    def _add_work(self, label: str, works: Sequence[Mapping[Path, int]]) -> None:
        """Adds what modules do at the largest sizes; of several works one for every option of a choice."""
        for path in dict.fromkeys(path for work in works for path in work):
            if isinstance(path[-1], (MixedOp, ElasticDepth)):
                continue  # what mixes is not in the derived network
            work = tuple(work.get(path, 0) for work in works)
            under, layer, share = _place(path)
            pixels: Vectors = {label: work} if label else {}
            constant = 1 if label else work[0]
            products, most = layer or _Work([(1, {})], 1)
            for number, vectors in products:
                self._multiply_adds.add(share * constant * number / most, _times(_times(under, vectors), pixels))

    def _works(self, network: nn.Module) -> tuple[str, list[dict[Path, int]]]:
        """The work of a network, for every option of the resolution if it has a choice of it."""
        resolutions = [module for module in network.modules() if isinstance(module, ElasticResolution)]
        if not resolutions:
            return "", [self._measured(network, {})]
        size = resolutions[0].size
        return size.label, [self._measured(network, {size.label: option}) for option in range(len(size.values))]

    def _measured(self, network: nn.Module, resolution: dict[str, int]) -> dict[Path, int]:
        mixture: dict[str, Tensor | Gates | int] = {}
        for module in network.modules():
            if isinstance(module, (MixedOp, ElasticDepth)):
                mixture |= {c.label: torch.ones(len(c.options), device="meta") for c in module.choices}
            elif isinstance(module, ElasticLayer):
                mixture |= {c.label: len(c.options) - 1 for c in module.choices}
        supernet = Supernet(self.space, network, lambda outputs, _: outputs.sum(), share=False)
        inputs = self.shapes.zeros(1).to("meta")
        with OwnWork(network) as own, torch.no_grad(), torch.device("meta"):
            supernet(inputs, {**mixture, **resolution})
        return own.work()


def _check_kinds(network: nn.Module) -> None:
    """Raises ArchitectureError unless it is known what all choices do to the cost."""
    decisions = [module for module in network.modules() if isinstance(module, Decision)]
    known = (MixedOp, ElasticDepth, ElasticLayer, ElasticResolution)
    strange = [module for module in decisions if not isinstance(module, known)]
    strange += [module for module in decisions if isinstance(module, ElasticResolution)][1:]
    if strange:
        raise ArchitectureError(
            "Limits on cost need choices between operations, sizes and depths and at most one of a resolution, but "
            f"{strange[0].choices[0].label!r} is another one, of a {type(strange[0]).__name__}; leave out the limits."
        )


def _owners(network: nn.Module) -> dict[nn.Parameter | ElasticLayer, list[Vectors]]:
    """Weights and layers with sizes, whose weights are products, and where they are."""
    found: dict[nn.Parameter | ElasticLayer, list[Vectors]] = {}

    def visit(module: nn.Module, under: Vectors, within: bool) -> None:
        within = within or isinstance(module, ElasticLayer)
        owners = [module] if isinstance(module, ElasticLayer) else [] if within else module.parameters(recurse=False)
        for owner in owners:
            found.setdefault(owner, []).append(under)
        for child, more in _children(module):
            visit(child, _times(under, more), within and not more)

    visit(network, {}, False)
    return found


def _place(path: Path) -> tuple[Vectors, _Work | None, float]:
    """Where the module at the end of a path runs, the layer with sizes that it is part of, the share of each branch."""
    under: Vectors = {}
    layer, share = None, 1.0
    for module, inner in zip(path, (*path[1:], None), strict=True):
        layer = _Work.of(module.work) if isinstance(module, ElasticLayer) else layer
        branches = [more for child, more in _children(module) if child is inner and more]
        if branches:
            (label,) = branches[0]
            columns = zip(*(more[label] for more in branches), strict=True)
            under, layer, share = _times(under, {label: tuple(map(sum, columns))}), None, share / len(branches)
    return under, layer, share


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, Vectors]]:
    """The children, and of those that a choice is between what decides whether they run."""
    if isinstance(module, MixedOp):
        count = len(module.options)
        for place, option in enumerate(module.options):
            yield option, {module.choice.label: tuple(int(place == i) for i in range(count))}
    elif isinstance(module, ElasticDepth):
        for place, child in enumerate(module.layers):
            yield child, {module.size.label: tuple(int(place < depth) for depth in module.size.values)}
    else:
        yield from ((child, {}) for child in module.children())


class _Work(NamedTuple):
    """What a layer's multiply-adds are proportional to, and its value at the largest sizes."""

    products: list[tuple[int, Vectors]]
    most: int

    @classmethod
    def of(cls, work: Sequence[Product]) -> _Work:
        return cls([_vectors(product) for product in work], sum(math.prod(map(largest, product)) for product in work))


def _shares(weights: Tensor | Gates | int, choice: Choice) -> Tensor | int:
    return len(choice.options) - 1 if isinstance(weights, Gates) else weights


def _widest(unders: Sequence[Vectors]) -> list[Vectors]:
    """Of places of one thing, those that are not inside another one: there it is already."""

    def inside(one: Vectors, other: Vectors) -> bool:
        return all(label in one and all(map(le, one[label], kept)) for label, kept in other.items())

    found: list[Vectors] = []
    for under in unders:
        if not any(inside(under, other) for other in found):
            found = [*(other for other in found if not inside(other, under)), under]
    return found


def _products(owner: nn.Parameter | ElasticLayer) -> list[tuple[int, Vectors]]:
    """Products whose sum is a number of weights."""
    return [(owner.numel(), {})] if isinstance(owner, nn.Parameter) else [*map(_vectors, owner.weights)]


def _vectors(product: Product) -> tuple[int, Vectors]:
    """A product of numbers and sizes: the number, and the values per option."""
    vectors: Vectors = {}
    for factor in product:
        if isinstance(factor, Size):
            vectors = _times(vectors, {factor.label: factor.values})
    return math.prod(int(factor) for factor in product if not isinstance(factor, Size)), vectors


def _times(one: Vectors, other: Vectors) -> Vectors:
    both = {
        label: tuple(a * b for a, b in zip(one[label], other[label], strict=True)) for label in one if label in other
    }
    return {**one, **other, **both}
