from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.batches import Batches, evaluation_batches
from nasengine.errors import DataError, SettingError
from nasengine.task import Augment, Dataset, DataSettings, Task
from tests.nasengine.tasks import (
    CPU,
    batches_of,
    float_dataset,
    image_dataset,
    image_task,
    regression_dataset,
    token_dataset,
)


def normalised(images: Tensor, task: Task) -> Tensor:
    mean, std = task.normalisation
    return (images.float() - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


class TestBatches:
    def test_same_key_same_bits(self) -> None:
        task = image_task()
        one, two = batches_of(task, augment=task.final_augment), batches_of(task, augment=task.final_augment)
        for step in (0, 5, 6, 13, 2, 100):
            assert torch.equal(one[step].inputs, two[step].inputs)
            assert torch.equal(one[step].targets, two[step].targets)

    @pytest.mark.parametrize(("seed", "stream", "step"), [(2, 0, 3), (1, 1, 3), (1, 0, 4), (1, 0, 3 + 7)])
    def test_other_key_other_bits(self, seed: int, stream: int, step: int) -> None:
        task = image_task()
        assert not torch.equal(batches_of(task)[3].inputs, batches_of(task, seed=seed, stream=stream)[step].inputs)

    def test_resume_gives_the_uninterrupted_sequence(self) -> None:
        task = image_task()
        whole, resumed = batches_of(task), batches_of(task)
        inputs = [whole[step].inputs for step in range(20)]
        assert all(torch.equal(resumed[step].inputs, inputs[step]) for step in range(11, 20))

    def test_every_image_once_per_epoch(self) -> None:
        task = image_task()
        batches = batches_of(task, 15, augment=Augment())
        everything = normalised(task.dataset.train_inputs, task)
        orders = []
        for epoch in range(2):
            seen = torch.cat([batches[step].inputs for step in range(epoch * 4, epoch * 4 + 4)])
            matches = (seen[:, None] == everything[None]).flatten(2).all(dim=2)
            orders.append(matches.int().argmax(dim=1))
            assert orders[-1].sort().values.tolist() == list(range(60))
        assert not torch.equal(*orders)

    def test_partial_batch_is_dropped_and_only_the_indices_are_used(self) -> None:
        task = image_task()
        indices = torch.arange(0, 60, 3)
        batches = Batches(task, indices, 6, seed=0, stream=0, augment=Augment(), device=CPU)
        assert len(batches) == 3
        assert not any(batches[step].targets.any() for step in range(7))

    def test_layout_and_types(self) -> None:
        inputs, targets = batches_of(image_task())[0]
        assert inputs.shape == (8, 3, 8, 10) and inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert inputs.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("padding", [0, 2, 5])
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("cutout", [0, 1, 4, 7])
    def test_matches_a_naive_reference(self, padding: int, flip: bool, cutout: int) -> None:
        task, augment = image_task(), Augment(crop=padding, flip=flip, cutout=cutout)
        plain, changed = batches_of(task, 30, augment=Augment()), batches_of(task, 30, augment=augment)
        found = [
            _explains(image, result, augment, task)
            for image, result in zip(_raw(plain[0].inputs, task), changed[0].inputs, strict=True)
        ]
        assert all(found)
        if padding:
            assert len({(top, left) for crops in found for top, left, _ in crops}) > 5
        if flip:
            assert {mirrored for crops in found for _, _, mirrored in crops} == {False, True}

    def test_crop_and_flip_are_uniform(self) -> None:
        images = torch.zeros(60, 1, 5, 5, dtype=torch.uint8)
        images[:, :, 2, 3] = 255
        dataset = replace(image_dataset(), train_inputs=images, test_inputs=images[:10], final_cutout=0)
        task = Task(dataset=dataset, settings=DataSettings())
        batches = batches_of(task, 60, augment=Augment(crop=1, flip=True))
        seen = torch.cat([_raw(batches[step].inputs, task) for step in range(60)])[:, 0] == 255
        rate = seen.float().mean(dim=0)
        assert rate.sum(dim=1).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.03)
        assert rate.sum(dim=0).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 6, 1 / 6], abs=0.03)

    def test_cutout_centres_cover_the_image_and_are_clipped(self) -> None:
        task = image_task()
        batches = batches_of(task, 60, augment=Augment(cutout=4))
        holes = torch.cat([(batches[step].inputs == 0).all(dim=1) for step in range(20)])
        sizes = holes.flatten(1).sum(dim=1)
        assert sizes.min() == 4 and sizes.max() == 16
        assert holes.any(dim=0).all()

    def test_too_few_images_for_a_batch(self) -> None:
        with pytest.raises(DataError, match=r"A batch of 61 needs .* has 60; choose a smaller --batch-size"):
            batches_of(image_task(), 61)

    def test_wrong_arguments(self) -> None:
        with pytest.raises(SettingError, match="--batch-size must be 1 or more, not 0"):
            batches_of(image_task(), 0)
        with pytest.raises(IndexError, match="not -1"):
            batches_of(image_task())[-1]

    def test_tokens_come_as_they_are(self) -> None:
        task = Task(dataset=token_dataset())
        batches = batches_of(task, 20, count=40)
        inputs = torch.cat([batches[step].inputs for step in range(2)])
        order = torch.cat([batches[step].targets for step in range(2)])
        assert inputs.dtype == torch.int64 and order.tolist() == (inputs[:, 0] > 4).long().tolist()
        assert sorted(inputs.tolist()) == sorted(task.dataset.train_inputs.tolist())

    def test_numbers_keep_their_targets(self) -> None:
        task = Task(dataset=regression_dataset())
        batches, (mean, std) = batches_of(task, 20, count=40), task.normalisation
        for step in range(3):
            inputs, targets = batches[step]
            raw = inputs * std + mean
            assert targets.dtype == torch.float32 and targets.shape == (20, 2)
            torch.testing.assert_close(targets, torch.stack([raw[:, 0] - raw[:, 1], 2 * raw[:, 2]], dim=1))

    @pytest.mark.parametrize("dataset", [token_dataset(), regression_dataset()], ids=lambda dataset: dataset.name)
    def test_only_images_are_augmented(self, dataset: Dataset) -> None:
        with pytest.raises(SettingError, match=f"need images, which {dataset.name} has not"):
            batches_of(Task(dataset=dataset), augment=Augment(flip=True), count=40)

    def test_the_data_set_stays_as_it_is(self) -> None:
        for dataset in (image_dataset(), float_dataset(), token_dataset()):
            task, before = Task(dataset=dataset, settings=DataSettings()), dataset.train_inputs.clone()
            batches_of(task, count=40)[0].inputs.zero_()
            next(iter(evaluation_batches(task, dataset.train_inputs, dataset.train_targets, 8, CPU))).inputs.zero_()
            assert torch.equal(dataset.train_inputs, before)


def _raw(inputs: Tensor, task: Task) -> Tensor:
    mean, std = task.normalisation
    return (inputs * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)).round().to(torch.uint8)


def _explains(image: Tensor, result: Tensor, augment: Augment, task: Task) -> list[tuple[int, int, bool]]:
    """All (top, left, mirrored) with which changing `image` step by step gives `result`."""
    padding, (_, height, width) = augment.crop, image.shape
    padded, found = F.pad(image, [padding] * 4), []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            for mirrored in (False, True) if augment.flip else (False,):
                window = padded[:, top : top + height, left : left + width]
                window = window.flip(2) if mirrored else window
                expected = normalised(window[None], task)[0]
                if _equal_but_for_square(expected, result, augment.cutout):
                    found.append((top, left, mirrored))
    return found


def _equal_but_for_square(expected: Tensor, result: Tensor, side: int) -> bool:
    _, height, width = expected.shape
    if side == 0:
        return torch.equal(expected, result)
    if not torch.equal(expected[result != 0], result[result != 0]):
        return False
    for row in range(height):
        for column in range(width):
            cut = expected.clone()
            top, left = row - side // 2, column - side // 2
            cut[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
            if torch.equal(cut, result):
                return True
    return False


class TestEvaluationBatches:
    def test_all_in_order_with_the_partial_one(self) -> None:
        task = image_task()
        inputs, targets = task.dataset.test_inputs, task.dataset.test_targets
        batches = list(evaluation_batches(task, inputs, targets, 4, CPU))
        assert [len(batch.targets) for batch in batches] == [4, 4, 2]
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), normalised(inputs, task))
        assert torch.equal(torch.cat([batch.targets for batch in batches]), targets)
        assert all(batch.inputs.is_contiguous(memory_format=torch.channels_last) for batch in batches)
