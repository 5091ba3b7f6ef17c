"""Moments of values, as they are and as they run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nasengine.mixing import Statistics, measured, moments
from nasengine.seeding import generator


def images(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=generator(seed))
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (3, 16, 8, 8), (5, 20, 17, 9), (1, 48, 3, 5)])
def test_moments_and_their_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    x = images(0, *shape)
    other = x.detach().double().requires_grad_()
    mean, var = moments(x)
    pair = torch.var_mean(other, dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean.double(), pair[1], atol=1e-6) and torch.allclose(var.double(), pair[0], rtol=1e-5)
    slopes = torch.randn(2, shape[1], generator=generator(1))
    found = torch.autograd.grad((mean, var), x, tuple(slopes))[0]
    wanted = torch.autograd.grad((pair[1], pair[0]), other, tuple(slopes.double()))[0]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_second_derivatives_of_moments() -> None:
    found = []
    for x in (images(0, 2, 4, 3, 3), images(0, 2, 4, 3, 3).detach().double().requires_grad_()):
        mean, var = moments(x)
        first = torch.autograd.grad((mean.pow(3) * var.square()).sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), x)[0].double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-5


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_moments_move_as_those_of_torch(momentum: float | None) -> None:
    norms = [nn.BatchNorm2d(4, momentum=momentum), nn.BatchNorm2d(4)]
    plain = copy.deepcopy(norms)
    for seed in range(3):
        statistics = Statistics()
        for place, (norm, other) in enumerate(zip(norms, plain, strict=True)):
            x = images(10 * place + seed, 2, 4, 3, 3).detach()
            measured(x, norm, statistics)
            other(x)
        statistics.keep()
    for norm, other in zip(norms, plain, strict=True):
        for mine, theirs in zip(norm.buffers(), other.buffers(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-6)


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    norm, x = nn.BatchNorm2d(4), images(0, 1, 4, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        measured(x, norm, Statistics())
