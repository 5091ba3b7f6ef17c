from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nasengine.data.sizes import adjusted, fewer, resized
from nasengine.errors import SettingError
from nasengine.task import Augment, DataSettings, Task
from tests.nasengine.tasks import float_dataset, image_dataset, regression_dataset, token_dataset


def test_fewer_keeps_the_classes_in_proportion() -> None:
    whole, part = image_dataset(), fewer(image_dataset(), 30)
    assert torch.bincount(part.train_targets).tolist() == [10, 10, 10] and part.train_inputs.shape == (30, 3, 8, 10)
    assert torch.equal(part.test_inputs, whole.test_inputs)
    assert torch.equal(part.train_inputs, fewer(image_dataset(), 30).train_inputs)


def test_fewer_numbers_keep_their_targets() -> None:
    part = fewer(regression_dataset(), 7)
    inputs, targets = part.train_inputs, part.train_targets
    assert targets.shape == (7, 2) and torch.equal(targets[:, 1], 2 * inputs[:, 2])


@pytest.mark.parametrize(
    ("dataset", "size", "told"),
    [
        (image_dataset(), 2, "from 3, one a class, to the 60 examples of toy, but got 2."),
        (image_dataset(), 61, "from 3, one a class, to the 60 examples of toy, but got 61."),
        (regression_dataset(), 1, "from 2 to the 40 examples of lines, but got 1."),
        (regression_dataset(), 41, "from 2 to the 40 examples of lines, but got 41."),
    ],
)
def test_sizes_that_are_not_there(dataset: object, size: int, told: str) -> None:
    with pytest.raises(SettingError) as caught:
        fewer(dataset, size)  # type: ignore[arg-type]
    assert str(caught.value) == f"data.train_size must be {told}"


def test_resized_images() -> None:
    small = resized(image_dataset(), 4)
    assert small.train_inputs.shape == (60, 3, 4, 4) and small.test_inputs.shape == (10, 3, 4, 4)
    assert (small.augment, small.final_cutout) == (Augment(crop=1, flip=True), 2)


@pytest.mark.parametrize("dataset", [float_dataset(), token_dataset()], ids=lambda dataset: dataset.name)
def test_only_images_are_resized(dataset: object) -> None:
    with pytest.raises(SettingError, match=r"data.image_size must be left out, not 8, because .* has no images\."):
        resized(dataset, 8)  # type: ignore[arg-type]


def test_adjusting_twice_is_adjusting_once() -> None:
    settings = DataSettings(train_size=30, image_size=4, crop=0)
    once = adjusted(Task(dataset=image_dataset()), settings)
    twice = adjusted(once, settings)
    assert once.settings is settings and once.shapes.input == (3, 4, 4) and once.search_augment.crop == 0
    assert torch.equal(once.dataset.train_inputs, twice.dataset.train_inputs)


@pytest.mark.parametrize("size", range(3, 60, 7))
def test_fewer_are_as_many_as_asked_and_every_class_is_there(size: int) -> None:
    targets = torch.tensor([0] * 50 + [1] * 9 + [2])
    part = fewer(replace(image_dataset(), train_targets=targets), size)
    counts = torch.bincount(part.train_targets, minlength=3)
    assert len(part.train_targets) == size and counts.min() >= 1
    assert (counts - torch.tensor([50, 9, 1]) * size / 60).abs().max() < 2
