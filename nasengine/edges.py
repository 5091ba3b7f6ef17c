"""All that leaves a state of a cell, computed together: mixtures of operations on one input, added to running totals.

An edge gives sum_k w_k * norm_k(z_k), with z_k what operation k gives before its last batch norm: per channel
sum_k s_k * (z_k - mean_k) + d  with  s_k = w_k * gamma_k / sqrt(var_k + eps)  and  d = sum_k w_k * beta_k. So a mixture
(arXiv:1806.09055, eq. 2) is one pass over the values, and so is its backward: the gradient of z_k, which is s_k times
that of the sum, is never written where z_k is a separable convolution, whose backward takes the factor.

A `Plan`, made once for some modules, numbers all tensors that their sums need; a number is called a slot. With a list
of tensors in that order `nasengine.adding` runs the kernels. `together` asks before whether the modules still are those
of the plan, and whether the shapes go together; where not, the modules run by themselves. `plain_added` is the formula.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeGuard, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from nasengine.launch import Shape
from nasengine.mixing import Half, Separable, Statistics, WeighsImages, is_hooked, unnormed
from nasengine.separable import Norm, Pair, is_fast, normalized, plain_separable
from nasengine.supernet import MixedOp, Shared, Zero, decided, in_call


class HalfSlots(NamedTuple):
    """A half of a separable module by the slots of its tensors, -1 for none.

    Its norm takes the moments of the batch where there is no slot of a mean.
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
    halves: tuple[HalfSlots, ...]
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

    Attributes:
        modules: for which it holds; weak, since one is the key of the plan, and else would never be forgotten.
        inside: the options of these, and the children of what has halves: all as they were when it was made.
        called: whether it holds in a call of a supernet, where what is shared is one option for all edges.
        norms: batch norms of halves.
        modes: of these, as `_mode` has them.
        counted: those that take the moments of the batch, each with the stride up to it.
        own: dictionaries and keys, where the modules' own tensors are.
        shapes: of these.
        inputs: the channels of x for which it holds.
        others: options without halves, which run by themselves up to their last norm.
        edges: in the order of the modules.
        terms: those of all edges that have halves, in their order.
        images: the slots of tensors (B, C, H, W), which the kernels read in channels-last.
    """

    modules: tuple[ref[nn.Module], ...]
    inside: list[nn.Module]
    called: bool
    norms: list[nn.BatchNorm2d]
    modes: list[tuple[bool, float, bool]]
    counted: list[tuple[nn.BatchNorm2d, int]]
    own: list[tuple[dict[str, Any], str]]
    shapes: list[torch.Size]
    inputs: set[int]
    others: list[ref[nn.Module]]
    edges: tuple[Edge, ...] = ()
    terms: tuple[Term, ...] = ()
    images: frozenset[int] = frozenset()


_plans: WeakKeyDictionary[nn.Module, list[Plan]] = WeakKeyDictionary()
Tensors = Sequence[Tensor | None]


def added(modules: Sequence[nn.Module], x: Tensor, totals: Tensors) -> list[Tensor]:
    """totals[i] + modules[i](x) for every i; a total may be None, which is zero.

    Args:
        modules: mixtures, under the weights of the current call of the supernet, or any others.
        x: (B, C, H, W).
        totals: of the shapes that the modules give.
    """
    found = together(modules, x, totals)
    if found is not None:
        return found
    outputs = [module(x) for module in modules]
    return [each if total is None else total + each for each, total in zip(outputs, totals, strict=True)]


def together(modules: Sequence[nn.Module], x: Tensor, totals: Tensors) -> list[Tensor] | None:
    """`added` in compiled loops; None where the modules must run themselves, and say what is wrong if anything is."""
    if not torch.is_grad_enabled() or not is_fast(x):
        return None
    weights = [_weights(module) for module in modules]
    plan = None if any(weight is None for weight in weights) else _plan_of(modules)
    if plan is None:
        return None
    tensors = [x, *weights, *totals, *(holder.get(key) for holder, key in plan.own)]
    if not (_ordinary(tensors) and _fits(plan, tensors)):
        return None
    statistics, eps = Statistics(), list[float]()
    for option in plan.others:
        term = unnormed(cast(nn.Module, option()), x, statistics)
        norm = term.norm()
        tensors += (term.values, *((None,) * 4 if norm is None else norm[:4]))
        eps.append(0.0 if norm is None else norm.eps)
    if not _agree(plan, tensors):
        return None
    for edge, module in zip(plan.edges, modules, strict=True):
        if weighs_images(module):  # drawn at last: a module that runs itself draws its own
            drawn = cast(WeighsImages, module[1]).weights(x)
            tensors[edge.weights] = torch.ones(len(x)) if drawn is None else drawn
    if not _ordinary(tensors):
        return _one_by_one(plan, modules, tuple(eps), tensors, statistics)
    return _together(plan, tuple(eps), tensors, statistics)


def _together(plan: Plan, eps: tuple[float, ...], tensors: list[Tensor | None], statistics: Statistics) -> list[Tensor]:
    from nasengine.adding import Added

    found, count = Added.apply(plan, eps, *tensors), len(plan.edges)  # type: ignore[no-untyped-call]
    images, _, height, width = cast(Tensor, tensors[0]).shape
    for (module, stride), moments in zip(plan.counted, found[count:], strict=True):
        mean, var = moments.unbind()
        statistics.add(module, mean, var, images * -(-height // stride) * -(-width // stride))
    statistics.keep()
    return list(found[:count])


def _one_by_one(
    plan: Plan, modules: Sequence[nn.Module], eps: tuple[float, ...], tensors: Tensors, statistics: Statistics
) -> list[Tensor]:
    """The same by the modules, but those that have given their values already: a second run would leave a trace."""
    statistics.keep()
    x, found = cast(Tensor, tensors[0]), []
    for edge, module in zip(plan.edges, modules, strict=True):
        weights, total = cast(Tensor, tensors[edge.weights]), tensors[edge.total]
        for term in edge.terms:
            option = module.options[term.option] if _is_mixture(module) else _inner(module)
            values = option(x) if term.other < 0 else _plain_term(term, eps, tensors)
            product = _weight(edge, term, weights) * values
            total = product if total is None else total + product
        found.append(cast(Tensor, total))
    return found


def _is_mixture(module: nn.Module) -> TypeGuard[MixedOp]:
    """Whether it is a sum of its options; a subclass may give something else."""
    return isinstance(module, MixedOp) and type(module).forward is MixedOp.forward


def weighs_images(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it is a module followed by one that weighs its images."""
    plain = type(module) is nn.Sequential and len(module) == 2
    return plain and isinstance(cast(nn.Sequential, module)[1], WeighsImages)


def _inner(module: nn.Module) -> nn.Module:
    """The module whose images are weighed, or the module itself."""
    return module[0] if weighs_images(module) else module


def _weights(module: nn.Module) -> Tensor | None:
    """Those of a soft mixture; one for a module itself; None for what is no sum of options."""
    if not _is_mixture(module):
        return one()
    weights = decided(module.choice.label)
    if not isinstance(weights, Tensor) or weights.shape != (len(module.options),):
        return None
    return weights.contiguous()


@cache
def one() -> Tensor:
    """The weight of what is not weighted, shape (1,)."""
    return torch.ones(1, dtype=torch.float32, device="cpu")


def _ordinary(tensors: Tensors) -> bool:
    """Whether all are float32 in main memory, and none stands for a tensor."""
    there = [tensor for tensor in tensors if tensor is not None]
    kinds, types = {type(tensor) for tensor in there}, {tensor.dtype for tensor in there}
    return kinds <= {Tensor, nn.Parameter} and types == {torch.float32} and all(tensor.is_cpu for tensor in there)


def _fits(plan: Plan, tensors: Tensors) -> bool:
    """Whether x has the channels that the modules take, and their tensors have the shapes that they say."""
    own = tensors[1 + 2 * len(plan.edges) :]
    same = all(each is not None and each.shape == shape for each, shape in zip(own, plan.shapes, strict=True))
    return same and plan.inputs <= {cast(Tensor, tensors[0]).shape[1]}


def _agree(plan: Plan, tensors: Tensors) -> bool:
    """Whether all terms of an edge, and the total before, have one shape."""
    images, _, height, width = cast(Tensor, tensors[0]).shape
    for edge in plan.edges:
        total, shapes = tensors[edge.total], set[tuple[int, ...]]()
        if total is not None:
            shapes.add(total.shape)
        for term in edge.terms:
            if term.halves:
                stride = prod(half.shape[1] for half in term.halves)
                shapes.add((images, term.halves[-1].shape[3], -(-height // stride), -(-width // stride)))
            else:
                values, norm = cast(Tensor, tensors[term.values]), [tensors[slot] for slot in term.norm if slot >= 0]
                shapes.add(values.shape)
                if any(each is not None and each.shape != values.shape[1:2] for each in norm):
                    return False
        if len(shapes) != 1 or len(next(iter(shapes))) != 4:
            return False
    return True


def _plan_of(modules: Sequence[nn.Module]) -> Plan | None:
    """The plan for these modules, made once; None where there is none."""
    options = _options(modules)
    if any(map(is_hooked, modules)) or any(map(is_hooked, options)):
        return None
    known, inside, called = _plans.setdefault(modules[0], []), _inside(modules, options), in_call()
    for plan in known:
        same = plan.called == called and len(plan.modules) == len(modules) and len(plan.inside) == len(inside)
        same = same and all(held() is module for held, module in zip(plan.modules, modules, strict=True))
        if same and all(map(operator.is_, plan.inside, inside)) and list(map(_mode, plan.norms)) == plan.modes:
            return plan
    made = _made_plan(modules)
    if made is not None:
        known.append(made)
    return made


def _options(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those of mixtures, and the two parts of what weighs images."""
    pairs = [module for module in modules if weighs_images(module)]
    mixtures = [module for module in modules if _is_mixture(module)]
    return [*(option for module in mixtures for option in module.options), *(part for pair in pairs for part in pair)]


def _inside(modules: Sequence[nn.Module], options: Sequence[nn.Module]) -> list[nn.Module]:
    """The options, and the children of all that may have halves."""
    separable = [module for module in (*modules, *options) if isinstance(module, Separable)]
    return [*options, *(child for module in separable for child in module._modules.values() if child is not None)]


def _mode(norm: nn.BatchNorm2d) -> tuple[bool, float, bool]:
    """What a plan takes from a batch norm, besides tensors."""
    return norm.training, norm.eps, norm._buffers.get("running_mean") is None


def _made_plan(modules: Sequence[nn.Module]) -> Plan | None:
    held = tuple(ref(module) for module in modules)
    plan = Plan(held, _inside(modules, _options(modules)), in_call(), [], [], [], [], [], set(), [])
    edges, first = [], 1 + 2 * len(modules)
    for place, module in enumerate(modules):
        options = enumerate(module.options) if _is_mixture(module) else [(0, _inner(module))]
        terms = [_term(plan, first, number, option) for number, option in options if not isinstance(option, Zero)]
        if not terms or (isinstance(_inner(module), Separable) and not terms[0].halves):
            return None
        edges.append(Edge(1 + place, 1 + len(modules) + place, tuple(terms), weighs_images(module)))
    start = first + len(plan.own)
    placed = [edge._replace(terms=tuple(_placed(term, start) for term in edge.terms)) for edge in edges]
    terms = [term for edge in placed for term in edge.terms]
    images = {0, *(edge.total for edge in placed), *(term.values for term in terms if not term.halves)}
    halves = tuple(term for term in terms if term.halves)
    return plan._replace(edges=tuple(placed), terms=halves, images=frozenset(images))


def _term(plan: Plan, first: int, number: int, option: nn.Module) -> Term:
    """Notes an option in a plan; what is an other gets its slots later."""
    if isinstance(option, Separable) and (parts := option.halves()):
        return Term(number, _halves(plan, first, parts))
    if type(option) is nn.Identity:
        return Term(number, (), values=0)
    # what is not shared runs once an edge: it may draw random numbers, or keep statistics
    places = [place for place, other in enumerate(plan.others) if other() is option and isinstance(option, Shared)]
    if not places or not plan.called:
        plan.others.append(ref(option))
        return Term(number, (), other=len(plan.others) - 1)
    return Term(number, (), other=places[0])


def _placed(term: Term, start: int) -> Term:
    if term.other < 0:
        return term
    first = start + 5 * term.other
    return term._replace(values=first, norm=tuple(range(first + 1, first + 5)))


def _halves(plan: Plan, first: int, parts: Sequence[Half]) -> tuple[HalfSlots, ...]:
    """The halves of an option, with slots from `first` on for what is noted in the plan."""
    total, made = 1, []

    def slot(module: nn.Module | None, name: str) -> int:
        holders = () if module is None else (module._parameters, module._buffers)
        for holder in holders:
            if holder.get(name) is not None:
                plan.own.append((holder, name))
                plan.shapes.append(cast(Tensor, holder[name]).shape)
                return first + len(plan.own) - 1
        return -1

    plan.inputs.add(parts[0].pointwise.in_channels)
    for depthwise, pointwise, norm in parts:
        own, conv = norm.training or norm.running_mean is None, depthwise or pointwise
        kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        total *= stride
        plan.norms.append(norm)
        plan.modes.append(_mode(norm))
        if own:
            plan.counted.append((norm, total))
        moments = (-1, -1) if own else (slot(norm, "running_mean"), slot(norm, "running_var"))
        weights, learned = (
            (slot(depthwise, "weight"), slot(pointwise, "weight")),
            (slot(norm, "weight"), slot(norm, "bias")),
        )
        made.append(
            HalfSlots((kernel, stride, dilation, pointwise.out_channels), *weights, *moments, *learned, norm.eps)
        )
    return tuple(made)


def plain_added(edges: Sequence[Edge], eps: Sequence[float], tensors: Tensors) -> list[Tensor]:
    """Operation by operation and term by term: the reference."""
    found = []
    for edge in edges:
        weights, total = cast(Tensor, tensors[edge.weights]), tensors[edge.total]
        for term in edge.terms:
            product = _weight(edge, term, weights) * _plain_term(term, eps, tensors)
            total = product if total is None else total + product
        found.append(cast(Tensor, total))
    return found


def _weight(edge: Edge, term: Term, weights: Tensor) -> Tensor:
    return weights[:, None, None, None] if edge.by_image else weights[term.option]


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
