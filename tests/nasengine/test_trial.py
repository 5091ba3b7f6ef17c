"""What does not fit is told by the choice to blame, whatever else the network chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from nasengine.elastic import ElasticDepth, ElasticResolution, Size
from nasengine.errors import ArchitectureError
from nasengine.layers import ElasticBatchNorm1d, ElasticConv2d, ElasticLinear
from nasengine.loop import random_state
from nasengine.registry import SPACES
from nasengine.space import Space
from nasengine.supernet import MixedOp, Zero
from nasengine.task import Shapes
from nasengine.trial import check_network
from tests.nasengine.dense import Dense

SHAPES = Shapes((6,), 3)
WIDTH, OTHER = Size("width", (2, 4, 6)), Size("other", (3, 5, 6))


@dataclass(frozen=True, kw_only=True)
class Made(Space):
    """The network of a function, behind and before layers that always fit."""

    name: ClassVar[str] = "made"

    make: Callable[[], nn.Module] = nn.Identity

    def network(self, shapes: Shapes) -> nn.Module:
        return self.make()


Layers = Callable[[], list[nn.Module]]


def op(label: str = "op") -> MixedOp:
    return MixedOp(label, {"tanh": nn.Tanh(), "relu": nn.ReLU(), "none": Zero()})


def told(layers: Layers, shapes: Shapes = SHAPES) -> str:
    with pytest.raises(ArchitectureError) as caught:
        check_network(Made(make=lambda: nn.Sequential(*layers())), shapes)
    return str(caught.value)


MUST = "The network of 'made' must run whatever choice "
ELASTIC = "; take an elastic layer of that size, or leave the option out."


def test_the_one_width_that_does_not_fit() -> None:
    def sentence(last: int) -> str:
        return told(lambda: [op(), ElasticLinear(6, OTHER), ElasticLinear(OTHER, WIDTH), nn.Linear(last, 3)])

    assert sentence(6) == (
        f"{MUST}'width' decides, but fails (in '3', Linear, with width=4): RuntimeError: mat1 and mat2 shapes cannot "
        f"be multiplied (2x4 and 6x3){ELASTIC}"
    )
    assert sentence(2).startswith(
        f"{MUST}'width' decides, but fails (in '3', Linear, with width=6): RuntimeError: mat1"
    )
    assert sentence(5).startswith(
        f"{MUST}'width' decides, but fails (in '3', Linear, with width=6): RuntimeError: mat1"
    )


def test_an_option_in_the_middle_that_does_not_fit() -> None:
    images = Shapes((1, 4, 4), 3)
    width = Size("width", (2, 3, 4))

    def layers() -> list[nn.Module]:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), ElasticLinear(width, 3)]
        return [ElasticConv2d(1, width, 3), Halves(), *head]

    assert told(layers, images).startswith(
        f"{MUST}'width' decides, but fails (in '1', Halves, with width=3): ValueError: odd"
    )


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ValueError("odd")
        return x


class Product(nn.Module):
    """Fails only where two sizes are both not the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = ElasticLinear(6, WIDTH), ElasticLinear(6, OTHER)
        self.head = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x).shape[1], self.two(x).shape[1]
        if one < 6 and two < 6:
            raise ValueError("too few")
        logits: Tensor = self.head(x[:, :1])
        return logits


def test_two_choices_that_do_not_fit_together() -> None:
    assert (
        told(lambda: [Product()])
        == f"{MUST}'other' decides, but fails (in '0', Product, with other=5): ValueError: too few{ELASTIC}"
    )


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            lambda: [ElasticLinear(6, WIDTH), ElasticLinear(6, 3)],
            "An ElasticLinear must get the 6 inputs, but got 4; give it and the layer before it one size "
            "(in '1', ElasticLinear, with width=4).",
        ),
        (
            lambda: [ElasticLinear(6, WIDTH), ElasticLinear(OTHER, 3)],
            "An ElasticLinear must get the 6 that choice 'other' decides, but got 4; give it and the layer before it "
            "one size (in '1', ElasticLinear, with width=4).",
        ),
        (
            lambda: [ElasticDepth("depth", [nn.Linear(6, 6), nn.Linear(6, 3)])],
            "Layers that choice 'depth' can leave out must keep the shape, but layer 2 makes (2, 3) of (2, 6) "
            "(in '0', ElasticDepth).",
        ),
        (
            lambda: [op("before"), MixedOp("op", {"one": nn.Linear(6, 3), "two": nn.Linear(6, 2)})],
            "All options of choice 'op' must give one shape, but got (2, 3) and (2, 2) from 'two' (in '1', MixedOp).",
        ),
        (
            lambda: [ElasticLinear(6, WIDTH), ElasticLinear(WIDTH, 2)],
            "The outputs of a network must have the shape (batch, 3), but for a batch of 2 it gave (2, 2); end it with "
            "a layer of shapes.outputs numbers.",
        ),
        (
            lambda: [ElasticLinear(6, WIDTH)],
            "The outputs of a network must have the shape (batch, 3), but for a batch of 2 it gave (2, 6); end it with "
            "a layer of shapes.outputs numbers.",
        ),
        (
            lambda: [nn.Linear(6, 3)],
            "There must be something to search, but the network of 'made' has no choices; put a Size, an ElasticDepth "
            "or a MixedOp into modules that it registers, and no Python lists.",
        ),
        (
            lambda: [op(), nn.Linear(5, 3)],
            "The network of 'made' must run on inputs of shape (6,), but fails (in '1', Linear): RuntimeError: mat1 "
            "and mat2 shapes cannot be multiplied (2x6 and 5x3).",
        ),
    ],
    ids=["fixed", "other", "depth", "options", "outputs", "no head", "nothing", "no choice"],
)
def test_sentences(layers: Layers, sentence: str) -> None:
    assert told(layers) == sentence


def test_zero_of_another_shape_than_the_other_options() -> None:
    images = Shapes((1, 4, 4), 3)

    def layers() -> list[nn.Module]:
        return [MixedOp("op", {"conv": nn.Conv2d(1, 2, 3, 2, 1), "none": Zero()}), nn.Flatten(), nn.Linear(8, 3)]

    sentence = told(layers, images)
    assert sentence.startswith(f"{MUST}'op' decides, but fails (in '2', Linear, with op=none): RuntimeError: mat1 and ")
    assert sentence.endswith("; let all options give one shape.")


def test_a_resolution_that_is_too_small() -> None:
    images = Shapes((1, 8, 8), 3)

    def layers() -> list[nn.Module]:
        body = nn.Sequential(nn.Conv2d(1, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        return [ElasticResolution("pixels", (4, 8), body)]

    sentence = told(layers, images)
    assert sentence.startswith("The network of 'made' must run") and "in '0.network.0', Conv2d" in sentence
    assert "with pixels=4" in sentence and ". " not in sentence


class Hidden(nn.Module):
    """Keeps one of its layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.op, self.layers = op(), [ElasticLinear(6, WIDTH), ElasticLinear(WIDTH, 3)]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers[1](self.layers[0](self.op(x)))
        return logits


class Inside(nn.Module):
    """Looks into a layer that its stand-alone network does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = ElasticLinear(6, WIDTH), ElasticLinear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(x)) * self.first.linear.weight.mean()
        return logits


def test_modules_that_are_not_registered() -> None:
    assert told(lambda: [Hidden()]) == (
        "Choice 'width' must be decided by the mixture, but that has only op; if it is missing among the choices, put "
        "its module into an nn.ModuleList in place of a Python list (in '0', Hidden)."
    )


def test_a_network_that_fails_without_its_choices() -> None:
    sentence = told(lambda: [Inside()])
    assert sentence.startswith("The network of 'made' must run without its choices on the meta device, where its cost")
    assert "AttributeError: 'Linear' object has no attribute 'linear'; let it only call the modules" in sentence


def test_the_batch_norm_of_what_is_tried_stays_as_it_was() -> None:
    tried: list[nn.Module] = []

    def make() -> nn.Module:
        tried.append(
            nn.Sequential(ElasticLinear(6, WIDTH), ElasticBatchNorm1d(WIDTH), nn.Dropout(), ElasticLinear(WIDTH, 3))
        )
        return tried[-1]

    check_network(Made(make=make), SHAPES)
    assert [int(value) for name, value in tried[0].named_buffers() if name.endswith("tracked")] == [0]


@pytest.mark.parametrize("shapes", [Shapes((6,), 3), Shapes((5,), 2, vocabulary=7)], ids=["numbers", "tokens"])
def test_spaces_that_fit(shapes: Shapes) -> None:
    check_network(Dense(), shapes)


@pytest.mark.parametrize("name", [name for name in SPACES.names() if SPACES[name].searchable])
def test_registered_spaces_fit(name: str) -> None:
    check_network(SPACES[name](), Shapes((3, 16, 16), 5))


def test_only_initialisation_draws_random_numbers() -> None:
    def draws(run: Callable[[], object]) -> object:
        torch.manual_seed(0)
        run()
        return random_state()["torch"].tolist()

    assert draws(lambda: check_network(Dense(), SHAPES)) == draws(lambda: Dense().network(SHAPES))


def test_options_that_change_their_input() -> None:
    def layers(*order: str) -> list[nn.Module]:
        options = {"bad": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), "skip": nn.Identity()}
        return [nn.Linear(6, 6), MixedOp("op", {name: options[name] for name in order}), nn.Linear(6, 3)]

    must = "What choice 'op' decides on must not change its input, but this does; set inplace=False in it (in '1"
    assert told(lambda: layers("bad", "skip")).startswith(must)
    assert told(lambda: layers("skip", "bad")).startswith(must)
    deep = [nn.Linear(6, 6), ElasticDepth("depth", [nn.Tanh(), nn.ReLU(inplace=True)]), nn.Linear(6, 3)]
    assert told(lambda: deep).startswith(must.replace("op", "depth"))


def test_elastic_layers_that_share_a_weight() -> None:
    def layers() -> list[nn.Module]:
        one, other = ElasticLinear(6, WIDTH), ElasticLinear(6, WIDTH)
        other.linear.weight = one.linear.weight
        return [one, ElasticLinear(WIDTH, 6), other, ElasticLinear(WIDTH, 3)]

    assert told(layers) == (
        "Elastic layers must have weights of their own, but '0.linear' and '2.linear' share one; untie them."
    )


def test_plain_layers_may_share_a_weight() -> None:
    def layers() -> nn.Module:
        one, other = nn.Linear(6, 6), nn.Linear(6, 6)
        other.weight = one.weight
        return nn.Sequential(one, op(), other, nn.Linear(6, 3))

    check_network(Made(make=layers), SHAPES)


def test_two_widths_that_agree_only_when_both_are_largest() -> None:
    one, other = Size("one", (4, 8)), Size("other", (4, 8))
    assert told(lambda: [ElasticLinear(6, one), ElasticLinear(other, 3)]) == (
        "An ElasticLinear must get the 4 that choice 'other' decides, but got 8; give it and the layer before it one "
        "size (in '1', ElasticLinear, with other=4)."
    )


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = ElasticLinear(6, WIDTH), ElasticLinear(6, WIDTH)
        self.head = ElasticLinear(WIDTH.map(lambda n: 2 * n), 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.cat([self.one(x), self.two(x)], 1)))


def test_widths_that_are_concatenated() -> None:
    assert told(lambda: [Joined()]) == (
        "The network of 'made' must compute the same with a size alone and with all the weight on it, but does not "
        "for 'width'; add what has an elastic width and do not concatenate or reshape it, or read the parts by a layer "
        "each."
    )


@pytest.mark.parametrize(
    ("shape", "came", "other"), [((3, 16), "(2, 3, 16)", "Conv1d"), ((12,), "(2, 12)", "Linear or Embedding")]
)
@pytest.mark.parametrize("elastic", [True, False])
def test_a_convolution_of_images_on_other_data(shape: tuple[int, ...], came: str, other: str, elastic: bool) -> None:
    """torch takes the batch for the channels of one image, and says that these do not fit the weights."""

    def layers() -> list[nn.Module]:
        if elastic:
            return [ElasticConv2d(3, WIDTH, 3), nn.Flatten(), ElasticLinear(WIDTH, 3)]
        return [MixedOp("op", {"conv": nn.Conv2d(3, 3, 3, padding=1), "skip": nn.Identity()}), nn.Flatten()]

    kind, where = ("ElasticConv2d", "0") if elastic else ("Conv2d", "0.options.0")
    assert told(layers, Shapes(shape, 3)) == (
        f"A layer {kind} must get (batch, channels, height, width), but gets the shape {came} from a batch of 2 inputs "
        f"of shape {shape}; take a layer for these, such as {other}, or data that have the sides "
        f"(in {where!r}, {kind})."
    )
