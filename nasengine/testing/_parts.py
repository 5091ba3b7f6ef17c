"""What the contract tests are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from nasengine.alphas import Alphas, detached
from nasengine.architecture import Architecture
from nasengine.operations import DropPath
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes


def require(holds: bool, law: str) -> None:
    """Raises AssertionError with the law as a sentence if it does not hold."""
    if not holds:
        raise AssertionError(f"{law[0].upper()}{law[1:]}.")


def require_close(actual: Tensor, expected: Tensor, law: str, tolerance: float = 1e-9, least: float = 1.0) -> None:
    """Requires equal shapes, and a largest difference of `tolerance` * max(`least`, largest |expected|)."""
    require(actual.shape == expected.shape, f"{law}, but the shapes are {tuple(actual.shape)}, {tuple(expected.shape)}")
    scale = max(least, float(expected.detach().abs().max())) if expected.numel() else least
    difference = float((actual - expected).detach().abs().max()) / scale if expected.numel() else 0.0
    require(difference < tolerance, f"{law}, but they differ by {difference:.1e}")


def same(one: object, other: object) -> bool:
    """Whether nested containers are equal, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def random_supernet(space: Space, shapes: Shapes, seed: int) -> Supernet:
    """A supernet in float64, with random weights and without what drops at random, for classes or for one number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = F.cross_entropy if shapes.outputs > 1 else _distance  # the cross entropy of one class is always 0
        return steady(space.supernet(shapes, loss).double())


def _distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets - 0.5).square().mean()


def steady(network: Supernet) -> Supernet:
    """The network without what drops at random: the laws are about what is computed, not about which numbers come."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.probability = 0.0
    return network


def random_batch(shapes: Shapes, size: int, rng: torch.Generator) -> Batch:
    """Normal inputs in float64, or uniform tokens, and uniform classes."""
    if shapes.vocabulary:
        inputs = torch.randint(shapes.vocabulary, (size, *shapes.input), generator=rng)
    else:
        inputs = torch.randn(size, *shapes.input, generator=rng, dtype=torch.float64)
    return Batch(inputs, torch.randint(shapes.outputs, (size,), generator=rng))


def random_alphas(supernet: Supernet, seed: int) -> Alphas:
    """Normal alphas."""
    return Alphas(supernet.choices, generator(seed, 2), 1.0, like=next(supernet.parameters()))


def random_mixture(supernet: Supernet, seed: int) -> dict[str, Tensor]:
    """A soft mixture without gradient."""
    return detached(random_alphas(supernet, seed).mixture("softmax"))


def samples(space: Space, shapes: Shapes, count: int) -> Iterator[Architecture]:
    """Random architectures."""
    choices, rng = space.choices(shapes), generator(0, 3)
    return (space.sample(choices, rng) for _ in range(count))


def varied(space: Space, shapes: Shapes, count: int) -> list[Architecture]:
    """Random architectures, and of elastic spaces the smallest and the largest one."""
    choices = space.choices(shapes)
    found = list(samples(space, shapes, count))
    if any(choice.ordinal for choice in choices.values()):
        found += [space.smallest(choices), space.largest(choices)]
    return list(dict.fromkeys(found))
