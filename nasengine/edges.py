"""All that leaves a state of a cell, computed together: mixtures of operations on one input, added to running totals.

An edge gives sum_k w_k * norm_k(z_k), with z_k what operation k gives before its last batch norm: per channel
sum_k s_k * (z_k - mean_k) + d  with  s_k = w_k * gamma_k / sqrt(var_k + eps)  and  d = sum_k w_k * beta_k. So a mixture
(arXiv:1806.09055, eq. 2) is one pass over the values, and so is its backward: the gradient of z_k, which is s_k times
that of the sum, is never written where z_k is a separable convolution, whose backward takes the factor.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeGuard, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from nasengine.launch import Shape
from nasengine.mixing import Separable, Statistics, WeighsImages, unnormed
from nasengine.separable import Norm, Pair, is_fast, normalized, plain_separable
from nasengine.supernet import MixedOp, Zero, decided


class Half(NamedTuple):
    """A half of a separable module, with the slots of its tensors, -1 for none.

    Without a mean its norm takes the moments of the batch.
    """

    shape: Shape
    depthwise: int
    pointwise: int
    mean: int
    var: int
    gamma: int
    beta: int
    eps: float


class Term(NamedTuple):
    """An option of an edge: its halves, or the slots of its values and of the four tensors of the norm of an other."""

    option: int
    halves: tuple[Half, ...]
    values: int = -1
    norm: tuple[int, ...] = (-1,) * 4
    other: int = -1


class Edge(NamedTuple):
    """Slots of the weights and of the total before, and the terms; weights are of options, or of images of one term."""

    weights: int
    total: int
    terms: tuple[Term, ...]
    by_image: bool


class Plan(NamedTuple):
    """How modules are computed together. Tensors have slots: x, weights, totals, the modules' own, and five an other.

    It keeps none of the modules alive: what is known of a network goes with it.

    Attributes:
        modules, training: for which it holds, with the options of mixtures, and whether `norms` were in training.
        norms: batch norms of halves.
        counted: those that take the moments of the batch, each with the stride up to it.
        own: dictionaries and keys, where the modules' own tensors are.
        others: options without halves, which give values and a norm.
        terms: those of all edges that have halves.
        images: the slots of images.
    """

    modules: tuple[ref[nn.Module], ...]
    norms: list[nn.BatchNorm2d]
    training: list[bool]
    counted: list[tuple[nn.BatchNorm2d, int]]
    own: list[tuple[dict[str, Any], str]]
    others: list[ref[nn.Module]]
    edges: tuple[Edge, ...] = ()
    terms: tuple[Term, ...] = ()
    images: frozenset[int] = frozenset()


_plans: WeakKeyDictionary[nn.Module, list[Plan]] = WeakKeyDictionary()
Tensors = Sequence[Tensor | None]


def states_of(given: Sequence[Tensor], edges: nn.ModuleDict, last: int) -> list[Tensor]:
    """All states of a cell up to number `last`: the given ones, then sums of what the edges "source-node" give."""
    states = list(given)
    totals: dict[int, Tensor] = {}
    for source in range(last):
        later = [node for node in range(max(source + 1, len(given)), last + 1) if f"{source}-{node}" in edges]
        if later:
            modules = [edges[f"{source}-{node}"] for node in later]
            found = added(modules, states[source], [totals.get(node) for node in later])
            totals.update(zip(later, found, strict=True))
        if source + 1 >= len(given):
            states.append(totals[source + 1])
    return states


def added(modules: Sequence[nn.Module], x: Tensor, totals: Tensors) -> list[Tensor]:
    """totals[i] + modules[i](x) of all modules; None for zeros. Soft mixtures may be among the modules."""
    if is_fast(x) and torch.is_grad_enabled() and all(map(_is_sum, modules)):
        plan, statistics, eps = _plan_of(modules), Statistics(), list[float]()
        tensors = [x, *(None for _ in modules), *totals, *(holder[key] for holder, key in plan.own)]
        for option in plan.others:
            term = unnormed(cast(nn.Module, option()), x, statistics)
            norm = term.norm()
            tensors += (term.values, *((None,) * 4 if norm is None else norm[:4]))
            eps.append(0.0 if norm is None else norm.eps)
        if all(edge.terms for edge in plan.edges) and _ordinary(tensors):
            tensors[1 : 1 + len(modules)] = [_weights(module, x) for module in modules]
            return _together(plan, tuple(eps), tensors, statistics)
    outputs = [module(x) for module in modules]
    return [each if total is None else total + each for each, total in zip(outputs, totals, strict=True)]


def _together(plan: Plan, eps: tuple[float, ...], tensors: list[Tensor | None], statistics: Statistics) -> list[Tensor]:
    from nasengine.adding import Added

    found, count = Added.apply(plan, eps, *tensors), len(plan.edges)  # type: ignore[no-untyped-call]
    images, _, height, width = cast(Tensor, tensors[0]).shape
    for (module, stride), moments in zip(plan.counted, found[count:], strict=True):
        mean, var = moments.unbind()
        statistics.add(module, mean, var, images * -(-height // stride) * -(-width // stride))
    statistics.keep()
    return list(found[:count])


def _is_sum(module: nn.Module) -> bool:
    """Whether it is a soft mixture, whose weights are as those of any pass, or no mixture."""
    if not isinstance(module, MixedOp):
        return True
    weights = decided(module.choice.label)
    return isinstance(weights, Tensor) and _ordinary([weights])


def _weights(module: nn.Module, x: Tensor) -> Tensor:
    """Those of the options of a soft mixture, or those of the images; one for any other module."""
    if isinstance(module, MixedOp):
        return cast(Tensor, decided(module.choice.label)).contiguous()
    if not _weighs_images(module):
        return one()
    weights = cast(WeighsImages, module[1]).weights(x)
    return torch.ones(len(x)) if weights is None else weights


def _weighs_images(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it is a module followed by one that weighs its images."""
    return isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], WeighsImages)


def _options(module: nn.Module) -> list[tuple[int, nn.Module]]:
    """The options of a mixture that are no zeros, with their numbers; of another module what computes its values."""
    if isinstance(module, MixedOp):
        return [(place, option) for place, option in enumerate(module.options) if not isinstance(option, Zero)]
    return [(0, module[0] if _weighs_images(module) else module)]


@cache
def one() -> Tensor:
    """The weight of what is not weighted, shape (1,)."""
    return torch.ones(1, dtype=torch.float32, device="cpu")


def _ordinary(tensors: Tensors) -> bool:
    """Whether all are float32 in main memory, and none stands for a tensor."""
    there = [tensor for tensor in tensors if tensor is not None]
    kinds, types = {type(tensor) for tensor in there}, {tensor.dtype for tensor in there}
    return kinds <= {Tensor, nn.Parameter} and types == {torch.float32} and all(tensor.is_cpu for tensor in there)


def _plan_of(modules: Sequence[nn.Module]) -> Plan:
    """The plan for these modules; made once."""
    known, parts = _plans.setdefault(modules[0], []), _parts(modules)
    for plan in known:
        same = len(plan.modules) == len(parts) and all(map(operator.is_, (one() for one in plan.modules), parts))
        if same and [norm.training for norm in plan.norms] == plan.training:
            return plan
    known.append(_made_plan(modules))
    return known[-1]


def _parts(modules: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The modules, and the options of mixtures."""
    return *modules, *(option for module in modules for _, option in _options(module))


def _made_plan(modules: Sequence[nn.Module]) -> Plan:
    plan, edges, first = Plan(tuple(map(ref, _parts(modules))), [], [], [], [], []), [], 1 + 2 * len(modules)
    for place, module in enumerate(modules):
        terms = [_term(plan, first, number, option) for number, option in _options(module)]
        edges.append(Edge(1 + place, 1 + len(modules) + place, tuple(terms), _weighs_images(module)))
    start = first + len(plan.own)
    placed = [edge._replace(terms=tuple(_placed(term, start) for term in edge.terms)) for edge in edges]
    terms = [term for edge in placed for term in edge.terms]
    images = {0, *(edge.total for edge in placed), *(term.values for term in terms if not term.halves)}
    halves = tuple(term for term in terms if term.halves)
    return plan._replace(edges=tuple(placed), terms=halves, images=frozenset(images))


def _term(plan: Plan, first: int, number: int, option: nn.Module) -> Term:
    """Notes an option in a plan; what is an other gets its slots later."""
    if isinstance(option, Separable):
        return Term(number, _halves(plan, first, option))
    if isinstance(option, nn.Identity):
        return Term(number, (), values=0)
    places = [place for place, other in enumerate(plan.others) if other() is option]
    if not places:
        plan.others.append(ref(option))
    return Term(number, (), other=places[0] if places else len(plan.others) - 1)


def _placed(term: Term, start: int) -> Term:
    if term.other < 0:
        return term
    first = start + 5 * term.other
    return term._replace(values=first, norm=tuple(range(first + 1, first + 5)))


def _halves(plan: Plan, first: int, option: Separable) -> tuple[Half, ...]:
    """Its halves, with slots from `first` on for what is noted in the plan."""
    total, made = 1, []

    def slot(module: nn.Module | None, name: str) -> int:
        holders = () if module is None else (module._parameters, module._buffers)
        for holder in holders:
            if holder.get(name) is not None:
                plan.own.append((holder, name))
                return first + len(plan.own) - 1
        return -1

    for depthwise, pointwise, norm in option.halves():
        own, conv = norm.training or norm.running_mean is None, depthwise or pointwise
        kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        total *= stride
        plan.norms.append(norm)
        plan.training.append(norm.training)
        if own:
            plan.counted.append((norm, total))
        moments = (-1, -1) if own else (slot(norm, "running_mean"), slot(norm, "running_var"))
        weights, learned = (
            (slot(depthwise, "weight"), slot(pointwise, "weight")),
            (slot(norm, "weight"), slot(norm, "bias")),
        )
        made.append(Half((kernel, stride, dilation, pointwise.out_channels), *weights, *moments, *learned, norm.eps))
    return tuple(made)


def plain_added(edges: Sequence[Edge], eps: Sequence[float], tensors: Tensors) -> list[Tensor]:
    """Operation by operation and term by term: the reference."""
    found = []
    for edge in edges:
        weights, total = cast(Tensor, tensors[edge.weights]), tensors[edge.total]
        for term in edge.terms:
            weight = weights[:, None, None, None] if edge.by_image else weights[term.option]
            product = weight * _plain_term(term, eps, tensors)
            total = product if total is None else total + product
        found.append(cast(Tensor, total))
    return found


def _plain_term(term: Term, eps: Sequence[float], tensors: Tensors) -> Tensor:
    def at(slot: int) -> Tensor | None:
        return None if slot < 0 else tensors[slot]

    if not term.halves:
        values, mean, var = cast(Tensor, at(term.values)), at(term.norm[0]), at(term.norm[1])
        if mean is None or var is None:
            return values
        return normalized(values, Norm(mean, var, at(term.norm[2]), at(term.norm[3]), eps[term.other]))
    values, norm = cast(Tensor, tensors[0]), None
    for half in term.halves:
        pair = Pair(at(half.depthwise), cast(Tensor, at(half.pointwise)), half.shape[1], half.shape[2])
        values, mean, var = plain_separable(values, norm, pair)
        used = (mean, var) if half.mean < 0 else (cast(Tensor, at(half.mean)), cast(Tensor, at(half.var)))
        norm = Norm(*used, at(half.gamma), at(half.beta), half.eps)
    return normalized(values, cast(Norm, norm))
