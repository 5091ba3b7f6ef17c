"""Units change places, and gates move into weights, without a change of the function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nasengine import units
from nasengine.architecture import Architecture
from nasengine.attention import ElasticAttention
from nasengine.elastic import ElasticDepth, Size
from nasengine.layers import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticParameter,
    put,
)
from nasengine.seeding import generator
from nasengine.supernet import Gates, MixedOp, fix
from tests.nasengine.calls import call, close, numbers, randomised, weights

IN, MID, OUT = Size("in", (2, 4)), Size("mid", (3, 5)), Size("out", (2, 3))
WIDTH, HEADS, DIMS, VALUES = Size("width", (2, 6)), Size("heads", (1, 3)), Size("dims", (1, 4)), Size("values", (2, 5))
TAPS = Size("taps", (1, 3))


class Net(nn.Module):
    """All layers that have units: images (batch, 2, 3, 3) -> (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        images = (ElasticConv2d(2, IN, TAPS, bias=True), ElasticBatchNorm2d(IN), nn.Hardswish())
        self.images = nn.Sequential(
            *images, ElasticDepthwiseConv2d(IN, TAPS), ElasticBatchNorm2d(IN, affine=False), ElasticConv2d(IN, MID, 1)
        )
        self.signals = nn.Sequential(nn.Flatten(2), ElasticConv1d(MID, WIDTH, 3, bias=True))
        self.shift, self.norm = ElasticParameter((9,), WIDTH), ElasticLayerNorm(WIDTH)
        self.attention = ElasticAttention(WIDTH, HEADS, DIMS, VALUES)
        self.head = nn.Sequential(ElasticLinear(WIDTH, OUT), ElasticBatchNorm1d(OUT), nn.Tanh(), ElasticLinear(OUT, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.signals(self.images(x)).mT + self.shift()
        x = x + self.attention(self.norm(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


SIZES = [IN, MID, WIDTH, HEADS, DIMS, VALUES, OUT]
FULL = dict.fromkeys([size.label for size in (*SIZES, TAPS)], 1)


def net() -> Net:
    network = randomised(Net())
    for place, (name, buffer) in enumerate(network.named_buffers()):
        if buffer.dim():
            put(buffer, numbers(*buffer.shape, seed=place).abs() + 0.5)
            assert name.endswith(("mean", "var"))
    return network


def orders(*sizes: Size) -> dict[Size, Tensor]:
    rng = generator(3)
    return {size: torch.randperm(size.largest, generator=rng) for size in sizes}


# What there is


def test_the_sizes_of_a_network() -> None:
    network = Net()
    assert units.feature_sizes(network) == SIZES
    assert len(list(units.elastic_layers(network))) == 16
    assert units.gateable(network) == {size.label: size for size in SIZES}


def test_gates_replace_choices_of_one_number_of_units_and_nothing_else() -> None:
    a, b, c = Size("a", (2, 4)), Size("b", (1, 3)), Size("c", (1, 2))
    wide = a.map(lambda width: 2 * width)

    def labels(*layers: nn.Module) -> list[str]:
        return list(units.gateable(nn.Sequential(*layers)))

    assert labels(ElasticLinear(4, a), ElasticLinear(a, b), ElasticLinear(b, 2)) == ["a", "b"]
    assert labels(ElasticLinear(4, a), ElasticLinear(wide, b)) == ["b"]
    assert labels(ElasticConv2d(4, a, b), ElasticConv2d(a, c, 1)) == ["a", "c"]
    assert labels(ElasticConv2d(4, a, b), ElasticConv2d(a, b, 1)) == ["a"]
    assert labels(ElasticDepthwiseConv2d(b, 3), ElasticDepthwiseConv2d(4, b)) == []
    assert labels(ElasticLinear(4, c), ElasticDepth("c", [nn.Identity(), ElasticLinear(a, a)])) == ["a"]
    assert labels(MixedOp("op", {"a": ElasticLinear(4, a), "b": ElasticLinear(4, 4)})) == ["a"]
    assert labels(ElasticAttention(a, b, c)) == ["a", "b", "c"]


def test_the_scales_of_the_norms() -> None:
    network = net()
    found = units.norm_scales(network, [IN, OUT, WIDTH, MID])
    assert list(found) == [IN, OUT, WIDTH]
    first = network.images[1]
    assert isinstance(first, ElasticBatchNorm2d)
    assert [len(scales) for scales in found.values()] == [1, 1, 1]
    assert found[IN][0] is first.norm.weight and found[WIDTH][0] is network.norm.norm.weight


# Importance and order


def test_importance_is_the_sum_of_all_weights_that_read_a_unit() -> None:
    linear, conv, signal = ElasticLinear(IN, 2), ElasticConv2d(IN, 3, TAPS), ElasticConv1d(IN, IN, 3)
    network = randomised(nn.Sequential(linear, conv, signal, ElasticDepthwiseConv2d(IN, 3), ElasticLayerNorm(IN)))
    read = (linear.linear.weight.detach(), conv.conv.weight.detach(), signal.conv.weight.detach())
    expected = [sum(weight[:, place].abs().sum().item() for weight in read) for place in range(4)]
    found = units.importance(network, IN)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not found.requires_grad
    assert units.importance(network, MID).tolist() == [0] * 5


def test_importance_of_what_attention_reads() -> None:
    attention = randomised(ElasticAttention(WIDTH, HEADS, DIMS))
    parts = attention.attention
    query, key, value, merge = (p.linear.weight.abs() for p in (parts.query, parts.key, parts.value, parts.merge))
    close(units.importance(attention, WIDTH), query.sum(0) + key.sum(0) + value.sum(0))
    close(units.importance(attention, HEADS), merge.unflatten(1, (3, 4)).sum((0, 2)))
    dims = merge.unflatten(1, (3, 4)).sum((0, 1)) + query.unflatten(0, (3, 4)).sum((0, 2))
    close(units.importance(attention, DIMS), dims)


def test_order_is_by_falling_score() -> None:
    scores = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 7.0])
    assert units.order_by(scores).tolist() == [5, 1, 3, 2, 4, 0]
    assert units.order_by(scores, (2, 5)).tolist() == [1, 0, 3, 2, 4, 5]
    assert units.order_by(scores, (5, 6)).tolist() == [1, 3, 2, 4, 0, 5]
    assert units.order_by(torch.zeros(4)).tolist() == [0, 1, 2, 3]


def test_sorting_keeps_the_important_units_in_the_slice() -> None:
    network = randomised(nn.Sequential(ElasticLinear(3, MID), nn.Tanh(), ElasticLinear(MID, 2)))
    before = copy.deepcopy(network)
    order = units.order_by(units.importance(network, MID))
    units.permute(network, {MID: order})
    scores = units.importance(network, MID)
    assert scores.tolist() == sorted(units.importance(before, MID).tolist(), reverse=True)
    best = order[:3]
    first, second = before[0], before[2]
    assert isinstance(first, ElasticLinear) and isinstance(second, ElasticLinear)
    x = numbers(4, 3)
    expected = torch.tanh(x @ first.linear.weight[best].T + first.linear.bias[best]) @ second.linear.weight[:, best].T
    close(fix(network, Architecture({"mid": "3"}))(x), expected + second.linear.bias)


# Places


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [*SIZES, None], ids=lambda size: size.label if size else "all")
def test_units_that_change_places_leave_the_function(size: Size | None, training: bool) -> None:
    network, x = net().train(training), numbers(5, 2, 3, 3)
    moved, order = copy.deepcopy(network), orders(*([size] if size else SIZES))
    before = {name: tensor.clone() for name, tensor in moved.state_dict().items()}
    units.permute(moved, order)
    changed = {name for name, tensor in moved.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    expected = call(network, x, FULL)
    close(call(moved, x, FULL), expected)
    if training:
        return
    sizes = {size.label: size for size in SIZES}
    gates = {label: Gates(numbers(sizes[label].largest)) for label in sizes}
    there = {label: Gates(g.values[order.get(sizes[label], slice(None))]) for label, g in gates.items()}  # type: ignore[call-overload]
    close(call(moved, x, {**FULL, **there}), call(network, x, {**FULL, **gates}))


@pytest.mark.parametrize("kind", [ElasticBatchNorm1d, ElasticBatchNorm2d])
def test_a_norm_without_weights_moves_its_statistics(kind: type[ElasticBatchNorm1d]) -> None:
    norm = kind(IN, affine=False)
    put(norm.norm.running_mean, torch.arange(4.0))
    put(norm.norm.running_var, torch.arange(4.0) + 10)
    units.permute(norm, {IN: torch.tensor([2, 0, 3, 1])})
    assert isinstance(norm.norm.running_mean, Tensor) and isinstance(norm.norm.running_var, Tensor)
    assert norm.norm.running_mean.tolist() == [2, 0, 3, 1]
    assert norm.norm.running_var.tolist() == [12, 10, 13, 11]


@pytest.mark.parametrize("bias", [True, False])
def test_one_size_in_and_out(bias: bool) -> None:
    layer = randomised(ElasticLinear(IN, IN, bias))
    before, order = copy.deepcopy(layer), torch.tensor([2, 0, 3, 1])
    units.permute(layer, {IN: order})
    x = numbers(3, 4)
    close(call(layer, x[:, order], {"in": 1}), call(before, x, {"in": 1})[:, order])


def test_gradients_and_momentum_go_with_the_units() -> None:
    network, x = net(), numbers(5, 2, 3, 3)
    moved, order = copy.deepcopy(network), orders(*SIZES)
    units.permute(moved, order)

    def gradients(of: nn.Module) -> dict[str, Tensor]:
        loss = call(of, x, FULL).square().sum()
        names = [name for name, _ in of.named_parameters()]
        found = torch.autograd.grad(loss, list(of.parameters()), materialize_grads=True)
        return dict(zip(names, found, strict=True))

    before, after = gradients(network), gradients(moved)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = units.permute_like(network, before, order)
    assert found.keys() == after.keys()
    for name, gradient in after.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)
        assert not found[name].requires_grad
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    some = {name: before[name] for name in list(before)[:3]}
    assert units.permute_like(network, some, order).keys() == some.keys()


# Gates


@pytest.mark.parametrize("size", [*SIZES, None], ids=lambda size: size.label if size else "all")
def test_folded_gates_are_the_gated_network(size: Size | None) -> None:
    network, x = net(), numbers(5, 2, 3, 3)
    gates = {one: numbers(one.largest, seed=5) for one in ([size] if size else SIZES)}
    expected = call(network, x, {**FULL, **{one.label: Gates(values) for one, values in gates.items()}})
    assert not torch.allclose(expected, call(network, x, FULL))
    units.fold(network, gates)
    close(call(network, x, FULL), expected)


def test_folding_touches_only_what_reads() -> None:
    network = randomised(nn.Sequential(ElasticLinear(2, IN), ElasticLayerNorm(IN), ElasticLinear(IN, 2)))
    before = copy.deepcopy(network.state_dict())
    units.fold(network, {IN: weights(2, 0, -1, 1)})
    changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["2.linear.weight"]
    close(network.state_dict()["2.linear.weight"], before["2.linear.weight"] * weights(2, 0, -1, 1))


class Flat(nn.Module):
    """Channels that are flattened together with their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = ElasticConv2d(1, IN, 3), ElasticConv2d(IN, IN, 1)
        self.middle, self.head = ElasticLinear(IN.map(lambda n: 9 * n), MID), ElasticLinear(MID, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.middle(self.more(self.conv(x)).flatten(1)).tanh()))


def test_units_behind_a_flatten_keep_their_places() -> None:
    network = Flat()
    assert units.sortable(network) == [MID] and IN in units.feature_sizes(network)
    assert units.gateable(network) == {"mid": MID}
