"""Sizes, and the choices of depth and resolution, against sums that are written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.elastic import (
    ElasticDepth,
    ElasticLayer,
    ElasticResolution,
    Resize,
    Size,
    active,
    cut,
    largest,
    mask,
    steps,
    value,
)
from nasengine.errors import ArchitectureError
from nasengine.layers import ElasticLinear
from nasengine.supernet import Gates, MixedOp, Mixture, choices_of, fix
from tests.nasengine.calls import call, numbers, randomised, weights

SIZE = Size("width", (2, 3, 5))


class Probe(nn.Module):
    """What a size is inside a call."""

    def __init__(self, size: Size | int) -> None:
        super().__init__()
        self.size = size
        self.seen: list[tuple[int, Tensor | None]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((active(self.size), mask(self.size)))
        return x


def seen(size: Size | int, mixture: Mixture) -> tuple[int, Tensor | None]:
    probe = Probe(size)
    call(probe, torch.zeros(1), mixture)
    return probe.seen[0]


# Sizes


def test_a_size_is_an_ordinal_choice() -> None:
    assert SIZE.choice == Choice("width", ("2", "3", "5"), ordinal=True)
    assert SIZE.largest == largest(SIZE) == 5
    architecture = Architecture({"width": "3"})
    assert SIZE.of(architecture) == value(SIZE, architecture) == 3
    assert largest(7) == value(7, architecture) == 7
    ratios = Size("ratio", (8, 16), ("x1", "x2"))
    assert ratios.of(Architecture({"ratio": "x2"})) == 16
    assert Size("width", [2, 3, 5]) == SIZE  # type: ignore[arg-type]
    assert hash(Size("width", (2, 3, 5), ("2", "3", "5"))) == hash(SIZE)


def test_a_mapped_size_is_decided_by_the_same_options() -> None:
    half = SIZE.map(lambda width: max(2, width // 2))
    assert half == Size("width", (2, 2, 2), ("2", "3", "5"))
    assert half.choice == SIZE.choice
    assert half.of(Architecture({"width": "5"})) == 2


@pytest.mark.parametrize(
    ("values", "options"),
    [((), ()), ((3, 2), ()), ((0, 1), ()), ((2, 2.5), ()), ((2, 3), ("a",)), (("2", 3), ())],
    ids=str,
)
def test_values_ascend_from_one(values: tuple[int, ...], options: tuple[str, ...]) -> None:
    with pytest.raises(
        ArchitectureError, match=r"choice 'width' must be ascending whole numbers from 1 on.*but got \["
    ):
        Size("width", values, options)


def test_two_values_are_two_options() -> None:
    with pytest.raises(ArchitectureError, match="must have one or more different options"):
        _ = Size("width", (2, 2)).choice


def test_a_mixture_decides_how_many_units_are_active() -> None:
    assert seen(SIZE, {"width": 1}) == (3, None)
    assert seen(4, {}) == (4, None)
    count, factors = seen(SIZE, {"width": weights(0.2, 0.5, 0.3)})
    assert count == 5 and factors is not None
    torch.testing.assert_close(factors, weights(1.0, 1.0, 0.8, 0.3, 0.3))


def test_gates_are_the_factors_of_a_size_with_as_many_units() -> None:
    gates = Gates(weights(1, 2, 0, -1, 3))
    count, factors = seen(SIZE, {"width": gates})
    assert count == 5 and factors is gates.values
    assert seen(SIZE.map(lambda width: width + 1), {"width": gates}) == (6, None)


def test_steps_and_masks_carry_gradient() -> None:
    assert steps(SIZE, weights(1)).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    shares = weights(0.2, 0.5, 0.3).requires_grad_()
    _, factors = seen(SIZE, {"width": shares})
    assert factors is not None
    (slope,) = torch.autograd.grad(factors[2], shares)
    assert slope.tolist() == [0, 1, 1]


def test_a_tensor_is_cut_only_where_it_is_larger() -> None:
    whole = numbers(4, 5, 6)
    assert cut(whole) is cut(whole, 4, 5) is whole
    assert torch.equal(cut(whole, 4, 2, 3), whole[:, :2, :3])


def test_a_mask_is_computed_once_a_call() -> None:
    one, other = Probe(SIZE), Probe(Size("width", (2, 3, 5)))
    network, mixture = nn.Sequential(one, other), {"width": weights(0.2, 0.5, 0.3)}
    call(network, torch.zeros(1), mixture)
    call(network, torch.zeros(1), {"width": weights(0, 0, 1)})
    assert one.seen[0][1] is other.seen[0][1]
    assert one.seen[1][1] is not one.seen[0][1]


def test_a_size_needs_a_mixture() -> None:
    with pytest.raises(ArchitectureError, match=r"Choice 'width' must be decided by a mixture: call the supernet"):
        active(SIZE)
    with pytest.raises(ArchitectureError, match="Choice 'width' must be decided"):
        seen(SIZE, {"other": 1})


def test_a_label_has_one_set_of_options() -> None:
    shared = nn.Sequential(ElasticLinear(2, SIZE), ElasticLinear(SIZE.map(lambda width: 2 * width), 2))
    assert list(choices_of(shared)) == ["width"]
    with pytest.raises(ArchitectureError, match="choice 'width' must have the same options"):
        choices_of(nn.Sequential(ElasticLinear(2, SIZE), ElasticLinear(Size("width", (2, 5)), 2)))
    with pytest.raises(ArchitectureError, match="choice 'width' must have the same options"):
        choices_of(nn.Sequential(ElasticLinear(2, SIZE), MixedOp("width", {o: nn.Identity() for o in "235"})))


def test_a_layer_reads_nothing_unless_it_says_so() -> None:
    class Bare(ElasticLayer):
        def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
            return self

    bare = Bare()
    assert bare.importance(SIZE) is None
    bare.permute(SIZE, torch.arange(5))
    bare.scale(SIZE, torch.ones(5))
    assert (bare.features, bare.weights, bare.work) == ((), (), ())


# Depth


class Counted(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.factor * x) + 1


def depth(least: int = 1) -> ElasticDepth:
    return ElasticDepth("depth", [Counted(0.5 + place) for place in range(4)], least)


@pytest.mark.parametrize("least", [1, 2, 4])
def test_hard_depth_is_the_first_layers(least: int) -> None:
    for option, count in enumerate(range(least, 5)):
        network, x, expected = depth(least), numbers(2, 3), numbers(2, 3)
        for place in range(count):
            expected = torch.tanh((0.5 + place) * expected) + 1
        assert torch.equal(call(network, x, {"depth": option}), expected)
        assert [layer.calls for layer in network.layers if isinstance(layer, Counted)] == [1] * count + [0] * (
            4 - count
        )
    assert network.choices == (Choice("depth", tuple(map(str, range(least, 5))), ordinal=True),)


def test_the_layers_that_an_option_runs() -> None:
    network = depth(least=3)
    first, second, third, fourth = network.layers
    three, four = [(first, "3"), (second, "3"), (third, "3")], [(first, "4"), (second, "4"), (third, "4")]
    assert network.parts() == [*three, *four, (fourth, "4")]


def test_soft_depth_weighs_every_layer_by_its_share() -> None:
    x = numbers(2, 3)
    f = [lambda x, k=k: torch.tanh((0.5 + k) * x) + 1 for k in range(4)]
    first = f[1](f[0](x))
    second = (1 - 0.8) * first + 0.8 * f[2](first)
    third = (1 - 0.3) * second + 0.3 * f[3](second)
    found = call(depth(least=2), x, {"depth": weights(0.2, 0.5, 0.3)})
    torch.testing.assert_close(found, third, rtol=1e-12, atol=1e-12)


def test_gates_of_layers() -> None:
    x, gates = numbers(2, 3), weights(7, 0.5, -1, 0)
    expected = torch.tanh(0.5 * x) + 1  # the least depth has no gate
    for place in (1, 2):
        y = torch.tanh((0.5 + place) * expected) + 1
        expected = expected + gates[place] * (y - expected)
    torch.testing.assert_close(call(depth(), x, {"depth": Gates(gates)}), expected)


def test_soft_depth_needs_layers_that_keep_the_shape() -> None:
    layers = [nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)]
    assert call(ElasticDepth("depth", layers, 2), torch.zeros(1, 3), {"depth": 1}).shape == (1, 2)
    with pytest.raises(ArchitectureError, match=r"keep the shape, but layer 3 makes \(1, 2\) of \(1, 4\)\.$"):
        call(ElasticDepth("depth", layers, 2), torch.zeros(1, 3), {"depth": torch.tensor([0.5, 0.5])})
    widening = ElasticDepth("depth", [nn.Linear(3, 4), nn.Linear(4, 4)])
    assert call(widening, torch.zeros(1, 3), {"depth": torch.tensor([0.5, 0.5])}).shape == (1, 4)


@pytest.mark.parametrize("least", [0, 3])
def test_the_least_depth_is_one_of_the_layers(least: int) -> None:
    with pytest.raises(
        ArchitectureError, match=rf"depth of choice 'd' must be from 1 to its 2 layers, but got {least}"
    ):
        ElasticDepth("d", [nn.Identity(), nn.Identity()], least)


def test_fixed_depth_fixes_what_is_inside() -> None:
    inner = [MixedOp(f"op{place}", {"once": Counted(1.0), "twice": Counted(2.0)}) for place in range(3)]
    network = ElasticDepth("depth", inner)
    architecture = Architecture({"depth": "2", "op0": "twice", "op1": "once", "op2": "once"})
    fixed = fix(network, architecture)
    x = numbers(2)
    assert not choices_of(fixed)
    assert len([module for module in fixed.modules() if isinstance(module, Counted)]) == 2
    assert torch.equal(fixed(x), torch.tanh(torch.tanh(2 * x) + 1) + 1)
    assert len(network.layers) == 3


def test_a_layer_that_is_used_twice_stays_one_layer() -> None:
    tied, mixed = ElasticLinear(SIZE, SIZE), ElasticLinear(SIZE, SIZE)
    ops = [MixedOp(f"op{place}", {"tied": mixed, "skip": nn.Identity()}) for place in range(2)]
    network = nn.Sequential(ElasticLinear(2, SIZE), tied, nn.Sequential(nn.Tanh(), tied), *ops)
    fixed = fix(network, Architecture({"width": "3", "op0": "tied", "op1": "tied"}))
    assert fixed[1] is fixed[2][1] and fixed[1] is not fixed[3]  # type: ignore[index]
    assert fixed[3] is fixed[4]  # type: ignore[index]
    x = numbers(4, 2)
    randomised(network)
    fixed = fix(network, Architecture({"width": "3", "op0": "tied", "op1": "skip"}))
    torch.testing.assert_close(fixed(x), call(network, x, {"width": 1, "op0": 0, "op1": 1}))


# Resolution


def bilinear(x: Tensor, pixels: int) -> Tensor:
    """Resizes to `pixels` a side by triangles as wide as the step, (batch, channels, height, width)."""

    def matrix(size: int) -> Tensor:
        scale = size / pixels
        reach = max(scale, 1.0)
        centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * scale
        places = torch.arange(size, dtype=torch.float64) + 0.5
        triangles = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
        return triangles / triangles.sum(1, keepdim=True)

    return matrix(x.shape[2]) @ x @ matrix(x.shape[3]).T


@pytest.mark.parametrize("pixels", [2, 3, 6, 8])
def test_resize_is_bilinear_with_antialiasing(pixels: int) -> None:
    x = numbers(2, 3, 6, 5)
    torch.testing.assert_close(Resize(pixels)(x), bilinear(x, pixels))


def test_images_of_the_right_size_are_left_alone() -> None:
    x = numbers(2, 3, 6, 6)
    assert Resize(6)(x) is x


class Corner(nn.Module):
    """Something that depends on the number of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x).sum((2, 3)) + x.shape[-1]


def test_a_resolution_is_the_weighted_sum_of_outputs() -> None:
    network, x = ElasticResolution("pixels", (3, 4, 6), Corner()), numbers(2, 3, 6, 6)
    outputs = [torch.tanh(bilinear(x, pixels)).sum((2, 3)) + pixels for pixels in (3, 4, 6)]
    for option, output in enumerate(outputs):
        torch.testing.assert_close(call(network, x, {"pixels": option}), output)
    shares = weights(0.2, 0.5, 0.3).requires_grad_()
    found = call(network, x, {"pixels": shares})
    torch.testing.assert_close(found, 0.2 * outputs[0] + 0.5 * outputs[1] + 0.3 * outputs[2])
    (slope,) = torch.autograd.grad(found.sum(), shares)
    torch.testing.assert_close(slope, torch.stack([output.sum() for output in outputs]))
    fixed = fix(network, Architecture({"pixels": "4"}))
    torch.testing.assert_close(fixed(x), outputs[1])
    assert not choices_of(fixed)


def test_resolutions_have_no_gates() -> None:
    with pytest.raises(ArchitectureError, match="Choice 'pixels' is between resolutions, which have no gates"):
        call(ElasticResolution("pixels", (3, 4), Corner()), numbers(1, 1, 6, 6), {"pixels": Gates(torch.ones(4))})


def test_choices_inside_a_resolution_belong_to_the_network() -> None:
    inner = nn.Sequential(Corner(), ElasticLinear(3, SIZE), ElasticLinear(SIZE, 2))
    network = randomised(ElasticResolution("pixels", (3, 6), inner))
    assert list(choices_of(network)) == ["pixels", "width"]
    x = numbers(2, 3, 6, 6)
    expected = F.linear(torch.tanh(x).sum((2, 3)) + 6, *parts(inner[1], 3, 3))
    expected = F.linear(expected, *parts(inner[2], 2, 3))
    torch.testing.assert_close(call(network, x, {"pixels": 1, "width": 1}), expected)


def parts(layer: nn.Module, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, ElasticLinear)
    return layer.linear.weight[:outputs, :inputs], layer.linear.bias[:outputs]
