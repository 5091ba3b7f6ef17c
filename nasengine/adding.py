"""The compiled loops of `nasengine.edges`, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from nasengine.edges import Edge, HalfSlots, Plan, Tensors, Term, one, plain_added
from nasengine.launch import NO_NORM, bits, run_pairs, run_terms
from nasengine.launch import Norm as NormTable
from nasengine.separable import dense, fresh, graph_of_gradients, halves

Result = tuple[Tensor, Tensor]
"""What a half gives: values (N, C, H, W), their mean and variance (2, C)."""


class Added(torch.autograd.Function):
    """Gives the totals, then the moments (2, C) that norms take from the batch."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, eps: tuple[float, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        held = _Held(plan, tensors)
        results = _results(plan, held)
        totals = [
            _total(edge, held, eps, found) for edge, found in zip(plan.edges, _by_edge(plan, results), strict=True)
        ]
        ctx.plan, ctx.eps = plan, eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(tensor for found in results for result in found for tensor in result))
        moments = [
            result[1]
            for term, found in zip(plan.terms, results, strict=True)
            for half, result in zip(term.halves, found, strict=True)
            if half.mean < 0
        ]
        ctx.mark_non_differentiable(*moments)
        return *totals, *moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, needed = ctx.plan, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors
        tensors, rest = saved[: len(needed)], iter(saved[len(needed) :])
        if torch.is_grad_enabled():
            return None, None, *_differentiable(plan.edges, ctx.eps, tensors, needed, grads)
        results = [[(next(rest), next(rest)) for _ in term.halves] for term in plan.terms]
        return None, None, *_Gradients(_Held(plan, tensors), needed).through(plan, ctx.eps, results, grads)


class _Held:
    """Tensors as the kernels read them: images in channels-last, all others contiguous.

    Attributes:
        at: their addresses, 0 for None, and a last one that is 0, for slot -1.
    """

    def __init__(self, plan: Plan, tensors: Tensors) -> None:
        self.tensors = [
            None if tensor is None else dense(tensor) if slot in plan.images else tensor.contiguous()
            for slot, tensor in enumerate(tensors)
        ]
        self.at = [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors]
        self.at.append(0)

    def norm(self, half: HalfSlots, moments: Tensor) -> NormTable:
        """That behind a half, with its running moments or with those of what the half gave."""
        mean = moments.data_ptr() if half.mean < 0 else self.at[half.mean]
        var = mean + 2 * moments.numel() if half.mean < 0 else self.at[half.var]
        return bits(half.eps), mean, var, self.at[half.gamma], self.at[half.beta]

    def row(self, edge: Edge, term: Term, eps: Sequence[float], results: Sequence[Result]) -> tuple[int, ...]:
        """What a kernel reads of a term: values, weight and its step, mean, variance, learned scale and shift, eps."""
        weights = self.at[edge.weights] + 4 * term.option, 4 * edge.by_image
        if term.halves:
            values, moments = results[-1]
            eps_bits, *norm = self.norm(term.halves[-1], moments)
            return values.data_ptr(), *weights, *norm, eps_bits
        norm = [self.at[slot] for slot in term.norm]
        return self.at[term.values], *weights, *norm, bits(eps[term.other]) if term.other >= 0 else 0

    def weights(self, half: HalfSlots) -> tuple[int, int]:
        """Of the depthwise and of the 1x1 convolution."""
        return self.at[half.depthwise], self.at[half.pointwise]


def _results(plan: Plan, held: _Held) -> list[list[Result]]:
    """What the halves of all terms that have any give: the first ones of all in one call."""
    firsts = [term.halves[0] for term in plan.terms]
    weights = [address for half in firsts for address in held.weights(half)]
    given = cast(Tensor, held.tensors[0])
    results = [[result] for result in halves(given, NO_NORM, tuple(half.shape for half in firsts), weights)]
    for term, found in zip(plan.terms, results, strict=True):
        for before, half in pairwise(term.halves):
            values, moments = found[-1]
            found += halves(values, held.norm(before, moments), (half.shape,), held.weights(half))
    return results


def _by_edge(plan: Plan, results: Sequence[list[Result]]) -> Iterator[list[list[Result]]]:
    """The results of the terms of each edge; none of an other."""
    rest = iter(results)
    return ([next(rest) if term.halves else [] for term in edge.terms] for edge in plan.edges)


def _total(edge: Edge, held: _Held, eps: Sequence[float], results: Sequence[list[Result]]) -> Tensor:
    """The sum of all terms of an edge, and of the total before."""
    rows = [held.row(edge, term, eps, found) for term, found in zip(edge.terms, results, strict=True)]
    if held.tensors[edge.total] is not None:
        rows.insert(0, (held.at[edge.total], one().data_ptr(), 0, 0, 0, 0, 0, 0))
    first = results[0][-1][0] if results[0] else cast(Tensor, held.tensors[edge.terms[0].values])
    total = torch.empty_like(first)
    run_terms("mixing_forward", total, total.data_ptr(), [row + (0,) * 8 for row in rows])
    return total


_Back = tuple[int, int, int, int, int]
"""Addresses of the gradient of what a half gives, of its mean and variance, and for the first of a scale and of weights
of images, or 0."""


class _Gradients:
    """The gradients of all tensors, from the totals back to x.

    Attributes:
        needed: by slot; the last is for slot -1.
        found: by slot.
        begun: slots whose gradients hold something already, to which more is added.
    """

    def __init__(self, held: _Held, needed: Sequence[bool]) -> None:
        self.held = held
        self.needed = (*needed, False)
        self.found: list[Tensor | None] = [None] * len(needed)
        self.begun: set[int] = set()
        self.kept: list[Tensor] = []  # lives as long as kernels read it

    def through(
        self, plan: Plan, eps: Sequence[float], results: Sequence[list[Result]], grads: Tensors
    ) -> list[Tensor | None]:
        """All of them, given those of the totals."""
        firsts: list[tuple[HalfSlots, Result, _Back]] = []
        for edge, found, grad in zip(plan.edges, _by_edge(plan, results), grads, strict=False):
            if grad is None:
                continue
            if self.needed[edge.total]:
                self.found[edge.total] = grad
            self.kept.append(dense(grad))
            backs = self._sum(edge, eps, found, self.kept[-1])
            for term, result, back in zip(edge.terms, found, backs, strict=True):
                if len(term.halves) == 2:
                    back = self._second(term.halves, result, back)
                if term.halves and back is not None:
                    firsts.append((term.halves[0], result[0], back))
        self._first(firsts)
        return self.found

    def _sum(
        self, edge: Edge, eps: Sequence[float], results: Sequence[list[Result]], grad: Tensor
    ) -> list[_Back | None]:
        """Those of the weights, and of the values of others; what halves get is not written but told."""
        weights = self._at(edge.weights)
        of_images = self.held.at[edge.weights] if edge.by_image else 0
        if weights:
            cast(Tensor, self.found[edge.weights]).zero_()
        rows, backs = list[tuple[int, ...]](), list[_Back | None]()
        for term, result in zip(edge.terms, results, strict=True):
            weight = weights and weights + 4 * term.option
            row = self.held.row(edge, term, eps, result)
            if term.halves:
                last, channels = term.halves[-1], grad.shape[1]
                scale, mean, var = self._vectors(3, channels)
                moments = (mean, var) if last.mean < 0 else (0, 0)
                backs.append((grad.data_ptr(), *moments, scale, of_images))
                rows.append((*row, 0, weight, *moments, self._at(last.gamma), self._at(last.beta), scale, 0))
            else:
                onto = term.values in self.begun
                self.begun.add(term.values)
                values = self._at(term.values, torch.channels_last)
                rows.append((*row, values, weight, *map(self._at, term.norm), 0, onto))
                backs.append(None)
        run_terms("mixing_backward", grad, grad.data_ptr(), rows)
        return backs

    def _second(self, halves: tuple[HalfSlots, ...], results: list[Result], back: _Back | None) -> _Back | None:
        """Through the second half to what the first one gave; None if nothing is needed there."""
        (before, half), (values, moments) = halves, results[0]
        through = self.needed[0] or self.needed[before.depthwise] or self.needed[before.pointwise]
        grad, mean, var = 0, 0, 0
        if through:
            self.kept.append(torch.empty_like(values))
            grad = self.kept[-1].data_ptr()
            if before.mean < 0:
                mean, var = self._vectors(2, values.shape[1])
        found = (grad, mean, var, self._at(before.gamma), self._at(before.beta))
        self._run(values, self.held.norm(before, moments), [(half, results[1], cast(_Back, back))], found)
        return (grad, mean, var, 0, 0) if through else None

    def _first(self, firsts: Sequence[tuple[HalfSlots, Result, _Back]]) -> None:
        """Through all first halves to x."""
        if firsts:
            onto, x = 0 in self.begun, cast(Tensor, self.held.tensors[0])
            self._run(x, NO_NORM, firsts, (self._at(0, torch.channels_last), 0, 0, 0, 0), onto)

    def _run(
        self,
        x: Tensor,
        norm: NormTable,
        pairs: Sequence[tuple[HalfSlots, Result, _Back]],
        found: NormTable,
        onto: bool = False,
    ) -> None:
        rows, any_weights = [], False
        for half, (values, moments), (grad, grad_mean, grad_var, *factors) in pairs:
            mean, weights = moments.data_ptr(), (self._at(half.depthwise), self._at(half.pointwise))
            given = (values.data_ptr(), mean, mean + 2 * moments.numel(), grad, grad_mean, grad_var)
            rows.append((*self.held.weights(half), *given, *weights, *factors))
            any_weights = any_weights or any(weights)
        if any_weights or any(found):
            run_pairs(True, x, norm, tuple(half.shape for half, _, _ in pairs), rows, found, onto)

    def _at(self, slot: int, layout: torch.memory_format = torch.contiguous_format) -> int:
        """The address of memory for the gradient at a slot, 0 if it is not needed."""
        if not self.needed[slot]:
            return 0
        made = self.found[slot]
        if made is None:
            made = torch.empty(cast(Tensor, self.held.tensors[slot]).shape, memory_format=layout)
            self.found[slot] = made
        return made.data_ptr()

    def _vectors(self, count: int, channels: int) -> tuple[int, ...]:
        """Addresses of so many vectors (channels,)."""
        self.kept.append(torch.empty((count, channels)))
        first = self.kept[-1].data_ptr()
        return tuple(range(first, first + 4 * channels * count, 4 * channels))


def _differentiable(
    edges: Sequence[Edge], eps: Sequence[float], tensors: Tensors, needed: Sequence[bool], grads: Tensors
) -> list[Tensor | None]:
    """The gradients by the formula, so that they can be differentiated again."""
    views = fresh(tensors)
    return graph_of_gradients(plain_added(edges, eps, views), grads, views, needed)
