"""All that leaves a state of a cell, computed together: mixtures of operations on one input, added to running totals.

An edge gives sum_k w_k * norm_k(z_k), with z_k what operation k gives before its last batch norm: per channel
sum_k s_k * (z_k - mean_k) + d  with  s_k = w_k * gamma_k / sqrt(var_k + eps)  and  d = sum_k w_k * beta_k. So a mixture
(arXiv:1806.09055, eq. 2) is one pass over the values, and so is its backward: the gradient of z_k, which is s_k times
that of the sum, is never written where z_k is a separable convolution, whose backward takes the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from nasengine import launch
from nasengine.launch import Found, Norm, Pair, Term
from nasengine.mixing import Statistics, unnormed
from nasengine.separable import dense, is_fast, is_ordinary, normalized, plain_separable
from nasengine.supernet import MixedOp, Zero, decided


@runtime_checkable
class Separable(Protocol):
    """A module that is one or two halves, each a rectifier, the convolutions of a pair, and a batch norm."""

    def halves(self) -> list[tuple[Pair, nn.BatchNorm2d]]: ...


class _Half(NamedTuple):
    """Where the tensors of a half are, -1 for none; without a mean its norm takes the moments of the batch."""

    depthwise: int
    pointwise: int
    stride: int
    dilation: int
    mean: int
    var: int
    gamma: int
    beta: int
    eps: float


class _Term(NamedTuple):
    """An option of an edge: its halves, or where its values and their norm are."""

    option: int
    halves: tuple[_Half, ...] = ()
    values: int = -1
    norm: tuple[int, int, int, int] = (-1,) * 4
    eps: float = 0.0


class _Edge(NamedTuple):
    weights: int
    total: int
    terms: tuple[_Term, ...]


Tensors = Sequence[Tensor | None]
Result = tuple[Tensor, Tensor, Tensor]
"""What a half gives: values, their mean and variance."""


def states_of(given: Sequence[Tensor], edges: nn.ModuleDict, last: int) -> list[Tensor]:
    """All states of a cell up to number `last`: the given ones, then sums of what the edges "source-node" give."""
    states, totals = list(given), dict[int, Tensor]()
    for source in range(last):
        later = [node for node in range(max(source + 1, len(given)), last + 1) if f"{source}-{node}" in edges]
        modules = [edges[f"{source}-{node}"] for node in later]
        found = added(modules, states[source], [totals.get(node) for node in later])
        totals.update(zip(later, found, strict=True))
        if source + 1 >= len(given):
            states.append(totals[source + 1])
    return states


def added(modules: Sequence[nn.Module], x: Tensor, totals: Sequence[Tensor | None]) -> list[Tensor]:
    """totals[i] + modules[i](x) of all modules; None for zeros. Soft mixtures may be among the modules."""
    edges = [_options(module) for module in modules]
    if not (is_fast(x) and torch.is_grad_enabled() and all(edges)):
        return [module(x) if t is None else t + module(x) for module, t in zip(modules, totals, strict=True)]
    slots, statistics = _Slots(x), Statistics()
    norms: list[tuple[nn.BatchNorm2d, int]] = []
    plan = []
    for (weights, options), total in zip(cast(list[_Options], edges), totals, strict=True):
        terms = [_term(slots, place, option, x, statistics, norms) for place, option in options]
        if terms:
            plan.append(_Edge(slots.add(weights), slots.add(total), tuple(terms)))
    if len(plan) < len(edges) or not all(tensor is None or is_ordinary(tensor) for tensor in slots.tensors):
        return [module(x) if t is None else t + module(x) for module, t in zip(modules, totals, strict=True)]
    apply: Callable[..., tuple[Tensor, ...]] = _Added.apply
    found = apply(tuple(plan), *slots.tensors)
    moments = found[len(plan) :]
    for place, (module, stride) in enumerate(norms):
        pixels = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        statistics.add(module, moments[2 * place], moments[2 * place + 1], pixels)
    statistics.keep()
    return list(found[: len(plan)])


_Options = tuple[Tensor, list[tuple[int, nn.Module]]]


def _options(module: nn.Module) -> _Options | None:
    """The weights of a soft mixture and what they are for, or the module itself by one; None where that is not so."""
    if not isinstance(module, MixedOp):
        return _one(), [(0, module)]
    weights = decided(module.choice.label)
    if not isinstance(weights, Tensor):
        return None
    return weights, [(place, option) for place, option in enumerate(module.options) if not isinstance(option, Zero)]


@cache
def _one() -> Tensor:
    return torch.ones(1, dtype=torch.float32, device="cpu")


class _Slots:
    """Tensors by place. Values, which several edges may have in common, have one place."""

    def __init__(self, x: Tensor) -> None:
        self.tensors: list[Tensor | None] = [x]
        self._values = {id(x): 0}

    def add(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def values(self, tensor: Tensor) -> int:
        if id(tensor) not in self._values:
            self._values[id(tensor)] = self.add(tensor)
        return self._values[id(tensor)]


def _term(
    slots: _Slots,
    place: int,
    option: nn.Module,
    x: Tensor,
    statistics: Statistics,
    norms: list[tuple[nn.BatchNorm2d, int]],
) -> _Term:
    if isinstance(option, Separable):
        halves, stride = [], 1
        for pair, module in option.halves():
            stride *= pair.stride
            own = module.training or module.running_mean is None
            if own:
                norms.append((module, stride))
            moments = (None, None) if own else (module.running_mean, module.running_var)
            weights = slots.add(pair.depthwise), slots.add(pair.pointwise)
            norm = (*map(slots.add, (*moments, module.weight, module.bias)),)
            halves.append(_Half(*weights, pair.stride, pair.dilation, *norm, module.eps))
        return _Term(place, tuple(halves))
    term = unnormed(option, x, statistics)
    norm = term.norm()
    values = slots.values(term.values)
    if norm is None:
        return _Term(place, values=values)
    mean, var, gamma, beta = map(slots.add, norm[:4])
    return _Term(place, values=values, norm=(mean, var, gamma, beta), eps=norm.eps)


def _at(tensors: Tensors, slot: int) -> Tensor | None:
    return None if slot < 0 else tensors[slot]


def _pair(tensors: Tensors, half: _Half) -> Pair:
    return Pair(_at(tensors, half.depthwise), cast(Tensor, tensors[half.pointwise]), half.stride, half.dilation)


def _norm(tensors: Tensors, half: _Half, result: Result) -> Norm:
    """The norm behind a half, with its running moments or those of what the half gave."""
    mean, var, gamma, beta = (_at(tensors, slot) for slot in half[4:8])
    return Norm(result[1] if mean is None else mean, result[2] if var is None else var, gamma, beta, half.eps)


def _separable_terms(plan: Sequence[_Edge]) -> Iterator[tuple[int, _Term]]:
    """The terms with halves, each with the number of its edge."""
    return ((edge, term) for edge, (_, _, terms) in enumerate(plan) for term in terms if term.halves)


def _mixing_terms(edge: _Edge, tensors: Tensors, results: Sequence[list[Result]]) -> list[Term]:
    """The terms of an edge as the kernels take them; results are those of its terms that have halves."""
    weights, found, rest = cast(Tensor, tensors[edge.weights]), [], iter(results)
    for term in edge.terms:
        if term.halves:
            last = next(rest)[-1]
            norm: Norm | None = _norm(tensors, term.halves[-1], last)
            values = last[0]
        else:
            mean, var, gamma, beta = (_at(tensors, slot) for slot in term.norm)
            norm = None if mean is None or var is None else Norm(mean, var, gamma, beta, term.eps)
            values = cast(Tensor, tensors[term.values])
        found.append(Term(values, weights, term.option, norm).dense())
    return found


def _plain_added(plan: Sequence[_Edge], tensors: Tensors) -> list[Tensor]:
    """Operation by operation and term by term: the reference."""
    x, totals = cast(Tensor, tensors[0]), []
    for edge in plan:
        results: list[list[Result]] = []
        for term in edge.terms:
            given, norm = x, None
            found: list[Result] = []
            for half in term.halves:
                found.append(cast(Result, tuple(plain_separable(given, norm, _pair(tensors, half)))))
                given, norm = found[-1][0], _norm(tensors, half, found[-1])
            results += [found] if found else []
        total = _at(tensors, edge.total)
        for each in _mixing_terms(edge, tensors, results):
            normed = each.values if each.norm is None else normalized(each.values, each.norm)
            product = each.weights[each.option] * normed
            total = product if total is None else total + product
        totals.append(cast(Tensor, total))
    return totals


class _Added(torch.autograd.Function):
    """The compiled loops with their gradients. Gives the totals, then the moments that norms take from the batch."""

    @staticmethod
    def forward(ctx: Any, plan: tuple[_Edge, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        results = _results(plan, tensors)
        totals = []
        for edge, found in zip(plan, _by_edge(plan, results), strict=True):
            terms, total = _mixing_terms(edge, tensors, found), _at(tensors, edge.total)
            totals.append(launch.mix(terms if total is None else [Term(dense(total), _one(), 0, None), *terms]))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(tensor for found in results for result in found for tensor in result))
        moments = [
            moment
            for (_, term), found in zip(_separable_terms(plan), results, strict=True)
            for half, result in zip(term.halves, found, strict=True)
            if half.mean < 0
            for moment in result[1:]
        ]
        ctx.mark_non_differentiable(*moments)
        return *totals, *moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, needed = ctx.plan, ctx.needs_input_grad[1:]
        tensors, rest = ctx.saved_tensors[: len(needed)], iter(ctx.saved_tensors[len(needed) :])
        if torch.is_grad_enabled():
            return None, *_differentiable(plan, tensors, needed, grads)
        results = [[(next(rest), next(rest), next(rest)) for _ in t.halves] for _, t in _separable_terms(plan)]
        return None, *_Backward(plan, tensors, needed, results).run(grads)


def _results(plan: Sequence[_Edge], tensors: Tensors) -> list[list[Result]]:
    """What the halves of all terms that have any give: the first ones of all in one call."""
    terms = [term for _, term in _separable_terms(plan)]
    first = launch.forward(dense(cast(Tensor, tensors[0])), None, [_pair(tensors, t.halves[0]) for t in terms])
    results = []
    for place, term in enumerate(terms):
        found = [cast(Result, first[3 * place : 3 * place + 3])]
        for before, half in zip(term.halves, term.halves[1:], strict=False):
            norm = _norm(tensors, before, found[-1])
            found.append(cast(Result, launch.forward(found[-1][0], norm, [_pair(tensors, half)])))
        results.append(found)
    return results


def _by_edge(plan: Sequence[_Edge], results: Sequence[list[Result]]) -> Iterator[list[list[Result]]]:
    """The results of each edge."""
    rest = iter(results)
    return ([next(rest) for term in edge.terms if term.halves] for edge in plan)


def _differentiable(
    plan: Sequence[_Edge], tensors: Tensors, needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients by the plain formula, so that they can be differentiated again."""
    inputs = [tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None]
    totals = _plain_added(plan, tensors)
    used = [(total, grad) for total, grad in zip(totals, grads, strict=False) if grad is not None]
    if not used:
        return (None,) * len(needed)
    made = torch.autograd.grad(
        [total for total, _ in used], inputs, [grad for _, grad in used], create_graph=True, allow_unused=True
    )
    found = iter(made)
    return tuple(next(found) if need else None for need in needed)


class _Pending(NamedTuple):
    """The gradient of what a half gives: of its values, times a scale if there is one, of its mean and variance."""

    values: Tensor
    scale: Tensor | None
    mean: Tensor | None
    var: Tensor | None


class _Backward:
    """The gradients of all tensors, from the totals back to x."""

    def __init__(
        self, plan: Sequence[_Edge], tensors: Tensors, needed: Sequence[bool], results: Sequence[list[Result]]
    ) -> None:
        self.plan, self.tensors, self.needed, self.results = plan, tensors, needed, results
        self.found: list[Tensor | None] = [None] * len(tensors)

    def run(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        firsts: list[tuple[_Half, Result, _Pending]] = []
        for edge, results, grad in zip(self.plan, _by_edge(self.plan, self.results), grads, strict=False):
            if grad is None:
                continue
            if edge.total >= 0:
                self.found[edge.total] = grad
            separable = [term for term in edge.terms if term.halves]
            for term, result, pending in zip(separable, results, self._sum(edge, results, dense(grad)), strict=True):
                back = self._second(term.halves, result, pending) if len(term.halves) == 2 else pending
                if back is not None:
                    firsts.append((term.halves[0], result[0], back))
        self._first(firsts)
        return self.found

    def _sum(self, edge: _Edge, results: Sequence[list[Result]], grad: Tensor) -> list[_Pending]:
        """Those of the weights, and of all that is no separable convolution; of these they are pending."""
        terms, found, pending = _mixing_terms(edge, self.tensors, results), [], []
        weights = self._empty(edge.weights)
        if weights is not None:
            weights.zero_()
        for term, given in zip(edge.terms, terms, strict=True):
            if term.halves:
                half = term.halves[-1]
                scale, moments = torch.empty(given.values.shape[1]), self._moments(half, given.values.shape[1])
                learned = self._empty(half.gamma), self._empty(half.beta)
                found.append(Found(None, weights, term.option, *moments, *learned, scale))
                pending.append(_Pending(grad, scale, *moments))
            else:
                onto = self.found[term.values] is not None
                values = self.found[term.values] if onto else self._empty(term.values, torch.channels_last)
                norm = [self._empty(slot) for slot in term.norm]
                found.append(Found(values, weights, term.option, *norm, None, onto))
        launch.unmix(terms, grad, found)
        return pending

    def _second(self, halves: tuple[_Half, ...], results: list[Result], pending: _Pending) -> _Pending | None:
        """Through the second half to what the first one gave."""
        before, half = halves
        channels = results[0][0].shape[1]
        through = self._needs(0, before.depthwise, before.pointwise)
        moments = self._moments(before, channels) if through else (None, None)
        values = torch.empty_like(results[0][0]) if through else None
        found = [values, *moments, self._empty(before.gamma), self._empty(before.beta)]
        found += [self._empty(half.depthwise), self._empty(half.pointwise)]
        norm = _norm(self.tensors, before, results[0])
        self._launch(results[0][0], norm, [half], [results[1]], [pending], found)
        return None if values is None else _Pending(values, None, *moments)

    def _first(self, firsts: Sequence[tuple[_Half, Result, _Pending]]) -> None:
        """Through all first halves to x."""
        if not firsts:
            return
        halves, results, pending = (list(column) for column in zip(*firsts, strict=True))
        onto = self.found[0] is not None
        x = self.found[0] if onto else self._empty(0, torch.channels_last)
        weights = [self._empty(slot) for half in halves for slot in (half.depthwise, half.pointwise)]
        given, found = dense(cast(Tensor, self.tensors[0])), [x, *(None,) * 4, *weights]
        self._launch(given, None, halves, results, pending, found, onto)

    def _launch(
        self,
        x: Tensor,
        norm: Norm | None,
        halves: Sequence[_Half],
        results: Sequence[Result],
        pending: Sequence[_Pending],
        found: Sequence[Tensor | None],
        onto: bool = False,
    ) -> None:
        if all(tensor is None for tensor in found):
            return
        grads = [tensor for each in pending for tensor in (each.values, each.mean, each.var)]
        outputs, scales = [tensor for result in results for tensor in result], [each.scale for each in pending]
        pairs = [_pair(self.tensors, half) for half in halves]
        launch.backward(x, norm, pairs, outputs, grads, scales, found, onto)

    def _needs(self, *slots: int) -> bool:
        return any(slot >= 0 and self.needed[slot] for slot in slots)

    def _empty(self, slot: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor | None:
        """Memory for the gradient at a slot, if it is needed."""
        if not self._needs(slot):
            return None
        made = torch.empty(cast(Tensor, self.tensors[slot]).shape, memory_format=layout)
        self.found[slot] = made
        return made

    def _moments(self, half: _Half, channels: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Memory for the gradients of the moments that a norm takes from the batch."""
        if half.mean >= 0:
            return None, None
        mean, var = torch.empty((2, channels)).unbind()
        return mean, var
