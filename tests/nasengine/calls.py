"""Lone layers with choices inside, called under a mixture."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasengine.architecture import Architecture
from nasengine.elastic import ElasticLayer, value
from nasengine.seeding import generator
from nasengine.supernet import Gates, Mixture, Supernet, fix
from nasengine.testing import SmoothSpace

Module = TypeVar("Module", bound=nn.Module)


def call(network: nn.Module, x: Tensor, mixture: Mixture) -> Tensor:
    """What a network gives under a mixture."""
    return torch.as_tensor(Supernet(SmoothSpace(), network, nn.functional.mse_loss)(x, mixture))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=generator(seed, 7), dtype=torch.float64)


def randomised(network: Module, seed: int = 0) -> Module:
    """The network in float64 with random weights, also where it would start at one or zero."""
    rng = generator(seed, 8)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return network


def weights(*shares: float) -> Tensor:
    """Weights over options, in float64."""
    return torch.tensor(shares, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    """Requires equality up to rounding in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def gradient_entries(layer: nn.Module, output: Tensor) -> dict[str, int]:
    """How many entries of every parameter have a gradient at random upstream ones."""
    loss = (output * numbers(*output.shape, seed=9)).sum()
    found = torch.autograd.grad(loss, list(layer.parameters()), materialize_grads=True)
    return {name: int((g != 0).sum()) for (name, _), g in zip(layer.named_parameters(), found, strict=True)}


def learning(network: nn.Module, x: Tensor, mixture: Mixture, weights_too: bool) -> tuple[list[Tensor], int]:
    """Outputs with first and second derivatives in the mixture and in x, and the flops of the first ones.

    Args:
        weights_too: whether the network's weights need gradients as well, which are not among these.
    """
    network.requires_grad_(weights_too)
    soft = {label: w.values if isinstance(w, Gates) else w for label, w in mixture.items() if not isinstance(w, int)}
    leaves = {label: w.detach().clone().requires_grad_() for label, w in soft.items()}
    inputs = [x.detach().clone().requires_grad_(), *leaves.values()]
    given = {
        label: Gates(leaves[label]) if isinstance(w, Gates) else leaves.get(label, w) for label, w in mixture.items()
    }
    output = call(network, inputs[0], given)
    upstream = numbers(*output.shape, seed=9)
    needed = [*inputs, *network.parameters()] if weights_too else inputs
    with FlopCounterMode(display=False) as counter:
        first = torch.autograd.grad(output, needed, upstream, create_graph=True)[: len(inputs)]
    second = torch.autograd.grad(sum((g * g).sum() for g in first), inputs)
    return [output, *first, *second], int(counter.get_total_flops())


def derived_costs(layer: ElasticLayer, architecture: Architecture, x: Tensor) -> tuple[int, int]:
    """Parameters and multiply-adds of a layer in the network of an architecture, counted there; x is its input."""
    fixed = fix(layer, architecture).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        fixed(x)
    return sum(p.numel() for p in fixed.parameters()), int(counter.get_total_flops()) // 2


def declared_costs(layer: ElasticLayer, architecture: Architecture) -> tuple[int, int]:
    """The same by what the layer declares, the second up to a factor."""
    sums = [
        sum(math.prod(value(size, architecture) for size in product) for product in products)
        for products in (layer.weights, layer.work)
    ]
    return sums[0], sums[1]
