"""The networks of the space against arithmetic and calculation without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.budget import CostModel
from nasengine.cost import multiply_adds, parameters
from nasengine.elastic import ElasticDepth, ElasticResolution
from nasengine.layers import ElasticDepthwiseConv2d
from nasengine.seeding import generator
from nasengine.supernet import Supernet, fix
from nasengine.task import Shapes
from nasengine.units import feature_sizes, importance, order_by, permute
from search_spaces.ofa import OFA, InvertedResidual, divisible

IMAGENET, CIFAR, DIGITS = Shapes((3, 224, 224), 1000), Shapes((3, 32, 32), 10), Shapes((1, 8, 8), 10)
SPACE = OFA()
WIDTHS, STRIDES, SQUEEZED = (24, 40, 80, 112, 160), (2, 2, 2, 1, 2), (False, True, False, True, True)
SMALL = OFA(width=0.125, units=2, depths=(1, 2), kernels=(3, 5), expands=(1, 2))
LARGE = OFA(shape="cifar", width=0.125, units=5, depths=(1, 2), kernels=(3, 5, 7), expands=(1, 2), resolutions=(8, 12))


# The arithmetic of the published networks, without a network


@dataclasses.dataclass
class Sum:
    """Parameters and multiply-adds of layers, at a side in pixels."""

    side: int
    parameters: int = 0
    multiply_adds: int = 0

    def convolve(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        self.side = -(-self.side // stride)
        weights = inputs // groups * outputs * kernel**2
        self.parameters += weights + 2 * outputs  # the batch norm
        self.multiply_adds += weights * self.side**2

    def connect(self, inputs: int, outputs: int, bias: bool) -> None:
        self.parameters += inputs * outputs + outputs * bias
        self.multiply_adds += inputs * outputs

    def block(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, squeeze: bool) -> None:
        if hidden != inputs:
            self.convolve(inputs, hidden)
        self.convolve(hidden, hidden, kernel, stride, groups=hidden)
        if squeeze:
            middle = {18: 24, 30: 32, 36: 40, 60: 64, 84: 88}.get(hidden // 4, hidden // 4)
            self.connect(hidden, middle, bias=True)
            self.connect(middle, hidden, bias=True)
        self.convolve(hidden, outputs)

    def head(self, inputs: int, classes: int, bias: bool) -> None:
        self.convolve(inputs, 960)
        self.connect(960, 1280, bias)
        self.connect(1280, classes, bias=True)


def published(architecture: Mapping[str, str], side: int, stem: int, strides: tuple[int, ...], classes: int) -> Sum:
    total = Sum(side)
    total.convolve(3, 16, 3, stem)
    total.block(16, 16, 16, 3, 1, False)
    inputs = 16
    for unit, (width, stride, squeeze) in enumerate(zip(WIDTHS, strides, SQUEEZED, strict=True), start=1):
        for block in range(1, int(architecture[f"unit{unit}/depth"]) + 1):
            expand = int(architecture[f"unit{unit}/block{block}/expand"])
            kernel = int(architecture.get(f"unit{unit}/block{block}/kernel", "7"))
            total.block(inputs, inputs * expand, width, kernel, stride if block == 1 else 1, squeeze)
            inputs = width
    total.head(160, classes, bias=False)
    return total


def measured(space: OFA, architecture: Architecture, shapes: Shapes) -> tuple[int, int]:
    with torch.device("meta"):
        network = space.build(architecture, shapes)
    return parameters(network), multiply_adds(lambda: fix(network, architecture), shapes)


def test_the_arithmetic_gives_mobilenet_v3_large() -> None:
    """5,483,032 parameters and 217 million multiply-adds are those of torchvision's, whose mixing has a bias."""
    rows = [(3, 16, 16, 1, 0), (3, 64, 24, 2, 0), (3, 72, 24, 1, 0), (5, 72, 40, 2, 1), *[(5, 120, 40, 1, 1)] * 2]
    rows += [(3, 240, 80, 2, 0), (3, 200, 80, 1, 0), *[(3, 184, 80, 1, 0)] * 2, (3, 480, 112, 1, 1)]
    rows += [(3, 672, 112, 1, 1), (5, 672, 160, 2, 1), *[(5, 960, 160, 1, 1)] * 2]
    total, inputs = Sum(224), 16
    total.convolve(3, 16, 3, 2)
    for kernel, hidden, outputs, stride, squeeze in rows:
        total.block(inputs, hidden, outputs, kernel, stride, bool(squeeze))
        inputs = outputs
    total.head(160, 1000, bias=True)
    assert (total.parameters, total.multiply_adds) == (5_483_032, 216_589_760)


def test_the_largest_published_network() -> None:
    choices = SPACE.choices(IMAGENET)
    largest = SPACE.largest(choices)
    total = published(largest, 224, 2, STRIDES, 1000)
    assert (total.parameters, total.multiply_adds) == (7_664_760, 566_170_656)
    assert measured(SPACE, largest, IMAGENET) == (7_664_760, 566_170_656)


@pytest.mark.parametrize(
    ("space", "shapes", "stem", "strides", "millions"),
    [
        (OFA(kernels=(7,), resolutions=()), IMAGENET, 2, STRIDES, (150, 565)),
        (OFA(kernels=(7,), resolutions=(), width=1.0), CIFAR, 1, (1, 2, 2, 1, 2), (46, 180)),
    ],
    ids=["imagenet", "cifar"],
)
def test_costs_of_the_published_curves(
    space: OFA, shapes: Shapes, stem: int, strides: tuple[int, ...], millions: tuple[int, int]
) -> None:
    """The ends of the curves of arXiv:2407.06167, whose kernels are fixed at 7."""
    choices, side = space.choices(shapes), shapes.input[1]
    for architecture, ends in zip((space.smallest(choices), space.largest(choices)), millions, strict=True):
        total = published(architecture, side, stem, strides, shapes.outputs)
        assert measured(space, architecture, shapes) == (total.parameters, total.multiply_adds)
        assert total.multiply_adds == pytest.approx(1e6 * ends, rel=0.02)


def test_samples_of_the_published_space_cost_what_arithmetic_says() -> None:
    space = OFA(resolutions=(132, 176, 224))
    choices, rng, model = space.choices(IMAGENET), generator(0), CostModel(space, IMAGENET)
    for _ in range(5):
        architecture = space.sample(choices, rng)
        total = published(architecture, int(architecture["resolution"]), 2, STRIDES, 1000)
        assert measured(space, architecture, IMAGENET) == (total.parameters, total.multiply_adds)
        assert model.of(architecture) == (total.parameters, total.multiply_adds)


@pytest.mark.parametrize(
    ("channels", "found"), [(1, 8), (8, 8), (11, 16), (12, 16), (20, 24), (18, 24), (17.5, 16), (27, 32), (83, 80)]
)
def test_widths_are_multiples_of_8(channels: float, found: int) -> None:
    assert divisible(channels) == found


# The network


def random_network(space: OFA, shapes: Shapes, seed: int = 0) -> Supernet:
    """A supernet in float64 in evaluation, of which no weight and no statistic is a special number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = space.supernet(shapes, F.cross_entropy).double().eval()
        for name, tensor in supernet.state_dict().items():
            if tensor.is_floating_point():
                spread = 0.3 if "matrices" in name or "running_mean" in name or "bias" in name else 0.1
                tensor += spread * torch.randn_like(tensor)
                if "running_var" in name:
                    tensor.abs_()
    return supernet


def images(shapes: Shapes, count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, *shapes.input, generator=generator(seed), dtype=torch.float64)


class Reference:
    """A network as a plain calculation on the tensors of its state, in their order."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state: Iterator[Tensor] = iter(state.values())

    def convolve(self, x: Tensor, stride: int = 1, depthwise: bool = False) -> Tensor:
        weight = next(self.state)
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight) if depthwise else 1)
        scale, shift, mean, variance, _ = (next(self.state) for _ in range(5))
        return (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[
            :, None, None
        ]

    def squeeze(self, x: Tensor) -> Tensor:
        first, first_bias, second, second_bias = (
            next(self.state).flatten(1) if i % 2 == 0 else next(self.state) for i in range(4)
        )
        middle = (x.mean((2, 3)) @ first.T + first_bias).clamp(min=0)
        return x * ((middle @ second.T + second_bias + 3).clamp(0, 6) / 6)[:, :, None, None]

    def block(self, x: Tensor, stride: int, swish: bool, squeeze: bool, expands: bool = True) -> Tensor:
        activation = hard_swish if swish else torch.relu
        y = activation(self.convolve(x)) if expands else x
        y = activation(self.convolve(y, stride, depthwise=True))
        y = self.convolve(self.squeeze(y) if squeeze else y)
        return x + y if stride == 1 and x.shape[1] == y.shape[1] else y


def hard_swish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def test_the_network_is_the_published_calculation() -> None:
    """h-swish in stem, head and from unit 3 on, ReLU before; squeeze after the depthwise activation."""
    supernet, x = random_network(LARGE, CIFAR), images(CIFAR)
    architecture = LARGE.read("r=12 d=2,1,2,1,2 k=3,5,7,3,5,7,3,5 e=2,1,2,2,1,2,2,1")
    network = supernet.extract(architecture)
    reference = Reference(network.state_dict())
    y = F.interpolate(x, (12, 12), mode="bilinear", antialias=True)
    y = hard_swish(reference.convolve(y))
    y = reference.block(y, 1, swish=False, squeeze=False, expands=False)
    for unit, (stride, depth) in enumerate(zip((1, 2, 2, 1, 2), (2, 1, 2, 1, 2), strict=True)):
        for block in range(depth):
            y = reference.block(y, stride if block == 0 else 1, swish=unit >= 2, squeeze=SQUEEZED[unit])
    y = hard_swish(reference.convolve(y)).mean((2, 3))
    y = hard_swish(y @ next(reference.state).flatten(1).T)
    logits = y @ next(reference.state).T + next(reference.state)
    assert next(reference.state, None) is None
    assert torch.allclose(network(x), logits, atol=1e-12)
    assert torch.allclose(supernet(x, supernet.hard(architecture)), logits, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "settings", "widths"),
    [
        (IMAGENET, {}, [16, 16, 24, 40, 80, 112, 160, 960, 1280]),
        (IMAGENET, {"width": 1.2}, [24, 24, 32, 48, 96, 136, 192, 1152, 1536]),
        (CIFAR, {}, [8, 8, 16, 24, 40, 56, 80, 480, 640]),
        (DIGITS, {}, [8, 8, 16, 24, 120, 160]),
        (DIGITS, {"units": 1, "width": 1.0}, [16, 16, 24, 144, 192]),
    ],
)
def test_widths(shapes: Shapes, settings: dict[str, float], widths: list[int]) -> None:
    space = dataclasses.replace(SPACE, **settings)  # type: ignore[arg-type]
    smallest = space.smallest(space.choices(shapes))
    with torch.device("meta"):
        network = space.build(smallest, shapes)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    blocks = [m for m in network.modules() if isinstance(m, InvertedResidual)]
    outputs = [norms[0].num_features, *[projections(block) for block in blocks]]
    assert list(dict.fromkeys(outputs)) == list(dict.fromkeys(widths[:-2]))
    assert [m.out_channels for m in convolutions[-2:]] == widths[-2:]


def projections(block: InvertedResidual) -> int:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


@pytest.mark.parametrize(
    ("shapes", "sides"),
    [(IMAGENET, [112, 112, 56, 28, 14, 14, 7]), (CIFAR, [32, 32, 32, 16, 8, 8, 4]), (DIGITS, [8, 8, 8, 4])],
)
def test_sides_of_the_maps(shapes: Shapes, sides: list[int]) -> None:
    space, found = OFA(resolutions=()), list[int]()
    smallest = space.smallest(space.choices(shapes))
    with torch.device("meta"):
        network = space.build(smallest, shapes).eval()
        for name, module in network.named_modules():
            if name.count(".") == 1 and name.split(".")[1] in (
                "stem",
                "first",
                *(f"unit{unit}" for unit in range(1, 6)),
            ):
                module.register_forward_hook(lambda module, inputs, output: found.append(output.shape[-1]))
        network(torch.empty(1, *shapes.input))
    assert found == sides


# Elasticity


def test_smaller_networks_are_slices() -> None:
    supernet, x = random_network(LARGE, CIFAR), images(CIFAR)
    rng, choices = generator(2), LARGE.choices(CIFAR)
    found = []
    for architecture in [
        LARGE.largest(choices),
        LARGE.smallest(choices),
        *(LARGE.sample(choices, rng) for _ in range(3)),
    ]:
        found.append(supernet.extract(architecture)(x))
        assert torch.allclose(found[-1], supernet(x, supernet.hard(architecture)), atol=1e-12)
    assert not any(torch.allclose(one, other) for one, other in pairwise(found))


def depthwise(network: nn.Module) -> list[ElasticDepthwiseConv2d]:
    """The elastic depthwise convolutions, without the fixed one of the first block."""
    return [m for m in network.modules() if isinstance(m, ElasticDepthwiseConv2d)][1:]


def kernels(network: nn.Module) -> list[Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1][1:]


def with_kernels(space: OFA, side: str) -> Architecture:
    largest = space.largest(space.choices(DIGITS))
    return Architecture({label: side if label.endswith("kernel") else option for label, option in largest.items()})


@pytest.mark.parametrize("transforms", [True, False])
def test_smaller_kernels_start_as_the_centres(transforms: bool) -> None:
    supernet = OFA(width=0.125, units=1, transforms=transforms).supernet(DIGITS, F.cross_entropy)
    space = supernet.space
    assert isinstance(space, OFA)
    for side, margin in (("7", 0), ("5", 1), ("3", 2)):
        small = kernels(supernet.extract(with_kernels(space, side)))
        for layer, kernel in zip(depthwise(supernet.network), small, strict=True):
            assert torch.equal(kernel, layer.conv.weight[:, :, margin : 7 - margin, margin : 7 - margin])
    matrices = [name for name, _ in supernet.named_parameters() if "matrices" in name]
    assert len(matrices) == (2 * 4 if transforms else 0)


def test_kernel_3_is_the_transformed_centre_of_the_transformed_5() -> None:
    space = OFA(width=0.125, units=1)
    supernet = random_network(space, DIGITS)
    for side in ("5", "3"):
        small = kernels(supernet.extract(with_kernels(space, side)))
        for layer, kernel in zip(depthwise(supernet.network), small, strict=True):
            expected, tensors = layer.conv.weight[:, 0], dict(layer.named_parameters())
            for taps in (5, 3) if side == "3" else (5,):
                (matrix,) = [tensor for tensor in tensors.values() if tensor.shape == (taps**2, taps**2)]
                centre = expected[:, 1:-1, 1:-1].reshape(-1, taps**2)
                expected = torch.einsum("oi,ci->co", matrix, centre).view(-1, taps, taps)
            assert torch.allclose(kernel[:, 0], expected, atol=1e-14)


def test_gradients_outside_an_architecture_are_zero() -> None:
    space = OFA(width=0.125, units=2, depths=(1, 2), expands=(1, 2, 3))
    supernet, x = random_network(space, DIGITS).train(), images(DIGITS, 8)
    supernet(x, supernet.hard(space.read("d=1,2 k=5,3,7 e=2,3,1"))).square().sum().backward()
    one, two = (module.layers for module in supernet.network.modules() if isinstance(module, ElasticDepth))
    assert all(parameter.grad is None for parameter in one[1].parameters())
    whole, sides = 3 * 8, {5: {25}, 3: {25, 9}, 7: set[int]()}
    for block, kernel, expand in ((one[0], 5, 2), (two[0], 3, 3), (two[1], 7, 1)):
        matrices = {
            len(parameter)
            for name, parameter in block.named_parameters()
            if "matrices" in name and parameter.grad is not None and bool(parameter.grad.any())
        }
        assert matrices == sides[kernel]
        sliced = [(p.grad, dim) for p in block.parameters() for dim, size in enumerate(p.shape) if size == whole]
        assert len(sliced) == (10 if block in two else 7)
        for gradient, dim in sliced:
            assert gradient is not None
            inside, outside = torch.tensor_split(gradient, [expand * 8], dim)
            assert bool(inside.any()) and not bool(outside.any())


def test_sorting_channels_leaves_the_largest_network_as_it_is() -> None:
    space = OFA(width=0.125, units=3, depths=(1, 2), expands=(1, 3))
    supernet, x = random_network(space, CIFAR), images(CIFAR)
    largest, smallest = (supernet.hard(find(supernet.choices)) for find in (space.largest, space.smallest))
    before = [supernet(x, mixture) for mixture in (largest, smallest)]
    sizes = [size for size in feature_sizes(supernet.network) if size.label.endswith("expand")]
    orders = {size: order_by(importance(supernet.network, size)) for size in sizes}
    assert len({size.label for size in sizes}) == 6
    permute(supernet.network, orders)
    after = [supernet(x, mixture) for mixture in (largest, smallest)]
    assert torch.allclose(before[0], after[0], atol=1e-12)
    assert not torch.allclose(before[1], after[1])
    for size in sizes:
        scores = importance(supernet.network, size)
        assert torch.equal(scores, scores.sort(descending=True).values)


def test_resolutions_resize_the_images() -> None:
    space = dataclasses.replace(SMALL, resolutions=(8, 12, 16))
    supernet, x = random_network(space, CIFAR), images(CIFAR)
    smallest = space.smallest(supernet.choices)
    alone = []
    for pixels in (8, 12, 16):
        fixed = dataclasses.replace(SMALL, resolutions=(pixels,)).supernet(CIFAR, F.cross_entropy).double().eval()
        assert isinstance(supernet.network, ElasticResolution) and isinstance(fixed.network, nn.Sequential)
        fixed.network[1].load_state_dict(supernet.network.network.state_dict())
        architecture = smallest.replace("resolution", str(pixels))
        alone.append(supernet(x, supernet.hard(architecture)))
        assert "resolution" not in fixed.choices
        assert torch.equal(alone[-1], fixed(x, {label: 0 for label in fixed.choices}))
        assert torch.allclose(alone[-1], supernet.extract(architecture)(x), atol=1e-12)
    shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    soft = supernet(x, {**supernet.hard(smallest), "resolution": shares})
    assert torch.allclose(soft, 0.5 * alone[0] + 0.2 * alone[1] + 0.3 * alone[2], atol=1e-12)
    assert not torch.allclose(alone[0], alone[1])
