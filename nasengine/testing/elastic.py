"""The laws of shared weights: what an architecture takes of them, what it leaves alone, how their units can move.

Most have an effect in elastic spaces only; that weights outside an architecture are untouched holds for all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nasengine import cost, units
from nasengine.architecture import Architecture
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Gates, Supernet
from nasengine.task import Batch, Shapes
from nasengine.testing._parts import (
    random_alphas,
    random_batch,
    random_mixture,
    random_supernet,
    require,
    require_close,
    samples,
    varied,
)

_TAG = 2.0**30  # of the first weight: products and sums of tags are never tags


# What an architecture takes


def check_slices(space: Space, shapes: Shapes) -> None:
    """A hard pass has the gradients and statistics of the extracted network; the other weights have no part in it."""
    batch = random_batch(shapes, 4, generator(1))
    for architecture in varied(space, shapes, 1):
        supernet = random_supernet(space, shapes, 0)
        supernet(batch.inputs, random_mixture(supernet, 0))
        _check_gradients(supernet, architecture, batch)
        _check_untouched(supernet, architecture, batch)


def _check_gradients(supernet: Supernet, architecture: Architecture, batch: Batch) -> None:
    """<gradient, d> of the shared weights is <gradient, what becomes of d> of the extracted ones, at a random d."""
    rng, extracted = generator(0, 4), supernet.extract(architecture)
    towards = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in supernet.parameters()]
    step = 1e-4  # the kernels of a chain are products of a few weights: a central difference is exact to step**2
    ahead, behind = (_extracted(supernet, architecture, towards, sign * step) for sign in (1, -1))
    moved = [(one - other) / (2 * step) for one, other in zip(ahead, behind, strict=True)]
    loss = supernet.evaluate(batch, supernet.hard(architecture)).loss
    shared = _along(loss, list(supernet.parameters()), towards)
    alone = _along(supernet.loss(extracted(batch.inputs), batch.targets), list(extracted.parameters()), moved)
    require_close(shared, alone, "a hard pass must give the gradients of the extracted network", 1e-6)
    for kept, own in zip(supernet.extract(architecture).buffers(), extracted.buffers(), strict=True):
        require_close(kept.double(), own.double(), "a hard pass must give the statistics of the extracted network")


def _along(loss: Tensor, weights: list[nn.Parameter], towards: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    return torch.stack([(g * d).sum() for g, d in zip(gradients, towards, strict=True)]).sum()


def _extracted(supernet: Supernet, architecture: Architecture, towards: list[Tensor], step: float) -> list[Tensor]:
    """The parameters of the extracted network after a step of the shared ones."""
    with _restored(supernet):
        for parameter, direction in zip(supernet.parameters(), towards, strict=True):
            parameter.add_(direction, alpha=step)
        return [parameter.detach() for parameter in supernet.extract(architecture).parameters()]


@contextmanager
def _restored(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Its weights and statistics by name, to change: they come back."""
    tensors = _state(network)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        yield tensors
        for name, tensor in tensors.items():
            tensor.copy_(before[name])


def _check_untouched(supernet: Supernet, architecture: Architecture, batch: Batch) -> None:
    """All weights and statistics outside an architecture can be NaN: nothing reads them, and their gradient is zero."""
    outside, poisoned = _outside(supernet, architecture), copy.deepcopy(supernet)
    with torch.no_grad():
        for name, tensor in _state(poisoned).items():
            tensor[outside[name]] = torch.nan
    for training in (False, True):
        found = []
        for network in (supernet.train(training), poisoned.train(training)):
            loss = network.evaluate(batch, network.hard(architecture)).loss
            gradients = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
            found.append([loss.detach(), *gradients])
        law = "weights outside an architecture must have no part in its hard pass"
        for one, other in zip(*found, strict=True):
            require_close(other, one, law)
        for (name, _), gradient in zip(poisoned.named_parameters(), found[1][1:], strict=True):
            require(not gradient[outside[name]].any(), f"{law}, but {name} has a gradient there")
        for name, tensor in _state(poisoned).items():
            require(bool(tensor[outside[name]].isnan().all()), f"{law}, but it changed {name} there")


def _state(network: nn.Module) -> dict[str, Tensor]:
    found = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _outside(supernet: Supernet, architecture: Architecture) -> dict[str, Tensor]:
    """By name of a weight: which of its entries the extracted network does not have.

    Every entry is tagged by a number of its own, which a slice keeps. A tensor without a tag in the extracted network
    may have been made into another one, as larger kernels are: then it counts as inside.
    """
    start = _TAG
    with _restored(supernet) as tensors:
        for tensor in tensors.values():
            tensor.copy_(start + torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape))
            start += tensor.numel()
        tags = torch.cat([tensor.flatten() for tensor in _state(supernet.extract(architecture)).values()])
        outside = {name: ~torch.isin(tensor, tags) for name, tensor in tensors.items()}
    missing = [name for name, entries in outside.items() if entries.all()]
    for name in set(missing) - set(_unread(supernet, architecture, missing)):
        outside[name] = torch.zeros_like(outside[name])
    return outside


def _unread(supernet: Supernet, architecture: Architecture, names: list[str]) -> list[str]:
    """Those tensors of which nothing gets into the extracted network, by halving."""
    with _restored(supernet) as tensors:
        for name in names:
            tensors[name].fill_(torch.nan)
        found = _state(supernet.extract(architecture))
    if not any(tensor.isnan().any() for tensor in found.values()):
        return names
    middle = len(names) // 2
    halves = (names[:middle], names[middle:]) if middle else ()
    return [name for half in halves for name in _unread(supernet, architecture, half)]


def check_idle(space: Space, shapes: Shapes) -> None:
    """The choices that are idle in an architecture, or in modules that it leaves out, have no effect there."""
    supernet, inputs = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1)).inputs
    for architecture in varied(space, shapes, 3):
        idle = space.unused(supernet.choices, architecture)
        other = Architecture({**architecture, **{label: supernet.choices[label].options[-1] for label in idle}})
        one, two = (supernet(inputs, supernet.hard(a)) for a in (architecture, other))
        require_close(one, two, f"idle choices must have no effect, but of {', '.join(idle)} some has one")


def check_order(space: Space, shapes: Shapes) -> None:
    """The options of ordinal choices are in the order of their cost in parameters, or else in multiply-adds."""
    choices = space.choices(shapes)
    rising = {label: torch.arange(float(len(choice.options))) for label, choice in choices.items()}
    ordinal = [label for label, choice in choices.items() if choice.ordinal]
    most = _meta(space, shapes, space.derive(choices, rising)) if ordinal else nn.Identity()
    for label in ordinal:
        less = _meta(space, shapes, space.derive(choices, {**rising, label: -rising[label]}))
        first, last = cost.parameters(less), cost.parameters(most)
        if first == last:
            first, last = (cost.multiply_adds(lambda n=n: n, shapes) for n in (less, most))  # type: ignore[misc]
        law = f"the options of {label!r} must be in rising order, but the first costs {first:,} and the last {last:,}"
        require(first <= last, law)


def _meta(space: Space, shapes: Shapes, architecture: Architecture) -> nn.Module:
    with torch.device("meta"):
        return space.build(architecture, shapes)


def check_second_order(space: Space, shapes: Shapes) -> None:
    """The gradient by the alphas of <gradient by the weights, v> is its central difference, as order=exact needs."""
    supernet, batch = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1))
    alphas, rng = random_alphas(supernet, 0), generator(0, 4)
    weights = dict(supernet.named_parameters())
    towards = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in weights.values()]
    length = torch.stack([d.square().sum() for d in towards]).sum().sqrt()
    towards = [d / length for d in towards]

    loss = supernet.evaluate(batch, alphas.mixture("softmax"), weights).loss
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    slope = torch.stack([(g * d).sum() for g, d in zip(slopes, towards, strict=True)]).sum()
    try:
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(slope, list(alphas.parameters()))])
    except RuntimeError as error:
        raise AssertionError(f"A supernet must be differentiable twice, but torch says: {error}") from error

    step, found = 1e-6, []
    for sign in (1, -1):
        shifted = {n: w.detach() + sign * step * d for (n, w), d in zip(weights.items(), towards, strict=True)}
        loss = supernet.evaluate(batch, alphas.mixture("softmax"), shifted).loss
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(alphas.parameters()))]))
    law = "the supernet must have the second derivatives of its differences"
    require_close(exact, (found[0] - found[1]) / (2 * step), law, tolerance=1e-3, least=1e-4)


# How units can move


def check_sorting(space: Space, shapes: Shapes) -> None:
    """The full network computes the same after its units change places at random."""
    supernet, inputs = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1)).inputs
    rng, sizes = generator(0, 5), units.sortable(supernet)
    if not sizes:
        return
    supernet(inputs, random_mixture(supernet, 0))
    full, moved = supernet.hard(space.largest(supernet.choices)), copy.deepcopy(supernet)
    units.permute(moved, {size: torch.randperm(size.largest, generator=rng) for size in sizes})
    for training in (False, True):
        before, after = (network.train(training)(inputs, full) for network in (supernet, moved))
        require_close(after, before, "units that change places must not change the full network")


def check_gates(space: Space, shapes: Shapes) -> None:
    """Gates of one are the full network; gates of zero are the smaller one that is sorted, folded and cut out."""
    supernet, inputs = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1)).inputs
    largest, sizes = space.largest(supernet.choices), units.gateable(supernet)
    if not sizes:
        return
    supernet(inputs, random_mixture(supernet, 0))
    full = supernet.hard(largest)
    ones = {label: Gates(torch.ones(size.largest, dtype=torch.float64)) for label, size in sizes.items()}
    for training in (False, True):
        expected = supernet.train(training)(inputs, full)
        require_close(supernet(inputs, {**full, **ones}), expected, "gates of one must be the full network")
    for architecture in samples(space, shapes, 2):
        kept = Architecture({**largest, **{label: architecture[label] for label in sizes}})
        _check_removal(supernet, kept, full, inputs)


def _check_removal(supernet: Supernet, kept: Architecture, full: dict[str, int], inputs: Tensor) -> None:
    rng, sizes = generator(0, 6), units.gateable(supernet)
    gates, orders, folded = {}, {}, {}
    for label, size in sizes.items():
        values = 0.5 + torch.rand(size.largest, generator=rng, dtype=torch.float64)
        values *= torch.randint(2, (size.largest,), generator=rng) * 2 - 1
        values[torch.randperm(size.largest, generator=rng)[size.of(kept) :]] = 0
        gates[label], orders[size] = Gates(values), units.order_by(values.abs())
        folded[size] = values[orders[size]]
    twin = copy.deepcopy(supernet)
    units.permute(twin, orders)
    units.fold(twin, folded)
    for training in (False, True):
        masked = supernet.train(training)(inputs, {**full, **gates})
        cut = twin.train(training).extract(kept)(inputs)
        require_close(cut, masked, "the network cut by its gates must equal the gated one")
