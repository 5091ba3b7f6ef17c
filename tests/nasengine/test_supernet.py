from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.elastic import ElasticDepth, Size
from nasengine.errors import ArchitectureError
from nasengine.layers import ElasticLinear
from nasengine.supernet import MixedOp, Shared, Supernet, Zero, choices_of, fix
from nasengine.task import Batch
from nasengine.testing import SmoothSpace, smooth

SPACE = SmoothSpace()
X = torch.tensor([[1.0, -2.0], [3.0, 4.0]])


class Times(nn.Module):
    """Multiplies, and counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * x


class Apply(nn.Module):
    """Ordinary code around parts that hold choices."""

    def __init__(self, forward: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def supernet(network: nn.Module, share: bool = True) -> Supernet:
    return Supernet(SPACE, network, nn.functional.mse_loss, share)


def mixed(label: str = "op") -> MixedOp:
    return MixedOp(label, {"two": Times(2.0), "none": Zero(), "five": Times(5.0)})


def test_soft_mixture_is_the_weighted_sum() -> None:
    weights = torch.tensor([0.25, 0.25, 0.5], requires_grad=True)
    output = supernet(mixed())(X, {"op": weights})
    torch.testing.assert_close(output, (0.25 * 2 + 0.5 * 5) * X)
    (gradient,) = torch.autograd.grad(output.sum(), weights)
    torch.testing.assert_close(gradient, torch.tensor([2 * X.sum(), 0.0, 5 * X.sum()]))


def test_hard_mixture_is_one_option() -> None:
    network = mixed()
    assert torch.equal(supernet(network)(X, {"op": 2}), 5 * X)
    assert torch.equal(supernet(network)(X, {"op": 1}), 0 * X)
    assert [option.calls for option in network.options if isinstance(option, Times)] == [0, 1]


def test_nothing_but_zero() -> None:
    network = MixedOp("op", {"none": Zero(stride=2), "void": Zero(stride=2)})
    images = torch.ones(2, 3, 5, 4)
    output = supernet(nn.Sequential(nn.Conv2d(3, 3, 1), network))(images, {"op": torch.tensor([0.3, 0.7])})
    assert torch.equal(output, torch.zeros(2, 3, 3, 2))


def test_zero_carries_no_gradient_and_keeps_the_type() -> None:
    x = torch.full((1, 1, 4, 4), float("nan"), dtype=torch.float64)
    assert torch.equal(Zero()(x), torch.zeros(1, 1, 4, 4, dtype=torch.float64))


def test_a_choice_needs_a_mixture() -> None:
    network = mixed()
    with pytest.raises(ArchitectureError, match=r"Choice 'op' must be decided.*supernet\(inputs, mixture\)"):
        network(X)
    hidden = (
        r"Choice 'op' must be decided by the mixture, but that has only other, more; .* in place of a Python list\.$"
    )
    with pytest.raises(ArchitectureError, match=hidden):
        supernet(network)(X, {"other": 0, "more": 1})


def test_nothing_outlives_a_call_even_one_that_fails() -> None:
    network = mixed()
    supernet(network)(X, {"op": 0})
    with pytest.raises(ArchitectureError, match="must be decided"):
        network(X)
    with pytest.raises(TypeError):
        supernet(network)(None, {"op": 0})
    with pytest.raises(ArchitectureError, match="must be decided"):
        network(X)


def test_options_must_be_modules_of_one_shape() -> None:
    with pytest.raises(ArchitectureError, match=r"torch module, but 'relu' is builtin_function_or_method"):
        MixedOp("op", {"relu": torch.relu})  # type: ignore[dict-item]
    with pytest.raises(
        ArchitectureError, match="choice 'op' must be a dictionary of names and modules, but got a list;"
    ):
        MixedOp("op", [nn.ReLU()])  # type: ignore[arg-type]
    network = MixedOp("op", {"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)})
    with pytest.raises(
        ArchitectureError, match=r"choice 'op' must give one shape, but got \(2, 2\) and \(2, 1\) from 'b'"
    ):
        supernet(network)(X, {"op": torch.ones(2)})


def test_one_label_is_one_decision() -> None:
    network = nn.Sequential(mixed("same"), mixed("other"), mixed("same"))
    assert list(choices_of(network)) == ["same", "other"]
    assert torch.equal(supernet(network)(X, {"same": 0, "other": 2}), 2 * 5 * 2 * X)
    unlike = nn.Sequential(mixed("same"), MixedOp("same", {"two": Times(2.0)}))
    with pytest.raises(ArchitectureError, match="choice 'same' must have the same options"):
        choices_of(unlike)


def nested() -> nn.Module:
    """A depth around an option with a choice of its own; the same width inside and outside; a choice in two layers."""
    width, inner, twice = Size("width", (1, 2)), mixed("inner"), mixed("twice")
    outer = MixedOp("outer", {"a": nn.Sequential(ElasticLinear(2, width), inner), "b": inner, "c": nn.Identity()})
    only = MixedOp("only", {"a": mixed("within"), "b": nn.Identity()})
    depth = ElasticDepth("depth", [nn.Identity(), nn.Sequential(only, twice), outer, mixed("last"), twice])
    return nn.Sequential(depth, ElasticLinear(width, 2))


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, set()),
        ({"depth": "4"}, set()),
        ({"depth": "3"}, {"last"}),
        ({"depth": "2"}, {"last", "outer", "inner"}),
        ({"depth": "1"}, {"last", "outer", "inner", "only", "within", "twice"}),
        ({"outer": "b"}, set()),
        ({"outer": "c"}, {"inner"}),
        ({"only": "b"}, {"within"}),
        ({"only": "b", "depth": "3"}, {"within", "last"}),
    ],
)
def test_choices_of_modules_that_are_left_out_have_no_effect(changes: dict[str, str], without: set[str]) -> None:
    choices = choices_of(nested())
    assert list(choices) == ["depth", "only", "within", "twice", "outer", "width", "inner", "last"]
    architecture = {**{label: choice.options[0] for label, choice in choices.items()}, "depth": "5", **changes}
    assert {label for label, choice in choices.items() if not choice.has_effect(architecture)} == without


def test_places_do_not_tell_choices_apart() -> None:
    inside, outside = choices_of(nested())["inner"], choices_of(mixed("inner"))["inner"]
    assert inside == outside and hash(inside) == hash(outside) and inside.places != outside.places


def test_shared_computes_once_per_call_and_input() -> None:
    inner = Times(3.0)
    shared = Shared(inner)
    network = Apply(lambda x: shared(x) + shared(x), shared, mixed())
    for calls in (1, 2):  # a second call computes anew
        assert torch.equal(supernet(network)(X, {"op": 0}), 6 * X)
        assert inner.calls == calls
    supernet(network, share=False)(X, {"op": 0})
    assert inner.calls == 4
    assert torch.equal(shared(X), 3 * X)
    assert torch.equal(shared(X), 3 * X)
    assert inner.calls == 6

    unlike = Apply(lambda x: shared(x) + shared(x + 1), shared, mixed())
    assert torch.equal(supernet(unlike)(X, {"op": 0}), 3 * X + 3 * (X + 1))


def test_virtual_pass_changes_nothing() -> None:
    net, batch, _ = smooth()
    mixture = {label: torch.full((3,), 1 / 3, dtype=torch.float64) for label in net.choices}
    before = copy.deepcopy(net.state_dict())
    weights = {name: 2 * weight.detach() for name, weight in net.named_parameters()}
    virtual = net.evaluate(batch, mixture, weights)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(weights[name])
    real = net.evaluate(batch, mixture)
    assert torch.equal(virtual.loss, real.loss.detach())
    assert torch.equal(virtual.outputs, real.outputs)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert not real.outputs.requires_grad


def test_virtual_pass_in_evaluation_uses_the_statistics_of_now() -> None:
    net, batch, valid = smooth()
    mixture = {label: torch.full((3,), 1 / 3, dtype=torch.float64) for label in net.choices}
    weights = dict(net.named_parameters())
    net.evaluate(batch, mixture, weights)
    for _ in range(5):
        net(batch.inputs, mixture)
    net.eval()
    assert torch.equal(net.evaluate(valid, mixture, weights).loss, net.evaluate(valid, mixture).loss)


def test_hard_and_one_hot() -> None:
    net = smooth().supernet
    architecture = Architecture({"layer/0": "gate", "layer/1": "skip"})
    assert net.hard(architecture) == {"layer/0": 1, "layer/1": 2}
    one_hot = net.one_hot(architecture)
    assert {label: row.tolist() for label, row in one_hot.items()} == {"layer/0": [0, 1, 0], "layer/1": [0, 0, 1]}
    assert all(row.dtype == torch.float64 for row in one_hot.values())
    assert net.derive(one_hot) == architecture


def test_extract_copies_the_weights() -> None:
    net, batch, _ = smooth()
    architecture = Architecture({"layer/0": "gate", "layer/1": "dense"})
    extracted = net.extract(architecture)
    assert not choices_of(extracted)
    assert torch.equal(extracted(batch.inputs), net(batch.inputs, net.hard(architecture)))
    with torch.no_grad():
        for parameter in extracted.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for name, parameter in net.named_parameters() if name.endswith("weight"))
    assert list(net.choices) == ["layer/0", "layer/1"]


class _Counted(Times):
    """Counts its copies."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, object]) -> _Counted:
        _Counted.copies += 1
        return _Counted(self.factor.item())


def test_fix_copies_what_is_taken_though_another_choice_leaves_it_out() -> None:
    both, never = _Counted(2.0), _Counted(3.0)
    network = nn.Sequential(
        MixedOp("one", {"both": both, "never": never}),
        MixedOp("two", {"never": never, "other": nn.Sequential(both, MixedOp("one", {"both": both, "never": never}))}),
        ElasticDepth("depth", [Times(5.0), never]),
    )
    fixed = fix(network, Architecture({"one": "both", "two": "other", "depth": "1"}))
    assert _Counted.copies == 1 and fixed(X).equal(X * 2 * 2 * 2 * 5)
    mine = {module for module in fixed.modules() if isinstance(module, Times)}
    assert len(mine) == 2 and mine.isdisjoint(network.modules())


def test_fix_reaches_choices_inside_options_and_second_names() -> None:
    inner = MixedOp("inner", {"two": Times(2.0), "five": Times(5.0)})
    outer = MixedOp("outer", {"inner": inner, "skip": nn.Identity()})
    network = nn.Sequential(outer, outer, inner)
    fixed = fix(network, Architecture({"outer": "inner", "inner": "five"}))
    assert not choices_of(fixed)
    assert torch.equal(fixed(X), 125 * X)
    assert torch.equal(supernet(network)(X, {"outer": 0, "inner": 1}), 125 * X)


def test_evaluate_gives_the_loss_of_the_task() -> None:
    net = supernet(mixed())
    evaluation = net.evaluate(Batch(X, torch.zeros(2, 2)), {"op": 0})
    torch.testing.assert_close(evaluation.loss.detach(), (2 * X).square().mean())
    assert torch.equal(evaluation.outputs, 2 * X)


def test_virtual_passes_begin_with_the_buffers_of_now() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.as_tensor(self.scale * self.layer(x))
            self.scale.add_(1)
            return y

    supernet = Supernet(SmoothSpace(), Scaled(), nn.functional.mse_loss)
    x, weights = torch.ones(3, 2), dict(supernet.named_parameters())
    first = supernet.forward_at(x, {}, weights)
    assert torch.equal(supernet.forward_at(x, {}, weights), first)
    supernet(x, {})
    assert torch.equal(supernet.forward_at(x, {}, weights), 2 * first)
