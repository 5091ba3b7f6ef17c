"""Which modules the compiled loops may compute together: for all others the modules themselves must run."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.config import resolve_space
from nasengine.edges import added
from nasengine.errors import ArchitectureError
from nasengine.microbatches import micro_batches
from nasengine.operations import FactorizedReduce, ReluConvNorm, dil_conv, relu_conv_norm, sep_conv
from nasengine.seeding import generator
from nasengine.separable import by_formula
from nasengine.supernet import MixedOp, Shared, _bound
from nasengine.task import Batch, Shapes


def images(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=generator(seed))
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach() - wanted.detach()).norm() / (wanted.detach().norm() + 0.1))


def unit(inputs: int = 4, outputs: int = 4) -> nn.Module:
    return relu_conv_norm(inputs, outputs, True)


def mixture(*options: nn.Module, label: str = "a") -> MixedOp:
    return MixedOp(label, {str(place): option for place, option in enumerate(options)})


def outcome(modules: nn.ModuleList, x: Tensor, totals: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """Outputs, gradients and running statistics, after two passes."""
    torch.manual_seed(3)
    mixed = [module for module in modules if isinstance(module, MixedOp)]
    shares = {module.choice.label: torch.rand(len(module.options)).requires_grad_() for module in mixed}
    for _ in range(2):
        with _bound(shares, True):
            outputs = added(list(modules), x, totals or [None] * len(modules))
    loss = torch.stack([(images(place, *each.shape) * each).sum() for place, each in enumerate(outputs)]).sum()
    found = torch.autograd.grad(loss, [x, *shares.values(), *modules.parameters()], materialize_grads=True)
    return [*outputs, *found, *modules.buffers()]


def assert_as_plain(modules: Sequence[nn.Module], totals: Sequence[Tensor | None] | None = None) -> None:
    fast, x = nn.ModuleList(modules), images(0, 3, 4, 5, 5)
    plain = copy.deepcopy(fast)
    found = outcome(fast, x, totals)
    with by_formula():
        wanted = outcome(plain, x, totals)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert apart(one.double(), other.double()) < 1e-4


# Shapes


@pytest.mark.parametrize(
    "other", [unit(4, 9), nn.Identity(), nn.Conv2d(4, 8, 1), nn.AvgPool2d(2), nn.Flatten(), nn.AdaptiveAvgPool2d(1)]
)
def test_options_of_other_shapes_are_refused(other: nn.Module) -> None:
    modules, x = [mixture(unit(4, 5), other)], images(0, 3, 4, 5, 5)
    with _bound({"a": torch.tensor([0.5, 0.5])}, True), pytest.raises(ArchitectureError, match="must give one shape"):
        added(modules, x, [None])


def test_images_of_other_channels_are_refused() -> None:
    for module in (unit(2), unit(40), mixture(unit(40), unit(40))):
        with _bound({"a": torch.tensor([0.5, 0.5])}, True), pytest.raises(RuntimeError, match="channels"):
            added([module], images(0, 3, 4, 5, 5), [None])


@pytest.mark.parametrize("count", [1, 3])
def test_weights_must_be_as_many_as_the_options(count: int) -> None:
    with _bound({"a": torch.ones(count)}, True), pytest.raises(ValueError, match="zip"):
        added([mixture(unit(), unit())], images(0, 3, 4, 5, 5), [None])


def test_totals_of_other_shapes() -> None:
    assert_as_plain([mixture(unit(), nn.Identity())], [images(1, 3, 1, 1, 1).detach()])
    with pytest.raises(RuntimeError, match="must match"):
        added([unit()], images(0, 3, 4, 5, 5), [images(0, 3, 4, 2, 2)])


# Modules inside


def convolution(**changes: int) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 1, "bias": 0, **changes})  # type: ignore[arg-type]


class _Tripled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + super().forward(x)
        return output


class _Negative(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return -x


class _Halved(MixedOp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def _tied() -> nn.Module:
    one = [nn.ReLU(), convolution(), nn.BatchNorm2d(4)]
    return ReluConvNorm(*one, *one)


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda changes=changes: ReluConvNorm(nn.ReLU(), convolution(**changes), nn.BatchNorm2d(4))
            for changes in ({"bias": 1}, {"kernel_size": 3, "padding": 1}, {"groups": 2})
        ),
        lambda: sep_conv(4, 3, 1, True, nn.GELU()),
        lambda: dil_conv(4, 3, 1, True, nn.Identity()),
        lambda: ReluConvNorm(nn.ReLU(), convolution()),
        lambda: ReluConvNorm(nn.ReLU(), convolution(), _Tripled(4)),
        lambda: ReluConvNorm(*[part for _ in range(3) for part in (nn.ReLU(), convolution(), nn.BatchNorm2d(4))]),
        _tied,
        lambda: nn.Sequential(),
        lambda: _Residual(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), _Tripled(4)),
        lambda: _Negative(),
    ],
)
def test_other_modules_run_themselves(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert_as_plain([copy.deepcopy(module)])
    assert_as_plain([mixture(module, unit())])


def test_a_mixture_of_another_kind_runs_itself() -> None:
    assert_as_plain([_Halved("a", {"one": unit(), "other": nn.Identity()})])


def test_a_reduction_behind_another_activation() -> None:
    assert_as_plain([FactorizedReduce(4, 4, True, nn.GELU())])


def test_modules_inside_may_be_replaced() -> None:
    module, x = unit(), images(0, 3, 4, 5, 5)
    assert isinstance(module, ReluConvNorm)
    module(x)
    module[2] = nn.BatchNorm2d(4, eps=1.0)
    assert_as_plain([copy.deepcopy(module)])
    found = module(x)
    nn.utils.parametrizations.weight_norm(module[1])
    torch.testing.assert_close(module(x), found)


def test_hooks_are_called() -> None:
    seen = list[str]()
    module = mixture(unit(), nn.Identity())
    module.register_forward_hook(lambda *_: seen.append("mixture"))
    module.options[0].register_forward_pre_hook(lambda *_: seen.append("option"))
    assert_as_plain([unit()])
    with _bound({"a": torch.tensor([0.5, 0.5])}, True):
        added([module], images(0, 3, 4, 5, 5), [None])
    assert seen == ["option", "mixture"]


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(x)
        return output.double()


def test_options_of_another_type_run_once() -> None:
    assert_as_plain([mixture(_Wide(), unit(), nn.Dropout(0.5))])


# Modules in many places


def test_one_module_in_two_mixtures() -> None:
    one, pooling = unit(), nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))
    assert_as_plain([mixture(one, pooling), mixture(one, pooling, label="b")])
    for norm in (one[2], pooling[1], pooling[3]):  # type: ignore[index]
        norm.momentum = None  # type: ignore[union-attr]
    assert_as_plain([mixture(one, pooling), mixture(one, pooling, label="b")])


def test_what_is_shared_runs_everywhere_outside_a_supernet() -> None:
    pool = Shared(nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4)))
    added([pool, pool], images(0, 3, 4, 5, 5), [None, None])
    assert int(pool.module[1].num_batches_tracked) == 2  # type: ignore[index, union-attr, arg-type]


def test_modules_are_forgotten() -> None:
    kept = []
    for made in (unit(), FactorizedReduce(4, 4, True, nn.ReLU()), mixture(unit(), nn.Identity())):
        with _bound({"a": torch.tensor([0.5, 0.5])}, True):
            added([made], images(0, 3, 4, 5, 5), [None])
        kept.append(weakref.ref(made))
        del made
    gc.collect()
    assert [module() for module in kept] == [None] * 3


# Gradients


def test_a_graph_of_gradients_beside_modules_that_need_none() -> None:
    frozen, other, x = unit().requires_grad_(False), unit(), images(0, 3, 4, 5, 5).detach()
    one, two = added([frozen, other], x, [None, None])
    wanted = torch.autograd.grad((one * two).pow(2).sum(), list(other.parameters()), create_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad((one * two).pow(2).sum(), list(other.parameters())), wanted, rtol=1e-3, atol=1e-3
    )


def test_transforms_of_functions() -> None:
    module, x = sep_conv(4, 3, 2, True, nn.ReLU()).eval(), images(0, 3, 4, 5, 5).detach()
    weights = dict(module.named_parameters())

    def total(weights: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(module, weights, x)
        return output.sum()

    found = torch.func.grad(total)(weights)
    for name, gradient in zip(weights, torch.autograd.grad(module(x).sum(), list(weights.values())), strict=True):
        assert apart(found[name], gradient) < 1e-4
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(module(dual)).tangent is not None


@pytest.mark.parametrize("share", [True, False])
def test_micro_batches_of_cells(share: bool) -> None:
    space = resolve_space("darts", {}, {"channels": "4", "layers": "3", "nodes": "2"})
    supernet = space.supernet(Shapes((3, 8, 8), 4), F.cross_entropy).eval()
    supernet.share = share
    rng = generator(1)
    shares = {label: torch.rand(len(c.options), generator=rng) for label, c in supernet.choices.items()}
    batch, found = Batch(images(0, 6, 3, 8, 8).detach(), torch.arange(6) % 4), []
    for count in (1, 3):
        with micro_batches(count):
            loss = supernet.evaluate(batch, shares).loss
            found.append(torch.autograd.grad(loss, list(supernet.parameters()), materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
