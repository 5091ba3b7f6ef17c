"""Elastic layers against plain torch that is written out: slices, and masks on the activations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.elastic import ElasticLayer, Size
from nasengine.errors import ArchitectureError
from nasengine.layers import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    ElasticEmbedding,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticParameter,
    FixedParameter,
    put,
)
from nasengine.supernet import Gates, choices_of, fix
from nasengine.units import permute
from tests.nasengine.calls import (
    call,
    close,
    declared_costs,
    derived_costs,
    gradient_entries,
    learning,
    numbers,
    randomised,
    weights,
)

IN, OUT, TAPS = Size("in", (2, 3, 4)), Size("out", (3, 5)), Size("taps", (3, 5, 7))
SHARES = {"in": weights(0.2, 0.5, 0.3), "out": weights(0.6, 0.4), "taps": weights(0.1, 0.3, 0.6)}
IN_MASK, OUT_MASK = weights(1, 1, 0.8, 0.3), weights(1, 1, 1, 0.4, 0.4)


def hard(**options: int) -> tuple[dict[str, int], Architecture]:
    sizes = {"in": IN, "out": OUT, "taps": TAPS}
    return options, Architecture({label: sizes[label].options[place] for label, place in options.items()})


def test_put_overwrites_and_accepts_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    put(parameter, torch.ones(2))
    assert parameter.tolist() == [1, 1] and parameter.requires_grad
    put(None, torch.ones(2))


# Linear


@pytest.mark.parametrize(("i", "o"), list(itertools.product(range(3), range(2))))
def test_hard_linear_is_a_slice(i: int, o: int) -> None:
    layer, (mixture, architecture) = randomised(ElasticLinear(IN, OUT)), hard(**{"in": i, "out": o})
    inputs, outputs = IN.values[i], OUT.values[o]
    x = numbers(6, 3, inputs)
    found = call(layer, x, mixture)
    close(found, x @ layer.linear.weight[:outputs, :inputs].T + layer.linear.bias[:outputs])
    close(fix(layer, architecture)(x), found)
    assert gradient_entries(layer, found) == {"linear.weight": inputs * outputs, "linear.bias": outputs}


def test_inputs_and_outputs_of_one_largest_size() -> None:
    x = numbers(6, 3)
    layer = randomised(ElasticLinear(IN, 4))
    close(call(layer, x, {"in": 1}), x @ layer.linear.weight[:, :3].T + layer.linear.bias)
    layer = randomised(ElasticLinear(3, Size("out", (2, 3))))
    close(call(layer, x, {"out": 0}), x @ layer.linear.weight[:2].T + layer.linear.bias[:2])


def test_fixed_sizes_make_an_ordinary_linear_layer() -> None:
    layer, x = randomised(ElasticLinear(4, 5, bias=False)), numbers(2, 4)
    assert layer.linear.bias is None and not choices_of(layer) and not layer.features
    close(call(layer, x, {}), x @ layer.linear.weight.T)
    fixed = fix(layer, Architecture({}))
    assert isinstance(fixed, nn.Linear) and fixed.bias is None
    close(fixed(x), x @ layer.linear.weight.T)


def test_soft_widths_multiply_the_activations() -> None:
    first, second = randomised(ElasticLinear(IN, OUT), 1), randomised(ElasticLinear(OUT, 3), 2)
    x = numbers(6, 4)
    hidden = torch.tanh((x * IN_MASK) @ first.linear.weight.T + first.linear.bias) + 1
    expected = (hidden * OUT_MASK) @ second.linear.weight.T + second.linear.bias
    shift = nn.Sequential(nn.Tanh(), Plus())
    close(call(nn.Sequential(first, shift, second), x, SHARES), expected)


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_gates_multiply_the_activations() -> None:
    first, second = randomised(ElasticLinear(IN, OUT), 1), randomised(ElasticLinear(OUT, 3), 2)
    x, gates = numbers(6, 4), numbers(5)
    hidden = torch.tanh(x @ first.linear.weight.T + first.linear.bias)
    expected = (hidden * gates) @ second.linear.weight.T + second.linear.bias
    close(call(nn.Sequential(first, nn.Tanh(), second), x, {"in": 2, "out": Gates(gates)}), expected)


@pytest.mark.parametrize("gated", [False, True])
def test_where_the_mask_alone_learns_no_product_is_for_the_weights(gated: bool) -> None:
    layer, x = randomised(ElasticLinear(IN, 3)), numbers(6, 4)
    mixture = {"in": Gates(numbers(4, seed=1)) if gated else SHARES["in"]}
    (alone, fewer), (both, flops) = (learning(layer, x, mixture, weights_too) for weights_too in (False, True))
    for one, other in zip(alone, both, strict=True):
        close(one, other)
    assert flops - fewer == 2 * 6 * 4 * 3


def test_inheriting_or_not() -> None:
    layers: list[ElasticLayer] = [
        ElasticLinear(IN, OUT),
        ElasticConv1d(IN, OUT, TAPS, bias=True),
        ElasticConv2d(IN, OUT, 3, bias=True),
        ElasticDepthwiseConv2d(IN, TAPS),
        ElasticLayerNorm(IN),
        ElasticBatchNorm2d(IN),
    ]
    architecture = Architecture({"in": "3", "out": "3", "taps": "5"})
    for layer in map(randomised, layers):
        kept, new = (fix(layer, architecture, inherit) for inherit in (True, False))
        for name, parameter in new.named_parameters():
            assert parameter.shape == kept.get_parameter(name).shape
            assert parameter.dtype == torch.float64
            assert not torch.equal(parameter, kept.get_parameter(name))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (ElasticLinear(4, 2), (2, 3), "An ElasticLinear must get the 4 inputs, but got 3"),
        (ElasticLinear(IN, 2), (2, 4), "An ElasticLinear must get the 3 that choice 'in' decides, but got 4"),
        (ElasticConv1d(IN, 2, 3), (2, 4, 9), "An ElasticConv1d must get the 3 that choice 'in' decides, but got 4"),
        (ElasticConv2d(IN, 2, 3), (2, 2, 9, 9), "An ElasticConv2d must get the 3 that choice 'in' decides, but got 2"),
        (ElasticDepthwiseConv2d(IN, 3), (2, 4, 9, 9), "An ElasticDepthwiseConv2d must get the 3 that"),
        (ElasticBatchNorm1d(IN), (2, 4), "An ElasticBatchNorm1d must get the 3 that choice 'in' decides, but got 4"),
        (ElasticBatchNorm2d(4), (2, 5, 3, 3), "An ElasticBatchNorm2d must get the 4 inputs, but got 5"),
        (ElasticLayerNorm(IN), (2, 3, 4), "An ElasticLayerNorm must get the 3 that choice 'in' decides, but got 4"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_of_another_size_are_refused(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^{message}.*; give it and the layer before it one size\.$"):
        call(layer, torch.ones(shape), {"in": 1})


# Parameters


@pytest.mark.parametrize("option", [0, 1, 2])
def test_an_embedding_is_sliced_in_its_last_dimension(option: int) -> None:
    layer, tokens = randomised(ElasticEmbedding(7, IN)), torch.tensor([[0, 6, 3], [2, 2, 1]])
    mixture, architecture = hard(**{"in": option})
    expected = layer.embedding.weight[tokens][..., : IN.values[option]]
    assert torch.equal(call(layer, tokens, mixture), expected)
    fixed = fix(layer, architecture)
    assert isinstance(fixed, nn.Embedding) and fixed.num_embeddings == 7 and torch.equal(fixed(tokens), expected)
    assert sum(p.numel() for p in fixed.parameters()) == declared_costs(layer, architecture)[0]
    assert not torch.equal(fix(layer, architecture, inherit=False)(tokens), expected)


def test_units_of_an_embedding_are_weighted_and_sorted_where_they_are_read() -> None:
    layer, head = randomised(ElasticEmbedding(7, IN), 1), randomised(ElasticLinear(IN, 2), 2)
    network, tokens = nn.Sequential(layer, head), torch.tensor([[0, 6, 3], [2, 2, 1]])
    expected = (layer.embedding.weight[tokens] * IN_MASK) @ head.linear.weight.T + head.linear.bias
    close(call(network, tokens, SHARES), expected)
    before = call(network, tokens, {"in": 2})
    order = torch.tensor([2, 0, 3, 1])
    permute(network, {IN: order})
    close(call(network, tokens, {"in": 2}), before)
    assert not torch.equal(call(network, tokens, {"in": 0}), before)


def test_a_parameter_is_sliced_in_its_last_dimension() -> None:
    layer = ElasticParameter((1, 6), IN, std=0.5)
    assert layer.values.shape == (1, 6, 4) and 0.1 < layer.values.std() < 1
    assert ElasticParameter((1, 6), IN, std=1e-6).values.abs().max() < 1e-4

    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer()

    network, x = Add(), torch.zeros(2, 6, 3)
    assert torch.equal(call(network, x, {"in": 1}), layer.values[..., :3].expand(2, 6, 3))
    assert torch.equal(call(network, torch.zeros(1, 6, 4), {"in": SHARES["in"].float()}), layer.values)
    fixed = fix(network, Architecture({"in": "3"}))
    assert torch.equal(fixed(x), layer.values[..., :3].expand(2, 6, 3))
    assert [p.shape for p in fixed.parameters()] == [(1, 6, 3)]
    assert isinstance(fixed.layer, FixedParameter)
    with torch.no_grad():
        next(fixed.parameters()).zero_()
    assert (layer.values != 0).all()


# Norms


def batch_norm(x: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, var: Tensor) -> Tensor:
    """Normalised by given statistics (channels,), channels in dimension 1."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + norm.eps)
    count = x.shape[1]
    return y * norm.weight[:count].view(shape) + norm.bias[:count].view(shape) if norm.affine else y


def with_statistics(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    randomised(layer)
    put(norm.running_mean, numbers(4, seed=3))
    put(norm.running_var, numbers(4, seed=4) ** 2 + 0.1)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"), [(ElasticBatchNorm1d, ()), (ElasticBatchNorm1d, (3,)), (ElasticBatchNorm2d, (3, 2))], ids=str
)
@pytest.mark.parametrize("option", [0, 2])
def test_hard_batch_norm_has_the_first_channels(
    kind: type[ElasticBatchNorm1d] | type[ElasticBatchNorm2d], shape: tuple[int, ...], option: int, affine: bool
) -> None:
    layer = kind(IN, affine)
    with_statistics(layer, layer.norm)
    count = IN.values[option]
    x = 2 * numbers(5, count, *shape) + 1
    mean, var = layer.norm.running_mean, layer.norm.running_var
    assert mean is not None and var is not None
    before = mean.clone(), var.clone()

    layer.eval()
    close(call(layer, x, {"in": option}), batch_norm(x, layer.norm, mean[:count], var[:count]))
    assert torch.equal(mean, before[0]) and layer.norm.num_batches_tracked == 0

    layer.train()
    fixed = fix(layer, Architecture({"in": str(count)}))
    own = x.transpose(0, 1).flatten(1)
    expected = batch_norm(x, layer.norm, own.mean(1), own.var(1, correction=0))
    close(call(layer, x, {"in": option}), expected)
    close(mean[:count], 0.9 * before[0][:count] + 0.1 * own.mean(1))
    close(var[:count], 0.9 * before[1][:count] + 0.1 * own.var(1))
    assert torch.equal(mean[count:], before[0][count:]) and torch.equal(var[count:], before[1][count:])
    assert layer.norm.num_batches_tracked == 1

    close(fixed(x), expected)
    assert type(fixed) is kind._plain and not choices_of(fixed)
    assert fixed.affine is affine and fixed.num_features == count
    close(fixed.running_mean, mean[:count])  # type: ignore[arg-type]
    close(fixed.running_var, var[:count])  # type: ignore[arg-type]
    assert fixed.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_statistics_of_a_slice_move_as_those_of_torch(momentum: float | None) -> None:
    layer, plain = ElasticBatchNorm1d(IN).double(), nn.BatchNorm1d(3, momentum=momentum).double()
    layer.norm.momentum = momentum
    for seed in range(3):
        x = numbers(6, 3, seed=seed) + seed
        close(call(layer.train(), x, {"in": 1}), plain.train()(x))
        close(call(layer.eval(), x, {"in": 1}), plain.eval()(x))
    assert layer.norm.num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False])
def test_fixed_batch_norm_is_in_the_mode_of_the_layer(training: bool) -> None:
    assert ElasticBatchNorm2d(IN).train(training).fixed(Architecture({"in": "2"}), True).training is training


@pytest.mark.parametrize("training", [True, False])
def test_soft_batch_norm_needs_no_mask(training: bool) -> None:
    first, norm = randomised(ElasticConv2d(2, IN, 3), 1), ElasticBatchNorm2d(IN)
    second = randomised(ElasticConv2d(IN, 2, 1), 2)
    with_statistics(norm, norm.norm)
    x = numbers(5, 2, 4, 4)
    y = F.conv2d(x, first.conv.weight, padding=1)
    mean, var = norm.norm.running_mean, norm.norm.running_var
    if training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    assert mean is not None and var is not None
    y = batch_norm(y, norm.norm, mean, var).relu() * IN_MASK[:, None, None]
    expected = F.conv2d(y, second.conv.weight)
    network = nn.Sequential(first, norm, nn.ReLU(), second).train(training)
    close(call(network, x, SHARES), expected)


def layer_norm(x: Tensor, norm: nn.LayerNorm, shares: Tensor) -> Tensor:
    """With mean and variance weighted by shares that sum to one."""
    rows = []
    for row in x.flatten(0, -2):
        mean = sum(share * v for share, v in zip(shares, row, strict=True))
        var = sum(share * (v - mean) ** 2 for share, v in zip(shares, row, strict=True))
        rows.append((row - mean) / torch.sqrt(torch.as_tensor(var) + norm.eps))
    count = x.shape[-1]
    return torch.stack(rows).view(x.shape) * norm.weight[:count] + norm.bias[:count]


@pytest.mark.parametrize("option", range(3))
def test_hard_layer_norm_is_that_of_the_first_features(option: int) -> None:
    layer, count = randomised(ElasticLayerNorm(IN)), IN.values[option]
    x = numbers(2, 3, count)
    found = call(layer, x, {"in": option})
    close(found, layer_norm(x, layer.norm, torch.full((count,), 1 / count, dtype=torch.float64)))
    fixed = fix(layer, Architecture({"in": str(count)}))
    assert isinstance(fixed, nn.LayerNorm)
    close(fixed(x), found)
    assert gradient_entries(layer, found) == {"norm.weight": count, "norm.bias": count}


def test_soft_layer_norm_weighs_mean_and_variance() -> None:
    layer, x = randomised(ElasticLayerNorm(IN)), numbers(2, 3, 4)
    close(call(layer, x, SHARES), layer_norm(x, layer.norm, IN_MASK / 3.1))


def test_gated_layer_norm_is_over_the_units_that_are_left() -> None:
    layer, x = randomised(ElasticLayerNorm(IN)), numbers(2, 3, 4)
    found = call(layer, x, {"in": Gates(weights(-2, 0, 0.5, 1))})
    close(found, layer_norm(x, layer.norm, weights(1, 0, 1, 1) / 3))
    other = Gates(weights(1, 0))  # those of another size with the same label
    close(call(layer, x, {"in": other}), layer_norm(x, layer.norm, weights(1, 1, 1, 1) / 4))


# What they cost


@pytest.mark.parametrize(
    ("make", "shape", "times"),
    [
        (lambda: ElasticLinear(IN, OUT), (), 1),
        (lambda: ElasticLinear(IN, OUT, bias=False), (), 1),
        (lambda: ElasticBatchNorm1d(IN), (3,), 0),
        (lambda: ElasticBatchNorm1d(IN, affine=False), (3,), 0),
        (lambda: ElasticBatchNorm2d(IN), (3, 2), 0),
        (lambda: ElasticConv1d(IN, OUT, TAPS), (9,), 9),
        (lambda: ElasticConv1d(IN, OUT, TAPS, 2, bias=True), (9,), 5),
        (lambda: ElasticConv2d(IN, OUT, 3, bias=True), (9, 8), 72),
        (lambda: ElasticConv2d(IN, OUT, TAPS, 2, transforms=False), (9, 8), 20),
        (lambda: ElasticDepthwiseConv2d(IN, TAPS, 2), (9, 8), 20),
    ],
    ids=lambda value: "",
)
def test_declared_costs_are_those_of_the_derived_layer(
    make: Callable[[], ElasticLayer], shape: tuple[int, ...], times: int
) -> None:
    layer = make().eval()
    for i, o, t in itertools.product(range(3), range(2), range(3)):
        _, architecture = hard(**{"in": i, "out": o, "taps": t})
        parameters, multiply_adds = declared_costs(layer, architecture)
        assert (parameters, times * multiply_adds) == derived_costs(
            layer, architecture, torch.zeros(1, IN.values[i], *shape)
        )
    assert {size.label for size in layer.features} <= {choice.label for choice in layer.choices}


def test_declared_costs_without_inputs_of_channels() -> None:
    for option in IN.options:
        architecture = Architecture({"in": option})
        assert declared_costs(ElasticLayerNorm(IN), architecture) == (2 * int(option), 0)
        assert declared_costs(ElasticParameter((1, 6), IN), architecture) == (6 * int(option), 0)


def test_layer_norm_of_units_whose_gates_are_all_zero() -> None:
    size = Size("size", (2, 4))
    layer = ElasticLayerNorm(size)
    assert torch.isfinite(call(layer, numbers(3, 4).float(), {"size": Gates(torch.zeros(4))})).all()
