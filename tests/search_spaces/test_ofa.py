from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nasengine
from nasengine.architecture import Architecture
from nasengine.drawing import draw, text
from nasengine.elastic import Resize
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.seeding import generator
from nasengine.task import Dataset, Shapes, Task
from nasengine.testing import check_space
from search_spaces.ofa import OFA, SqueezeExcitation

IMAGENET, CIFAR, DIGITS = Shapes((3, 224, 224), 1000), Shapes((3, 32, 32), 10), Shapes((1, 8, 8), 10)
SPACE = OFA()
SMALL = OFA(width=0.125, units=2, depths=(1, 2), kernels=(3, 5), expands=(1, 2))


# Choices and laws


def test_choices_of_the_published_space() -> None:
    choices = SPACE.choices(IMAGENET)
    options = {label: choice.options for label, choice in choices.items()}
    assert options.pop("resolution") == tuple(str(pixels) for pixels in range(128, 225, 4))
    assert all(choice.ordinal for choice in choices.values())
    assert len(options) == 5 * (1 + 4 * 2)
    for unit, block in product(range(1, 6), range(1, 5)):
        assert options[f"unit{unit}/depth"] == ("2", "3", "4")
        assert options[f"unit{unit}/block{block}/kernel"] == ("3", "5", "7")
        assert options[f"unit{unit}/block{block}/expand"] == ("3", "4", "6")


def test_number_of_the_published_architectures() -> None:
    alone, all_resolutions = OFA(resolutions=()), SPACE.choices(IMAGENET)
    assert alone.architectures(alone.choices(IMAGENET)) == 7371**5 == 21_758_655_492_572_485_851
    assert SPACE.architectures(all_resolutions) == 25 * 7371**5


@pytest.mark.parametrize(
    "space",
    [
        OFA(units=1, depths=(1, 2), kernels=(3, 5), expands=(1, 2), resolutions=(4, 8)),
        OFA(units=2, depths=(1, 2), kernels=(3, 5), expands=(2,)),
        OFA(units=2, depths=(2,), kernels=(5,), expands=(1, 2)),
        OFA(units=3, depths=(1, 2, 3), kernels=(5,), expands=(2,)),
    ],
    ids=str,
)
def test_architectures_are_the_different_networks(space: OFA) -> None:
    choices = space.choices(DIGITS)
    everything = [
        Architecture(dict(zip(choices, o, strict=True))) for o in product(*(c.options for c in choices.values()))
    ]
    distinct = {space.canonical(choices, architecture) for architecture in everything}
    assert len(distinct) == space.architectures(choices) == len({space.write(a) for a in everything})
    for architecture in distinct:
        space.check(choices, architecture)
    for architecture in set(everything) - distinct:
        with pytest.raises(ArchitectureError, match="A choice without effect must take its first option"):
            space.check(choices, architecture)


def test_a_block_is_left_out_whole_and_comes_with_its_first_options() -> None:
    choices = SPACE.choices(DIGITS)
    start = SPACE.read("d=3,2 k=3,3,5,3,3 e=3,3,3,3,3")
    without, deeper = (n for n in SPACE.neighbours(choices, start) if n["unit1/depth"] != "3")
    assert SPACE.write(without) == "d=2,2 k=3,3,3,3 e=3,3,3,3"
    assert SPACE.write(deeper) == "d=4,2 k=3,3,5,3,3,3 e=3,3,3,3,3,3"
    plain = SPACE.read("d=3,2 k=3,3,3,3,3 e=3,3,3,3,3")
    assert {n["unit1/depth"] for n in SPACE.neighbours(choices, plain)} == {"2", "3", "4"}
    labels = {label for n in SPACE.neighbours(choices, plain) for label in choices if n[label] != plain[label]}
    assert not {label for label in labels if label.startswith(("unit1/block4", "unit2/block3", "unit2/block4"))}
    assert len(SPACE.neighbours(choices, plain)) == 2 + 2 + 5 * 4


@pytest.mark.parametrize(
    ("input", "resolutions"),
    [
        ((3, 224, 224), tuple(range(128, 225, 4))),
        ((3, 256, 256), tuple(range(128, 225, 4))),
        ((3, 150, 150), tuple(range(128, 149, 4))),
        ((3, 96, 96), ()),
        ((3, 224, 192), ()),
        ((3, 64, 64), (56, 60, 64)),
        ((3, 32, 32), (24, 28, 32)),
        ((1, 28, 28), (20, 24, 28)),
        ((1, 30, 30), ()),
        ((1, 16, 16), (8, 12, 16)),
        ((1, 8, 8), ()),
    ],
    ids=str,
)
def test_resolutions_follow_from_the_images(input: tuple[int, ...], resolutions: tuple[int, ...]) -> None:
    found = SPACE.choices(Shapes(input, 10))
    assert (found["resolution"].options if "resolution" in found else ()) == tuple(map(str, resolutions))


@pytest.mark.parametrize(
    ("side", "settings", "found"), [(130, {}, []), (32, {"resolutions": ()}, []), (32, {"resolutions": (24,)}, [24])]
)
def test_without_a_choice_images_keep_their_size_unless_told(
    side: int, settings: dict[str, tuple[int, ...]], found: list[int]
) -> None:
    with torch.device("meta"):
        network = dataclasses.replace(SMALL, **settings).network(Shapes((1, side, side), 10))  # type: ignore[arg-type]
    assert [module.pixels for module in network.modules() if isinstance(module, Resize)] == found


@pytest.mark.parametrize(("side", "units"), [(8, 2), (15, 2), (16, 5), (95, 5), (96, 5)])
def test_units_follow_from_the_images(side: int, units: int) -> None:
    depths = [label for label in SPACE.choices(Shapes((1, side, side), 10)) if label.endswith("depth")]
    assert depths == [f"unit{unit}/depth" for unit in range(1, units + 1)]


def test_a_tuple_of_one_value_is_no_choice() -> None:
    space = OFA(depths=(3,), kernels=(5,), expands=(3, 6), resolutions=(24,))
    choices = space.choices(CIFAR)
    assert list(choices) == [f"unit{unit}/block{block}/expand" for unit in range(1, 6) for block in range(1, 4)]
    smallest = space.smallest(choices)
    with torch.device("meta"):
        network = space.build(smallest, CIFAR)
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 1 + 15 and all(m.kernel_size == (5, 5) for m in depthwise[1:])


@pytest.mark.parametrize(
    ("space", "shapes"),
    [
        (SMALL, DIGITS),
        (dataclasses.replace(SMALL, transforms=False, se=False), Shapes((2, 9, 7), 3)),
        (OFA(width=0.125, units=2, depths=(1, 2), kernels=(3,), expands=(1, 2), resolutions=(8, 12)), CIFAR),
    ],
    ids=["grey", "plain and odd", "colour"],
)
def test_laws(space: OFA, shapes: Shapes) -> None:
    check_space(space, shapes)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 9, 7), (2, 33, 40), (3, 97, 101)], ids=str)
def test_image_sizes(shape: tuple[int, int, int]) -> None:
    shapes = Shapes(shape, 5)
    space = dataclasses.replace(SMALL, units=None)
    network = space.build(space.smallest(space.choices(shapes)), shapes).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 5)


def test_squeeze_and_excitation_can_be_left_out() -> None:
    for se, count in ((True, 3 * 4), (False, 0)):
        with torch.device("meta"):
            network = OFA(se=se).network(IMAGENET)
        assert sum(isinstance(module, SqueezeExcitation) for module in network.modules()) == count


def test_dropout_is_for_the_final_training() -> None:
    def rates(space: OFA) -> list[float]:
        with torch.device("meta"):
            return [m.p for m in space.network(DIGITS).modules() if isinstance(m, nn.Dropout)]

    assert rates(SPACE) == [0.0]
    assert rates(SPACE.final()) == [0.1]
    assert rates(OFA(dropout=0.3).final()) == [0.3]


# Forms


def test_text_form() -> None:
    choices = SPACE.choices(IMAGENET)
    smallest = SPACE.smallest(choices)
    assert SPACE.write(smallest) == f"r=128 d=2,2,2,2,2 k={','.join('3' * 10)} e={','.join('3' * 10)}"
    text = "r=204 d=2,3,2,2,2 k=3,5,7,3,3,3,3,3,3,3,5 e=6,4,3,3,6,3,3,3,3,3,4"
    found = SPACE.read(text)
    assert (found["unit1/block2/kernel"], found["unit1/block2/expand"]) == ("5", "4")
    assert (found["unit2/block3/kernel"], found["unit2/block3/expand"]) == ("3", "6")
    assert (found["unit5/block2/kernel"], found["unit5/block2/expand"]) == ("5", "4")
    assert list(found) == list(choices)
    assert SPACE.write(found) == text
    assert SPACE.read(str(found)) == found


def test_text_form_without_some_choices() -> None:
    space = OFA(depths=(2,), kernels=(5,), units=2)
    text = "e=3,6,4,4"
    assert space.write(space.read(text)) == text
    space.check(space.choices(DIGITS), space.read(text))
    depth = OFA(kernels=(5,), expands=(3,))
    assert depth.write(depth.read("d=2,4")) == "d=2,4"


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (SPACE, "d=2,5 k=3 e=3", "the word d= must be numbers out of 2,3,4, but got 2,5"),
        (SPACE, "d=2 k=3,4 e=3,3", "the word k= must be numbers out of 3,5,7, but got 3,4"),
        (SPACE, "d=2 k=3,3 e=3,x", "the word e= must be numbers out of 3,4,6, but got 3,x"),
        (SPACE, "k=3,3 e=3,3", "the word d= must be numbers out of 2,3,4, but got none"),
        (SPACE, "d=2 k=3,3", "the word e= must be numbers out of 3,4,6, but got none"),
        (OFA(kernels=(5,)), "d=2 k=5,5 e=3,3", "the word k= must be left out, being 5, but got 5,5"),
        (SPACE, "d=2 k=3,3,3 e=3,3", "must have a number for each of its 2 blocks in k=, but has 3"),
        (SPACE, "d=2,2 k=3,3,3,3 e=3,3", "must have a number for each of its 4 blocks in e=, but has 2"),
        (SPACE, f"d={','.join('2' * 6)} k=3 e=3", "must have 1 to 5 units, but got 6"),
        (OFA(depths=(2,)), "k=3 e=3", "must have 1 to 5 units, but got 0"),
        (SPACE, "d k", "must be words of the form label=option, but got 'd'"),
    ],
)
def test_other_texts_are_refused(space: OFA, text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        space.read(text)


def test_architectures_of_other_settings_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="must decide 'resolution'"):
        SPACE.check(SPACE.choices(CIFAR), SPACE.read(f"d=2,2,2,2,2 k={','.join('3' * 10)} e={','.join('3' * 10)}"))
    with pytest.raises(ArchitectureError, match="must decide 'unit2/depth'"):
        SPACE.check(SPACE.choices(DIGITS), SPACE.read("d=2 k=3,3 e=3,3"))


def test_graphs(tmp_path: Path) -> None:
    architecture = SPACE.read("r=24 d=2,3 k=3,5,7,3,3 e=6,4,3,3,6")
    graphs = SPACE.graphs(architecture)
    assert text(graphs).split("\n\n") == [
        "input\n  resolution = 24 pixels",
        "unit1\n  block1 = mb6 3x3\n  block2 = mb4 5x5",
        "unit2\n  block1 = mb3 7x7 se\n  block2 = mb3 3x3 se\n  block3 = mb6 3x3 se",
    ]
    draw(graphs, tmp_path / "ofa.svg")
    assert "mb3 7x7 se" in (tmp_path / "ofa.svg").read_text()
    plain = OFA(se=False, kernels=(5,), expands=(4,))
    assert text(plain.graphs(plain.read("d=2,2"))).count("mb4 5x5") == 4
    assert "se" not in text(plain.graphs(plain.read("d=2,2")))
    assert SPACE.indicators(architecture) == {"blocks": 5}


# Settings and inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (4, 3)}, "space.depths must be ascending numbers, but got 4,3"),
        ({"depths": ()}, "space.depths must be ascending numbers, but got none"),
        ({"depths": (1, 3)}, "space.depths must be consecutive numbers such as 2,3,4, but got 1,3"),
        ({"depths": (0, 1)}, "space.depths must be at least 1, but got 0"),
        ({"kernels": (3, 4)}, "space.kernels must be odd numbers such as 3,5,7, but got 3,4"),
        ({"kernels": (3, 3)}, "space.kernels must be ascending numbers, but got 3,3"),
        ({"expands": (6, 3)}, "space.expands must be ascending numbers, but got 6,3"),
        ({"expands": (1.5,)}, "space.expands must be whole numbers such as 3,5,7, but got"),
        ({"resolutions": (8, 4)}, "space.resolutions must be ascending numbers, but got 8,4"),
        ({"resolutions": "all"}, "space.resolutions must be auto or whole numbers such as 3,5,7, but got 'all'"),
        ({"width": 0.0}, "space.width must be more than 0, but got 0.0"),
        ({"units": 6}, "space.units must be at least 1 and at most 5, but got 6"),
        ({"shape": "mnist"}, "space.shape must be auto or imagenet or cifar or digits, but got 'mnist'"),
        ({"dropout": 1.0}, "space.dropout must be at least 0 and at most 0.9, but got 1.0"),
        (
            {"depths": (2,), "kernels": (3,), "expands": (6,)},
            "space.expands must have two numbers or more to choose from, but got 2, 3 and 6",
        ),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(SPACE, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shapes", "resolutions", "message"),
    [
        (CIFAR, (24, 30, 32), "multiples of 4 of at least 8 pixels, which the strides can divide, but got 30"),
        (CIFAR, (4, 8), "multiples of 4 of at least 8 pixels, which the strides can divide, but got 4"),
        (IMAGENET, (28,), "multiples of 4 of at least 32 pixels, which the strides can divide, but got 28"),
    ],
)
def test_resolutions_that_the_strides_cannot_divide(shapes: Shapes, resolutions: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingError, match=f"Choice 'resolution' must be between {message}; change space.resolutions"):
        OFA(resolutions=resolutions).choices(shapes)


def test_other_inputs_than_images_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"needs images .channels, height, width., but one input has shape \(4,\); take other data"
    ):
        SPACE.choices(Shapes((4,), 2))


# Learning


def test_the_largest_network_learns_a_batch() -> None:
    torch.manual_seed(0)
    supernet = OFA(width=0.25, units=1, depths=(1, 2)).supernet(DIGITS, F.cross_entropy)
    x, y = torch.randn(16, 1, 8, 8, generator=generator(0)), torch.arange(16) % 10
    optimizer = torch.optim.Adam(supernet.parameters(), 0.01)
    full, losses = supernet.full(), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(supernet(x, full), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_search(tmp_path: Path) -> None:
    rng = generator(0)
    pictures = torch.randint(256, (24, 1, 8, 8), generator=rng, dtype=torch.uint8)
    targets = torch.arange(24) % 3
    task = Task(
        dataset=Dataset(
            name="noise",
            train_inputs=pictures,
            train_targets=targets,
            test_inputs=pictures,
            test_targets=targets,
            classes=("a", "b", "c"),
        )
    )
    settings = ["search.epochs=1", "search.batch_size=6", "search.device=cpu"]
    found = nasengine.search(SMALL, "darts", task, out=tmp_path / "run", settings=settings)
    SMALL.check(SMALL.choices(task.shapes), found.architecture)
    assert SMALL.read(str(found.record["result"]["genotype"])) == found.architecture
