"""What may be sampled when: all at once, or option by option as in once-for-all."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from nasengine.seeding import generator
from nasengine.shrinking import Stage, stage_at
from nasengine.supernet import Supernet
from nasengine.testing import SizedSpace, sized, smooth

SPACE = SizedSpace(widths=(1, 2, 3, 4), hidden=(2, 3, 4), kernels=(1, 3, 5), blocks=4)
FIRST = 25 / 145  # of a part, before its last option opens


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return sized(space=SPACE).supernet


def summary(stage: Stage) -> tuple[Mapping[str, int], int, int]:
    """Open options by kind, where all of a kind must agree; subnets; sortings."""
    kinds: dict[str, int] = {}
    for label, count in stage.open.items():
        assert kinds.setdefault(label.rpartition("/")[2], count) == count
    return kinds, stage.subnets, stage.sortings


def opened(kernel: int, depth: int, width: int, hidden: int) -> dict[str, int]:
    return {"kernel": kernel, "depth": depth, "width": width, "hidden": hidden, "last": 3}


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_delayed_shrinking_opens_everything_at_once(supernet: Supernet, progress: float) -> None:
    assert summary(stage_at(supernet, "delayed", progress, 7)) == (opened(3, 4, 4, 3), 7, 1)


@pytest.mark.parametrize(
    ("part", "within", "expected", "subnets", "sortings"),
    [
        (0, 0.0, opened(3, 1, 1, 1), 1, 0),
        (0, 0.99, opened(3, 1, 1, 1), 1, 0),
        (1, 0.0, opened(3, 2, 1, 1), 2, 0),
        (1, 0.49 * FIRST, opened(3, 2, 1, 1), 2, 0),
        (1, 0.51 * FIRST, opened(3, 3, 1, 1), 2, 0),
        (1, 1.01 * FIRST, opened(3, 4, 1, 1), 2, 0),
        (1, 0.99, opened(3, 4, 1, 1), 2, 0),
        (2, 0.0, opened(3, 4, 2, 2), 4, 1),
        (2, 0.49 * FIRST, opened(3, 4, 2, 2), 4, 1),
        (2, 0.51 * FIRST, opened(3, 4, 3, 3), 4, 2),
        (2, 0.99 * FIRST, opened(3, 4, 3, 3), 4, 2),
        (2, 1.01 * FIRST, opened(3, 4, 4, 3), 4, 3),
        (2, 0.99, opened(3, 4, 4, 3), 4, 3),
    ],
)
def test_progressive_shrinking_opens_kernels_depths_widths(
    supernet: Supernet, part: int, within: float, expected: dict[str, int], subnets: int, sortings: int
) -> None:
    """Kernels and operations at once; depths, then widths, option by option and all widths together."""
    stage = stage_at(supernet, "progressive", (part + within) / 3, 9)
    assert summary(stage) == (expected, subnets, sortings)


def test_two_options_open_together() -> None:
    """As soon as a choice of two options begins, it has both."""
    stage = stage_at(sized(space=SizedSpace(hidden=(2, 4))).supernet, "progressive", 2 / 3, 4)
    assert summary(stage) == ({"kernel": 2, "depth": 2, "width": 2, "hidden": 2, "last": 3}, 4, 1)


def test_parts_begin_at_thirds_of_the_steps(supernet: Supernet) -> None:
    steps = 36
    subnets = [stage_at(supernet, "progressive", step / steps, 4).subnets for step in range(steps)]
    assert subnets == [1] * 12 + [2] * 12 + [4] * 12


@pytest.mark.parametrize("progress", [0.0, 1 / 3, 1 / 3 + 0.51 * FIRST / 3, 2 / 3, 0.99])
def test_samples_are_open_and_every_open_option_comes(supernet: Supernet, progress: float) -> None:
    stage, rng = stage_at(supernet, "progressive", progress, 4), generator(0)
    seen: dict[str, set[str]] = {label: set() for label in supernet.choices}
    for _ in range(100):
        architecture = stage.random(supernet, rng)
        supernet.space.check(supernet.choices, architecture)
        idle = supernet.space.unused(supernet.choices, architecture)
        for label in set(seen) - set(idle):
            seen[label].add(architecture[label])
    for label, choice in supernet.choices.items():
        assert seen[label] == set(choice.options[-stage.open[label] :]), label


def test_every_open_option_comes_alike(supernet: Supernet) -> None:
    stage, rng = stage_at(supernet, "delayed", 0.0, 4), generator(0)
    counts = torch.tensor([int(stage.random(supernet, rng)["width"]) for _ in range(400)]).bincount()[1:]
    assert (counts - 100).abs().max() < 4 * (100 * 3 / 4) ** 0.5


def test_the_smallest_has_the_smallest_open_sizes_and_any_operation(supernet: Supernet) -> None:
    stage, rng = stage_at(supernet, "progressive", 2 / 3, 4), generator(0)
    found = [stage.smallest(supernet, rng) for _ in range(30)]
    for architecture in found:
        assert [architecture[label] for label in ("width", "block1/hidden", "block1/kernel", "depth")] == list("3311")
    assert {architecture["last"] for architecture in found} == {"tanh", "sigmoid", "skip"}


def test_operations_alone_are_open_from_the_start() -> None:
    cells = smooth().supernet
    stage = stage_at(cells, "progressive", 0.0, 4)
    assert set(stage.open.values()) == {3}
    assert len({str(stage.smallest(cells, generator(seed))) for seed in range(20)}) > 3


def test_samples_depend_on_the_generator_alone(supernet: Supernet) -> None:
    stage = stage_at(supernet, "delayed", 0.0, 4)
    first, second = ([stage.random(supernet, rng) for _ in range(5)] for rng in (generator(3), generator(3)))
    assert first == second
    assert len(set(first)) > 1
