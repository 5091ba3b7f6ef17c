"""A batch norm with its activation in one pass equals the two modules, and gives way to them."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from nasengine.batch_norm import ConvNorm
from nasengine.elastic import Size
from nasengine.layers import ElasticBatchNorm2d, ElasticConv2d
from nasengine.separable import by_formula
from nasengine.space import Space
from nasengine.supernet import Supernet
from nasengine.task import Shapes

ACTIVATIONS: tuple[tuple[nn.Module, ...], ...] = ((), (nn.ReLU(),), (nn.Hardswish(),))
CASES = list(itertools.product(ACTIVATIONS, ((3, 20, 5, 7), (12, 16, 1, 1), (9, 8, 12, 12))))


def block(channels: int, activation: tuple[nn.Module, ...]) -> ConvNorm:
    generator = torch.Generator().manual_seed(0)
    made = ConvNorm(nn.Conv2d(6, channels, 1, bias=False), nn.BatchNorm2d(channels), *activation)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def images(shape: tuple[int, ...]) -> Tensor:
    made = 2 * torch.randn(shape[0], 6, *shape[2:], generator=torch.Generator().manual_seed(1)) + 1
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def passed(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, gradients and statistics."""
    y = module(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    return y, *torch.autograd.grad(y, (x, *module.parameters()), upstream), *module.buffers()


@pytest.mark.parametrize(("activation", "shape"), CASES)
def test_one_pass_equals_the_modules(activation: tuple[nn.Module, ...], shape: tuple[int, ...]) -> None:
    pytest.importorskip("numba")
    fast, x = block(shape[1], activation), images(shape)
    exact = copy.deepcopy(fast).double()
    assert "Normalised" in type(fast(x).grad_fn).__name__
    exact(x.double())
    wanted = passed(exact, x.detach().double().requires_grad_())
    for one, other in zip(passed(fast, x), wanted, strict=True):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=1e-4, atol=2e-5 * float(other.detach().abs().max())
        )


def test_a_momentum_of_none_means_the_mean_of_all_batches() -> None:
    fast = block(8, ())
    fast[1].momentum = None  # type: ignore[assignment]
    plain = copy.deepcopy(fast)
    for seed in range(3):
        x = images((4, 8, 3, 3)).detach() + seed
        fast(x)
        with by_formula():
            plain(x)
    torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_second_derivatives_are_those_of_the_modules(layout: torch.memory_format) -> None:
    module, x = block(8, (nn.Hardswish(),)), images((4, 8, 3, 3))
    module[0] = nn.Identity()  # whose output has the layout of its input
    x = torch.cat([x, 2 * x[:, :2]], 1).detach().contiguous(memory_format=layout).requires_grad_()

    def second() -> tuple[Tensor, ...]:
        inputs = (x, *module.parameters())
        first = torch.autograd.grad(module(x).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)  # type: ignore[arg-type]

    found = second()
    with by_formula():
        wanted = second()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.detach().abs().max()))


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(8, ())(images((1, 8, 1, 1)))


@pytest.mark.parametrize("channels", [4, 12])
def test_a_norm_of_other_channels_is_refused_as_by_torch(channels: int) -> None:
    module = block(8, ())
    module[1] = nn.BatchNorm2d(channels)
    with pytest.raises(RuntimeError, match="running_mean should contain 8 elements"):
        module(images((4, 8, 3, 3)))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_numbers_that_do_not_lie_together(name: str) -> None:
    fast, x = block(8, (nn.ReLU(),)), images((4, 8, 3, 3))
    apart = torch.rand(8, 2, generator=torch.Generator().manual_seed(3))[:, 0]
    setattr(fast[1], name, nn.Parameter(apart) if name in ("weight", "bias") else apart)
    plain = copy.deepcopy(fast)
    with by_formula():
        wanted = passed(plain, x)
    for one, other in zip(passed(fast, x), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.detach().abs().max()))


def test_evaluation_and_other_activations_run_the_modules() -> None:
    x = images((4, 8, 3, 3))
    other = block(8, (nn.SiLU(),))
    assert "Normalised" not in type(other(x).grad_fn).__name__
    fixed = block(8, (nn.ReLU(),)).eval()
    torch.testing.assert_close(fixed(x), nn.Sequential(*fixed)(x), rtol=0, atol=0)


class _Thin(Space):
    name = "thin"

    def network(self, shapes: Shapes) -> nn.Module:
        width = Size("width", (4, 9))
        return nn.Sequential(ConvNorm(ElasticConv2d(6, width, 1), ElasticBatchNorm2d(width), nn.ReLU()))


@pytest.mark.parametrize("option", [0, 1])
def test_elastic_channels_are_the_first_ones(option: int) -> None:
    torch.manual_seed(0)
    supernet = Supernet(_Thin(), _Thin().network(Shapes((6, 5, 5), 9)), nn.functional.cross_entropy)
    x = images((4, 8, 5, 5))

    def found() -> tuple[Tensor, ...]:
        twin = copy.deepcopy(supernet)
        gradients = torch.autograd.grad(twin(x, {"width": option}).square().sum(), tuple(twin.parameters()))
        return *gradients, *twin.buffers()

    fast = found()
    with by_formula():
        plain = found()
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))
