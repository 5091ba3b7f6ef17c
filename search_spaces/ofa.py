"""The space of once-for-all: MobileNetV3 with elastic depth, widths, kernels and resolution."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Literal, NamedTuple

import networkx as nx
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.batch_norm import ConvNorm
from nasengine.elastic import ElasticDepth, ElasticResolution, Resize, Size
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticDepthwiseConv2d
from nasengine.operations import PointwiseConv
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.task import Shapes

RESOLUTION: Final = "resolution"


class Unit(NamedTuple):
    """What is published of a unit: its width, whether it has squeeze-and-excitation, its activation."""

    width: int
    squeeze: bool
    activation: type[nn.Module]


class Shape(NamedTuple):
    """What depends on the size of the images: strides of the stem and the units, and the settings left open."""

    stem: int
    strides: tuple[int, ...]
    width: float
    units: int


STEM: Final = 16
"""Channels of the first convolution and of the first, fixed block."""

UNITS: Final = (
    Unit(24, False, nn.ReLU),
    Unit(40, True, nn.ReLU),
    Unit(80, False, nn.Hardswish),
    Unit(112, True, nn.Hardswish),
    Unit(160, True, nn.Hardswish),
)

SHAPES: Final[Mapping[str, Shape]] = {
    "imagenet": Shape(2, (2, 2, 2, 1, 2), 1.0, 5),
    "cifar": Shape(1, (1, 2, 2, 1, 2), 0.5, 5),
    "digits": Shape(1, (1, 2, 2, 1, 2), 0.5, 2),
}

PUBLISHED_RESOLUTIONS: Final = tuple(range(128, 225, 4))

_GRID: Final = 4
_FORM: Final = "r=RESOLUTION d=DEPTHS k=KERNELS e=EXPANSIONS"


def divisible(channels: float) -> int:
    """The nearest multiple of 8 from 8 on that is not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


@dataclass(frozen=True, kw_only=True)
class OFA(Space):
    """MobileNetV3 of once-for-all: up to 5 units of 2 to 4 blocks with elastic kernels, expansions and resolution.

    Of a unit "unit1/depth" is how many blocks are kept, of a block "unit1/block1/kernel" the side of its depthwise
    convolution and "unit1/block1/expand" how many times its input's channels it has inside; "resolution" is the side
    in pixels to which images are resized. Choices of blocks that are left out are without effect: they take their
    first option, so that equal networks are equal architectures. A tuple of one value is no choice.

    Open settings follow from the images, unless `shape` says otherwise: from 96 pixels on the published network; from
    16 on strides of 1 in the stem and the first unit (as for CIFAR in arXiv:2407.06167) and half of all widths; below
    that two units of it. Resolutions are then the published ones that the images have, or the images' own, 4 and 8
    pixels less. They must be multiples of 4, as the published ones, and have a pixel for every stride to keep; a side
    that a stride does not divide is halved upwards.

    References: Cai, Gan, Wang, Zhang, Han, ICLR 2020, arXiv:1908.09791, sections 3.2 and 3.3; Howard et al., ICCV
    2019, arXiv:1905.02244.

    Differs from the paper: with fewer units the last convolutions have 6 and 8 times the width of the last one, as
    they have with five; weights start as torch's layers do. Dropout (published 0.1) is left to the final training, so
    that a search is deterministic.
    """

    name: ClassVar[str] = "ofa"

    shape: Literal["auto", "imagenet", "cifar", "digits"] = setting(
        "auto", "strides, and what is left open; by the images if auto"
    )
    width: float | None = setting(None, "times the published widths; 1, 0.5, 0.5 by the shape if none", above=0)
    units: int | None = setting(None, "units of blocks; 5, 5, 2 by the shape if none", low=1, high=len(UNITS))
    depths: tuple[int, ...] = setting((2, 3, 4), "blocks a unit can have, consecutive numbers", low=1)
    kernels: tuple[int, ...] = setting((3, 5, 7), "sides of depthwise kernels, odd numbers", low=1)
    expands: tuple[int, ...] = setting((3, 4, 6), "channels inside a block per channel of its input", low=1)
    resolutions: Literal["auto"] | tuple[int, ...] = setting(
        "auto", "pixels a side, multiples of 4; by the shape if auto, as the images are if empty", low=1
    )
    transforms: bool = setting(True, "learned matrices between kernel sizes, else small kernels are the centres")
    se: bool = setting(True, "squeeze-and-excitation in the published units, else in none")
    dropout: float = setting(0.0, "dropout before the classifier in training", low=0, high=0.9)

    def __post_init__(self) -> None:
        validate(self, "space")
        for name in ("depths", "kernels", "expands", "resolutions"):
            values = getattr(self, name)
            rises = values == "auto" or all(a < b for a, b in pairwise(values))
            if not rises or (not values and name != "resolutions"):
                raise SettingError(f"space.{name} must be ascending numbers, but got {_listed(values) or 'none'}.")
        if self.depths[-1] - self.depths[0] >= len(self.depths):
            raise SettingError(
                f"space.depths must be consecutive numbers such as 2,3,4, but got {_listed(self.depths)}."
            )
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise SettingError(f"space.kernels must be odd numbers such as 3,5,7, but got {_listed(self.kernels)}.")
        if len(self.depths) == len(self.kernels) == len(self.expands) == 1:
            raise SettingError(
                "space.depths, space.kernels or space.expands must have two numbers or more to choose from, but got "
                f"{self.depths[0]}, {self.kernels[0]} and {self.expands[0]}."
            )

    # The network

    def cheapest(self, choices: Mapping[str, Choice]) -> Architecture:
        """That of all smallest sizes."""
        return self.smallest(choices)

    def network(self, shapes: Shapes) -> nn.Module:
        if len(shapes.input) != 3:
            raise DataError(
                f"Space 'ofa' needs images (channels, height, width), but one input has shape {shapes.input}; "
                "take other data or another space."
            )
        shape = self._shape(shapes)
        body, resolutions = self._body(shapes, shape), self._resolutions(shapes, shape)
        if len(resolutions) > 1:
            return ElasticResolution(RESOLUTION, resolutions, body)
        return nn.Sequential(*map(Resize, resolutions), body)

    def final(self) -> OFA:
        """With at least the published dropout."""
        return dataclasses.replace(self, dropout=max(self.dropout, 0.1))

    def _shape(self, shapes: Shapes) -> Shape:
        side = min(shapes.input[1:])
        by_size = "imagenet" if side >= 96 else "cifar" if side >= 16 else "digits"
        shape = SHAPES[by_size if self.shape == "auto" else self.shape]
        units = shape.units if self.units is None else self.units
        width = shape.width if self.width is None else self.width
        return Shape(shape.stem, shape.strides[:units], width, units)

    def _resolutions(self, shapes: Shapes, shape: Shape) -> tuple[int, ...]:
        """Pixels a side; empty where images are taken as they are."""
        least = shape.stem * math.prod(shape.strides)
        if self.resolutions != "auto":
            for pixels in self.resolutions:
                if pixels % _GRID or pixels < least:
                    raise SettingError(
                        f"Choice {RESOLUTION!r} must be between multiples of {_GRID} of at least {least} pixels, which "
                        f"the strides can divide, but got {pixels}; change space.resolutions."
                    )
            return self.resolutions
        height, side = shapes.input[1:]
        offered = PUBLISHED_RESOLUTIONS if shape.stem == 2 else (side - 8, side - 4, side)
        if height != side or side < 16:
            return ()
        found = tuple(pixels for pixels in offered if pixels % _GRID == 0 and least <= pixels <= side)
        return found if len(found) > 1 else ()

    def _body(self, shapes: Shapes, shape: Shape) -> nn.Module:
        stem, last = divisible(shape.width * STEM), shape.width * UNITS[shape.units - 1].width
        parts: list[tuple[str, nn.Module]] = [
            ("stem", _convolution(shapes.input[0], stem, 3, shape.stem)),
            ("first", InvertedResidual(stem, stem, stem, 3, 1, nn.ReLU)),
        ]
        inputs = stem
        for place, stride in enumerate(shape.strides):
            outputs = divisible(shape.width * UNITS[place].width)
            parts.append((f"unit{place + 1}", self._unit(place, inputs, outputs, stride)))
            inputs = outputs
        expanded, mixed = divisible(6 * last), divisible(8 * last)
        parts += [
            ("expand", _convolution(inputs, expanded, 1, 1)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("mix", nn.Sequential(PointwiseConv(expanded, mixed), nn.Hardswish(), nn.Flatten())),
            ("classifier", nn.Sequential(nn.Dropout(self.dropout), nn.Linear(mixed, shapes.outputs))),
        ]
        return nn.Sequential(OrderedDict(parts))

    def _unit(self, place: int, inputs: int, outputs: int, stride: int) -> nn.Module:
        blocks = [self._block(place, 1, inputs, outputs, stride)]
        blocks += [self._block(place, number, outputs, outputs, 1) for number in range(2, self.depths[-1] + 1)]
        if len(self.depths) == 1:
            return nn.Sequential(*blocks)
        return ElasticDepth(_depth(place + 1), blocks, self.depths[0])

    def _block(self, place: int, number: int, inputs: int, outputs: int, stride: int) -> nn.Module:
        label, unit = _block(place + 1, number), UNITS[place]
        hidden = _size(f"{label}/expand", self.expands, inputs)
        kernel = _size(f"{label}/kernel", self.kernels)
        squeeze = unit.squeeze and self.se
        return InvertedResidual(inputs, hidden, outputs, kernel, stride, unit.activation, squeeze, self.transforms)

    # Architectures

    def architectures(self, choices: Mapping[str, Choice]) -> int:
        """How many different networks there are: choices of blocks that are left out do not count."""
        blocks, units = len(self.kernels) * len(self.expands), _units(choices)
        resolutions = len(choices[RESOLUTION].options) if RESOLUTION in choices else 1
        return int(resolutions * sum(blocks**depth for depth in self.depths) ** units)

    def _kept(self, architecture: Mapping[str, str], unit: int) -> int:
        """How many blocks a unit keeps."""
        return int(architecture.get(_depth(unit), self.depths[0]))

    def _blocks(self, architecture: Mapping[str, str]) -> list[str]:
        """The labels of the blocks that are kept."""
        units = range(1, _units(architecture) + 1)
        return [_block(unit, 1 + place) for unit in units for place in range(self._kept(architecture, unit))]

    # Forms

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        """A chain of the kept blocks for every unit, and the resolution where it is a choice."""
        graphs: dict[str, nx.DiGraph[str]] = {}
        if RESOLUTION in architecture:
            graphs["input"] = nx.DiGraph()
            graphs["input"].add_node(RESOLUTION, operation=f"{architecture[RESOLUTION]} pixels")
        for block in self._blocks(architecture):
            unit, node = block.split("/")
            graph = graphs.setdefault(unit, nx.DiGraph())
            before = list(graph)[-1:]
            graph.add_node(node, operation=self._operation(architecture, block))
            graph.add_edges_from((last, node) for last in before)
        return graphs

    def _operation(self, architecture: Architecture, block: str) -> str:
        kernel = architecture.get(f"{block}/kernel", self.kernels[0])
        expand = architecture.get(f"{block}/expand", self.expands[0])
        squeeze = self.se and UNITS[int(block.removeprefix("unit").partition("/")[0]) - 1].squeeze
        return f"mb{expand} {kernel}x{kernel}{' se' if squeeze else ''}"

    def indicators(self, architecture: Architecture) -> dict[str, float]:
        return {"blocks": len(self._blocks(architecture))}

    def write(self, architecture: Architecture) -> str:
        """Resolution, depths of the units, kernels and expansions of the kept blocks: "r=128 d=2,2 k=3,5,7,3 e=..."."""
        units, blocks = range(1, _units(architecture) + 1), self._blocks(architecture)
        labels = {
            "r": [RESOLUTION],
            "d": [_depth(unit) for unit in units],
            "k": [f"{block}/kernel" for block in blocks],
            "e": [f"{block}/expand" for block in blocks],
        }
        words = {
            word: [architecture[label] for label in names if label in architecture] for word, names in labels.items()
        }
        return " ".join(f"{word}={','.join(options)}" for word, options in words.items() if options)

    def read(self, text: str) -> Architecture:
        """What `write` wrote, or the text of an architecture."""
        words = Architecture.parse(text)
        if not set(words) <= {"r", "d", "k", "e"}:
            return words
        lists = {word: options.split(",") for word, options in words.items()}
        depths = self._read_depths(lists)
        options = {RESOLUTION: words["r"]} if "r" in words else {}
        rest = {word: iter(lists[word]) for word in ("e", "k") if word in lists}
        firsts = {"e": ("expand", str(self.expands[0])), "k": ("kernel", str(self.kernels[0]))}
        for unit, depth in enumerate(depths, start=1):
            options |= {_depth(unit): str(depth)} if "d" in lists else {}
            for number in range(1, self.depths[-1] + 1):
                for word, found in rest.items():
                    kind, first = firsts[word]
                    options[f"{_block(unit, number)}/{kind}"] = next(found) if number <= depth else first
        return Architecture(options)

    def _read_depths(self, lists: Mapping[str, list[str]]) -> list[int]:
        """The depths of the units, checked to fit the other lists."""
        for word, offered in {"d": self.depths, "k": self.kernels, "e": self.expands}.items():
            came = lists.get(word, [])
            if (len(offered) > 1) != bool(came) or not set(map(str, offered)).issuperset(came):
                wanted = f"numbers out of {_listed(offered)}" if len(offered) > 1 else f"left out, being {offered[0]}"
                got = _listed(came) or "none"
                raise ArchitectureError(f"In an architecture {_FORM} the word {word}= must be {wanted}, but got {got}.")
        longest = max(len(lists.get(word, [])) for word in ("k", "e"))
        depths = [int(depth) for depth in lists.get("d", [])] or [self.depths[0]] * (longest // self.depths[0])
        if not 1 <= len(depths) <= len(UNITS):
            raise ArchitectureError(f"An architecture must have 1 to {len(UNITS)} units, but got {len(depths)}.")
        for word in ("k", "e"):
            if word in lists and len(lists[word]) != sum(depths):
                raise ArchitectureError(
                    f"An architecture must have a number for each of its {sum(depths)} blocks in {word}=, but has "
                    f"{len(lists[word])}."
                )
        return depths


class InvertedResidual(nn.Module):
    """Expand, convolve every channel by itself, project: (batch, inputs, H, W) -> (batch, outputs, H', W').

    The input is added where the stride is 1 and the widths are equal. Where as many channels are inside as come in,
    nothing is expanded; `squeeze` puts a squeeze-and-excitation before the projection.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int | Size,
        outputs: int,
        kernel: int | Size,
        stride: int,
        activation: type[nn.Module],
        squeeze: bool = False,
        transforms: bool = True,
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        if hidden != inputs:
            expand = ElasticConv2d(inputs, hidden, 1)
            parts["expand"] = ConvNorm(expand, ElasticBatchNorm2d(hidden), activation())
        depthwise = ElasticDepthwiseConv2d(hidden, kernel, stride, transforms)
        parts["depthwise"] = ConvNorm(depthwise, ElasticBatchNorm2d(hidden), activation())
        if squeeze:
            parts["squeeze"] = SqueezeExcitation(hidden)
        parts["project"] = ConvNorm(ElasticConv2d(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        self.layers = nn.Sequential(OrderedDict(parts))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class SqueezeExcitation(nn.Module):
    """Weighs every channel by what all channels are on average (arXiv:1709.01507), over a quarter of the channels.

    Takes and gives (batch, channels, H, W).
    """

    def __init__(self, channels: int | Size) -> None:
        super().__init__()
        squeezed = _quarter(channels) if isinstance(channels, int) else channels.map(_quarter)
        reduce = ElasticConv2d(channels, squeezed, 1, bias=True)
        excite = ElasticConv2d(squeezed, channels, 1, bias=True)
        self.layers = nn.Sequential(reduce, nn.ReLU(), excite)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x.mean((2, 3), keepdim=True))
        return x * (F.relu6(scores + 3) / 6)  # torch's hardsigmoid has no second derivative


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    if (kernel, stride) == (1, 1):
        return ConvNorm(PointwiseConv(inputs, outputs), nn.BatchNorm2d(outputs), nn.Hardswish())
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return ConvNorm(conv, nn.BatchNorm2d(outputs), nn.Hardswish())


def _quarter(channels: int) -> int:
    return divisible(channels // 4)


def _size(label: str, values: tuple[int, ...], factor: int = 1) -> int | Size:
    """The values times a factor as a choice between the values, or the number if there is but one."""
    scaled = tuple(factor * value for value in values)
    return Size(label, scaled, tuple(map(str, values))) if len(values) > 1 else scaled[0]


def _depth(unit: int) -> str:
    return f"unit{unit}/depth"


def _block(unit: int, number: int) -> str:
    return f"unit{unit}/block{number}"


def _units(labels: Iterable[str]) -> int:
    """How many units the labels of choices belong to."""
    return len({label.partition("/")[0] for label in labels if "/" in label})


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))
