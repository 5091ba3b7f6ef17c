"""Elastic attention against torch's own, and against sums over heads that are written out."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.attention import (
    Attention,
    ElasticAttention,
    ElasticFromHeads,
    ElasticToHeads,
    FromHeads,
    ToHeads,
)
from nasengine.elastic import ElasticLayer, Size
from nasengine.errors import ArchitectureError
from nasengine.layers import put
from nasengine.supernet import Gates, choices_of, fix
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

FEATURES, HEADS = Size("features", (4, 6)), Size("heads", (1, 2, 3))
WIDTH, VALUES = Size("width", (2, 3, 5)), Size("values", (1, 4))
SIZES = {size.label: size for size in (FEATURES, HEADS, WIDTH, VALUES)}
LARGEST = {label: len(size.values) - 1 for label, size in SIZES.items()}


class Masks(NamedTuple):
    """Factors of the units of every size."""

    features: Tensor
    heads: Tensor
    width: Tensor
    values: Tensor


def ones(features: int, heads: int, width: int, values: int) -> Masks:
    """Of the first units 1, of the others 0."""
    sizes = zip(SIZES.values(), (features, heads, width, values), strict=True)
    return Masks(*((torch.arange(size.largest) < count).double() for size, count in sizes))


def elastic() -> ElasticAttention:
    return randomised(ElasticAttention(FEATURES, HEADS, WIDTH, VALUES))


def head_of(layer: nn.Module, head: int, width: int) -> tuple[Tensor, Tensor]:
    """Weight (width, inputs) and bias (width,) of one head."""
    linear = layer.linear
    assert isinstance(linear, nn.Linear)
    rows = slice(head * width, (head + 1) * width)
    return linear.weight[rows], linear.bias[rows]


def reference(layer: ElasticAttention, x: Tensor, masks: Masks) -> Tensor:
    """Head by head, with every activation multiplied by its factor; x (batch, tokens, 6)."""
    parts, x = layer.attention, x * masks.features
    merge = parts.merge.linear
    assert isinstance(merge, nn.Linear)
    output = merge.bias
    for head in range(3):
        query, key = (
            x @ weight.T + bias for weight, bias in (head_of(part, head, 5) for part in (parts.query, parts.key))
        )
        weight, bias = head_of(parts.value, head, 4)
        value = (x @ weight.T + bias) * masks.values
        scores = torch.softmax((query * masks.width) @ key.mT / 5**0.5, dim=-1)
        outputs = (scores @ value) * masks.heads[head]
        output = output + outputs @ merge.weight[:, head * 4 : (head + 1) * 4].T
    return output


def test_it_is_the_multihead_attention_of_torch() -> None:
    layer, plain = randomised(ElasticAttention(6, 3, 2)), nn.MultiheadAttention(6, 3, batch_first=True).double()
    parts = layer.attention
    put(plain.in_proj_weight, torch.cat([p.linear.weight for p in (parts.query, parts.key, parts.value)]))
    put(plain.in_proj_bias, torch.cat([p.linear.bias for p in (parts.query, parts.key, parts.value)]))
    put(plain.out_proj.weight, parts.merge.linear.weight)
    put(plain.out_proj.bias, parts.merge.linear.bias)
    x = numbers(2, 5, 6)
    expected, _ = plain(x, x, x)
    close(call(layer, x, {}), expected)
    assert not choices_of(layer)
    close(fix(layer, Architecture({}))(x), expected)


@pytest.mark.parametrize("options", list(itertools.product((0, 1), (0, 1, 2), (0, 2), (0, 1))), ids=str)
def test_hard_sizes_are_slices(options: tuple[int, ...]) -> None:
    layer, mixture = elastic(), dict(zip(SIZES, options, strict=True))
    counts = [size.values[place] for size, place in zip(SIZES.values(), options, strict=True)]
    x = numbers(2, 5, counts[0])
    expected = reference(layer, torch.nn.functional.pad(x, [0, 6 - counts[0]]), ones(*counts))[..., : counts[0]]
    found = call(layer, x, mixture)
    close(found, expected)

    fixed = fix(layer, Architecture({label: SIZES[label].options[place] for label, place in mixture.items()}))
    assert isinstance(fixed, Attention) and not choices_of(fixed)
    close(fixed(x), expected)
    features, heads, width, values = counts
    assert {name: tuple(p.shape) for name, p in fixed.named_parameters() if name.endswith("weight")} == {
        "query.linear.weight": (heads * width, features),
        "key.linear.weight": (heads * width, features),
        "value.linear.weight": (heads * values, features),
        "merge.linear.weight": (features, heads * values),
    }
    sizes = {f"attention.{name}": p.numel() for name, p in fixed.named_parameters()}
    for name, count in gradient_entries(layer, found).items():
        assert name == "attention.key.linear.bias" or count == sizes[name]  # softmax does not see the bias of keys


def soft_masks() -> tuple[dict[str, Tensor], Masks]:
    shares = {"features": weights(0.4, 0.6), "heads": weights(0.2, 0.5, 0.3)}
    shares |= {"width": weights(0.1, 0.2, 0.7), "values": weights(0.9, 0.1)}
    heads, width = weights(1, 0.8, 0.3), weights(1, 1, 0.9, 0.7, 0.7)
    return shares, Masks(weights(1, 1, 1, 1, 0.6, 0.6), heads, width, weights(1, 0.1, 0.1, 0.1))


def test_soft_sizes_multiply_the_activations() -> None:
    (shares, masks), layer, x = soft_masks(), elastic(), numbers(2, 5, 6)
    close(call(layer, x, shares), reference(layer, x, masks))


@pytest.mark.parametrize("label", list(SIZES))
def test_gates_multiply_the_activations(label: str) -> None:
    layer, x, masks = elastic(), numbers(2, 5, 6), ones(6, 3, 5, 4)
    gates = numbers(SIZES[label].largest)
    expected = reference(layer, x, masks._replace(**{label: gates}))
    close(call(layer, x, {**LARGEST, label: Gates(gates)}), expected)


@pytest.mark.parametrize("label", ["", *SIZES])
def test_masks_that_learn_alone_have_the_same_gradients(label: str) -> None:
    mixture = {**LARGEST, label: Gates(numbers(SIZES[label].largest))} if label else soft_masks()[0]
    (alone, fewer), (both, flops) = (learning(elastic(), numbers(2, 5, 6), mixture, too) for too in (False, True))
    for one, other in zip(alone, both, strict=True):
        close(one, other)
    assert fewer < flops


def test_one_width_for_queries_keys_and_values() -> None:
    layer, x, gates = randomised(ElasticAttention(6, 3, WIDTH)), numbers(2, 5, 6), numbers(5)
    both = randomised(ElasticAttention(6, 3, WIDTH, Size("values", (2, 3, 5))))
    both.load_state_dict(layer.state_dict())
    for option in range(3):
        close(call(layer, x, {"width": option}), call(both, x, {"width": option, "values": option}))
    close(call(layer, x, {"width": Gates(gates)}), call(both, x, {"width": Gates(gates), "values": Gates(gates)}))
    assert [choice.label for choice in layer.choices] == ["width"]


def test_leaving_out_a_dimension_of_zeros_changes_nothing() -> None:
    layer, x = elastic(), numbers(2, 5, 6)
    for head, place in itertools.product(range(3), range(3, 5)):
        put(layer.attention.query.linear.weight[head * 5 + place], torch.zeros(6))
        put(layer.attention.query.linear.bias[head * 5 + place], torch.tensor(0.0))
    close(call(layer, x, {**LARGEST, "width": 1}), call(layer, x, LARGEST))


def test_heads_come_and_go() -> None:
    to, back = randomised(ToHeads(4, 3, 2)), randomised(FromHeads(3, 2, 5))
    x = numbers(2, 7, 4)
    y = to(x)
    assert y.shape == (2, 3, 7, 2)
    for head in range(3):
        weight, bias = head_of(to, head, 2)
        close(y[:, head], x @ weight.T + bias)
    z = back(y)
    close(z, y.permute(0, 2, 1, 3).reshape(2, 7, 6) @ back.linear.weight.T + back.linear.bias)


def test_without_inheritance_the_weights_are_new() -> None:
    layer, architecture = elastic(), Architecture({label: size.options[0] for label, size in SIZES.items()})
    new, kept = (dict(fix(layer, architecture, inherit).named_parameters()) for inherit in (False, True))
    assert all(p.shape == kept[name].shape and p.dtype == torch.float64 for name, p in new.items())
    assert not any(torch.equal(p, kept[name]) for name, p in new.items())


def test_weights_outside_the_slices_are_not_read() -> None:
    layer, x, mixture = elastic(), numbers(2, 5, 4), dict.fromkeys(SIZES, 0)
    before = call(layer, x, mixture)
    parts = layer.attention
    for part, width, kept in ((parts.query, 5, 2), (parts.key, 5, 2), (parts.value, 4, 1)):
        inside = torch.zeros(3, width, 6, dtype=torch.bool)
        inside[:1, :kept, :4] = True
        put(part.linear.weight, part.linear.weight.where(inside.flatten(0, 1), torch.nan))
        put(part.linear.bias, part.linear.bias.where(inside[..., 0].flatten(), torch.nan))
    assert torch.equal(call(layer, x, mixture), before)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (ElasticAttention(FEATURES, 3, 2), (2, 5, 6), "ElasticToHeads must get the 4 that choice 'features' decides"),
        (ElasticToHeads(6, 3, 2, True), (2, 5, 4), "ElasticToHeads must get the 6 inputs, but got 4"),
        (ElasticFromHeads(HEADS, 2, 5), (2, 3, 5, 2), "ElasticFromHeads must get the 1 that choice 'heads' decides"),
        (ElasticFromHeads(3, WIDTH, 5), (2, 3, 5, 5), "ElasticFromHeads must get the 2 that choice 'width' decides"),
    ],
    ids=["features", "inputs", "heads", "width"],
)
def test_inputs_of_another_size_are_refused(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        call(layer, torch.ones(shape), dict.fromkeys(SIZES, 0))


def test_importance_is_the_size_of_the_weights_that_read() -> None:
    parts = elastic().attention
    query, value, merge = parts.query, parts.value, parts.merge
    assert isinstance(query, ElasticToHeads) and isinstance(value, ElasticToHeads)
    assert isinstance(merge, ElasticFromHeads)
    found = query.importance(WIDTH)
    assert found is not None
    close(found, torch.stack([query.linear.weight[place::5].abs().sum() for place in range(5)]))
    features = query.importance(FEATURES)
    assert features is not None
    close(features, query.linear.weight.abs().sum(0))
    assert query.importance(HEADS) is None and value.importance(VALUES) is None and merge.importance(FEATURES) is None
    assert not found.requires_grad and not features.requires_grad
    heads, values = merge.importance(HEADS), merge.importance(VALUES)
    assert heads is not None and values is not None and not heads.requires_grad
    close(heads, torch.stack([merge.linear.weight[:, 4 * head :][:, :4].abs().sum() for head in range(3)]))
    close(values, torch.stack([merge.linear.weight[:, place::4].abs().sum() for place in range(4)]))


@pytest.mark.parametrize("options", list(itertools.product((0, 1), (0, 1, 2), (0, 2), (0, 1))), ids=str)
def test_declared_costs_are_those_of_the_derived_layers(options: tuple[int, ...]) -> None:
    counts = {size.label: size.values[place] for size, place in zip(SIZES.values(), options, strict=True)}
    architecture, layer, tokens = Architecture({label: str(count) for label, count in counts.items()}), elastic(), 7
    parts = [part for part in layer.attention.children() if isinstance(part, ElasticLayer)]
    assert len(parts) == 4
    total = [0, 0]
    for part in parts:
        parameters, work = declared_costs(part, architecture)
        shape = (1, tokens, counts["features"])
        if isinstance(part, ElasticFromHeads):
            shape = (1, counts["heads"], tokens, counts["values"])  # type: ignore[assignment]
        assert (parameters, tokens * work) == derived_costs(part, architecture, torch.zeros(shape).double())
        total = [total[0] + parameters, total[1] + tokens * work]
    parameters, work = declared_costs(layer, architecture)
    total = [total[0] + parameters, total[1] + tokens**2 * work]
    assert tuple(total) == derived_costs(layer, architecture, torch.zeros(1, tokens, counts["features"]).double())
