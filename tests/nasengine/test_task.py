from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.seeding import generator
from nasengine.task import (
    Augment,
    Batches,
    Dataset,
    DataSettings,
    Shapes,
    Task,
    count_correct,
    evaluation_batches,
    load_task,
    stratified_split,
)

CPU = torch.device("cpu")


def image_dataset(count: int = 60, classes: int = 3, side: int = 8) -> Dataset:
    rng = generator(7)
    return Dataset(
        name="toy",
        train_inputs=torch.randint(256, (count, 3, side, side + 2), dtype=torch.uint8, generator=rng),
        train_targets=torch.arange(count) % classes,
        test_inputs=torch.randint(256, (10, 3, side, side + 2), dtype=torch.uint8, generator=rng),
        test_targets=torch.arange(10) % classes,
        classes=tuple(f"c{index}" for index in range(classes)),
        augment=Augment(crop=2, flip=True),
        final_cutout=4,
    )


def float_dataset() -> Dataset:
    inputs = torch.randn(40, 5, generator=generator(8)) * 3 + 100
    inputs[:, 2] = 0.1
    return Dataset(
        name="table",
        train_inputs=inputs,
        train_targets=torch.arange(40) % 2,
        test_inputs=inputs[:6],
        test_targets=torch.arange(6) % 2,
        classes=("a", "b"),
        augment=Augment(),
        final_cutout=0,
    )


def image_task(settings: DataSettings | None = None) -> Task:
    return Task(dataset=image_dataset(), settings=settings or DataSettings())


def batches_of(
    task: Task, size: int = 8, *, seed: int = 1, stream: int = 0, augment: Augment | None = None, count: int = 60
) -> Batches:
    chosen = task.search_augment if augment is None else augment
    return Batches(task, torch.arange(count), size, seed=seed, stream=stream, augment=chosen, device=CPU)


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

    def test_the_data_set_stays_as_it_is(self) -> None:
        for dataset in (image_dataset(), float_dataset()):
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


class TestTask:
    def test_shapes_name_and_augmentation(self) -> None:
        task = image_task(DataSettings(crop=1, flip=False))
        assert (task.name, task.shapes) == ("toy", Shapes((3, 8, 10), 3))
        assert task.search_augment == Augment(crop=1)
        assert task.final_augment == Augment(crop=1, cutout=4)
        assert image_task().search_augment == Augment(crop=2, flip=True)
        assert image_task(DataSettings(cutout=2)).final_augment == Augment(crop=2, flip=True, cutout=2)

    def test_normalisation_is_that_of_the_training_part(self) -> None:
        task = image_task()
        mean, std = task.normalisation
        values = task.dataset.train_inputs.double().transpose(0, 1).flatten(1)
        assert torch.allclose(mean.double(), values.mean(1)) and mean.dtype == torch.float32
        assert torch.allclose(std.double(), values.std(1, correction=0))
        assert task.normalisation is task.normalisation

    def test_normalisation_sees_all_chunks(self) -> None:
        task = Task(dataset=image_dataset(2500, side=2), settings=DataSettings(crop=0, cutout=0))
        values = task.dataset.train_inputs.double().transpose(0, 1).flatten(1)
        assert torch.allclose(task.normalisation[0].double(), values.mean(1))
        assert torch.allclose(task.normalisation[1].double(), values.std(1, correction=0))

    def test_floats_are_standardised_per_feature(self) -> None:
        task = Task(dataset=float_dataset(), settings=DataSettings())
        inputs = torch.cat([batches_of(task, augment=Augment(), count=40)[step].inputs for step in range(5)])
        assert inputs.mean(0).tolist() == pytest.approx([0] * 5, abs=1e-5)
        assert inputs.std(0, correction=0).tolist() == pytest.approx([1, 1, 0, 1, 1], abs=1e-4)
        assert task.normalisation[1][2] == 1

    def test_count_correct(self) -> None:
        logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
        right = count_correct(logits, torch.tensor([1, 1, 1]))
        assert right.shape == () and right == 2

    def test_augmentation_must_fit_the_data(self) -> None:
        with pytest.raises(
            SettingError, match=r"data.crop, data.flip and data.cutout need images, which table has not"
        ):
            Task(dataset=float_dataset(), settings=DataSettings(flip=True))
        with pytest.raises(SettingError, match=r"data.cutout must be smaller than the images' 8 pixels, not 8"):
            image_task(DataSettings(cutout=8))
        with pytest.raises(SettingError, match="need images"):
            batches_of(Task(dataset=float_dataset(), settings=DataSettings()), augment=Augment(crop=1))


class TestSplit:
    @pytest.mark.parametrize("portion", [0.25, 0.5, 0.9])
    def test_is_stratified_complete_and_shuffled(self, portion: float) -> None:
        task = image_task(DataSettings(train_portion=portion))
        train, valid = task.split(3)
        assert torch.cat([train, valid]).sort().values.tolist() == list(range(60))
        assert torch.bincount(task.dataset.train_targets[train]).tolist() == [round(20 * portion)] * 3
        assert train.tolist() != sorted(train.tolist()) and valid.tolist() != sorted(valid.tolist())

    def test_depends_on_the_seed_alone(self) -> None:
        task = image_task()
        assert torch.equal(task.split(3)[0], image_task().split(3)[0])
        assert not torch.equal(task.split(3)[0], task.split(4)[0])

    def test_class_missing_from_a_part(self) -> None:
        targets = torch.tensor([0] * 30 + [1] * 29 + [2])
        dataset = replace(image_dataset(), train_targets=targets)
        with pytest.raises(DataError, match=r"'c2' gets 0 and 1 examples; .* data.train_portion from 0.5"):
            Task(dataset=dataset, settings=DataSettings()).split(0)
        with pytest.raises(DataError, match=r"'c2' gets 1 and 0 examples"):
            Task(dataset=dataset, settings=DataSettings(train_portion=0.8)).split(0)

    def test_uneven_classes(self) -> None:
        targets = torch.tensor([2, 0, 2, 2, 0, 2, 2, 2, 0, 2, 2, 2, 2])
        first, second = stratified_split(targets, 0.5, generator(0))
        assert torch.bincount(targets[first]).tolist() == [2, 0, 5]
        assert torch.bincount(targets[second]).tolist() == [1, 0, 5]


class TestSettings:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"train_portion": 0.0}, r"data.train_portion must be more than 0.0"),
            ({"train_portion": 1.0}, r"data.train_portion must be less than 1, but got 1.0"),
            ({"train_portion": float("nan")}, r"data.train_portion must be"),
            ({"image_size": 0}, r"data.image_size must be at least 1, but got 0"),
            ({"crop": -1}, r"data.crop must be at least 0, but got -1"),
            ({"crop": 1.5}, r"data.crop must be .*whole number or none, but got 1.5"),
            ({"cutout": -4}, r"data.cutout must be at least 0, but got -4"),
            ({"flip": 1}, r"data.flip must be .*true or false or none, but got 1"),
        ],
    )
    def test_out_of_range(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingError, match=message):
            DataSettings(**values)

    def test_augment(self) -> None:
        with pytest.raises(SettingError, match=r"augment.crop must be at least 0, but got -1"):
            Augment(crop=-1)


class TestDataset:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"train_inputs": torch.zeros(60, 3, 8, 10, dtype=torch.float64)}, r"float64 of shape \(60, 3, 8, 10\)"),
            ({"train_inputs": torch.zeros(60, 8, 10, dtype=torch.uint8)}, r"\(N, C, H, W\) uint8 images"),
            ({"test_targets": torch.zeros(9, dtype=torch.int64)}, "The test part of toy must have one int64 target"),
            ({"train_targets": torch.arange(60) % 4}, "must have targets 0 to 2, but has 0 to 3"),
            ({"test_targets": torch.arange(10) - 1}, "must have targets 0 to 2, but has -1 to 8"),
            ({"train_targets": torch.arange(60) % 2}, "must have a training example, but 'c2' has none"),
            ({"test_inputs": torch.zeros(10, 3, 9, 9, dtype=torch.uint8)}, r"one shape, but have \(3, 8, 10\) and"),
            ({"train_inputs": torch.full((60, 4), float("nan"))}, "must be finite"),
        ],
    )
    def test_bad_parts(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            replace(image_dataset(), **changes)


class TestLoadTask:
    def test_digits(self) -> None:
        task = load_task("digits", DataSettings(train_portion=0.75))
        assert task.name == "digits" and task.shapes == Shapes((1, 8, 8), 10)
        assert task.settings.train_portion == 0.75

    def test_unknown(self) -> None:
        with pytest.raises(UnknownNameError, match=r"Unknown data scheme 'digit': did you mean 'digits' "):
            load_task("digit")
