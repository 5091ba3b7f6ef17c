from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.measure import ACCURACY, NEGATIVE_MSE, Measure, mean_squared_error
from nasengine.seeding import generator
from nasengine.task import Augment, Dataset, DataSettings, Shapes, Task, load_task, stratified_split
from tests.nasengine.tasks import (
    batches_of,
    float_dataset,
    image_dataset,
    image_task,
    regression_dataset,
    token_dataset,
)


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

    def test_shapes_tell_numbers_and_tokens(self) -> None:
        assert Task(dataset=regression_dataset()).shapes == Shapes((3,), 2, vocabulary=0)
        texts = token_dataset()
        assert Task(dataset=texts).shapes == Shapes((6,), 2, vocabulary=9)
        assert Task(dataset=replace(texts, test_inputs=texts.test_inputs + 5)).shapes.vocabulary > 9

    def test_zeros_are_inputs_of_the_right_kind(self) -> None:
        numbers, tokens = Shapes((3, 2), 2).zeros(4), Shapes((5,), 2, vocabulary=9).zeros(1)
        assert numbers.shape == (4, 3, 2) and numbers.dtype == torch.float32 and not numbers.any()
        assert tokens.shape == (1, 5) and tokens.dtype == torch.int64 and not tokens.any()
        with torch.device("meta"):
            assert Shapes((3,), 2).zeros(1).is_meta

    def test_loss_and_measure_follow_the_targets(self) -> None:
        for dataset, loss, measure in (
            (image_dataset(), F.cross_entropy, ACCURACY),
            (token_dataset(), F.cross_entropy, ACCURACY),
            (regression_dataset(), mean_squared_error, NEGATIVE_MSE),
        ):
            task = Task(dataset=dataset)
            assert task.loss is loss and task.measure is measure and task.settings == DataSettings()

    def test_loss_and_measure_of_ones_own_stay(self) -> None:
        mine = Measure("near", lambda outputs, targets: ((outputs - targets).abs() < 1).float().mean(dim=1).sum())
        task = Task(dataset=regression_dataset(), loss=F.l1_loss, measure=mine)
        assert task.loss is F.l1_loss and task.measure is mine
        other = replace(task, settings=DataSettings(train_portion=0.6))
        assert other.loss is F.l1_loss and other.measure is mine

    def test_a_measure_that_is_none(self) -> None:
        with pytest.raises(SettingError) as caught:
            Task(dataset=image_dataset(), measure=F.l1_loss)  # type: ignore[arg-type]
        assert str(caught.value) == (
            "The measure of a task must be a Measure, but got function; write Measure(name, total)."
        )

    def test_tokens_are_left_as_they_are(self) -> None:
        mean, std = Task(dataset=token_dataset()).normalisation
        assert mean.tolist() == [0] * 6 and std.tolist() == [1] * 6

    def test_signals_are_standardised_per_channel(self) -> None:
        signals = torch.randn(30, 2, 50, generator=generator(3)) * torch.tensor([1.0, 9.0])[:, None] + 4
        targets = torch.arange(30) % 2
        dataset = replace(float_dataset(), train_inputs=signals, train_targets=targets, test_inputs=signals[:6])
        task = Task(dataset=dataset)
        assert task.normalisation[0].tolist() == pytest.approx([4, 4], abs=0.5)
        assert task.normalisation[1].tolist() == pytest.approx([1, 9], abs=0.5)

    def test_fingerprint_sees_every_target(self) -> None:
        dataset = regression_dataset()
        changed = dataset.test_targets.clone()
        changed[3, 1] += 1e-3
        one, other = Task(dataset=dataset), Task(dataset=replace(dataset, test_targets=changed))
        assert one.fingerprint == Task(dataset=regression_dataset()).fingerprint != other.fingerprint
        assert one.fingerprint.startswith("40 + 10 of (3,), crc32 ")

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

    @pytest.mark.parametrize("portion", [0.25, 0.5, 0.9])
    def test_numbers_are_split_at_random(self, portion: float) -> None:
        task = Task(dataset=regression_dataset(), settings=DataSettings(train_portion=portion))
        train, valid = task.split(3)
        assert len(train) == round(40 * portion) and torch.cat([train, valid]).sort().values.tolist() == list(range(40))
        assert train.tolist() != sorted(train.tolist()) and valid.tolist() != sorted(valid.tolist())
        assert torch.equal(train, task.split(3)[0]) and not torch.equal(train, task.split(4)[0])

    def test_numbers_too_few_to_split(self) -> None:
        task = Task(dataset=regression_dataset(4), settings=DataSettings(train_portion=0.9))
        with pytest.raises(DataError) as caught:
            task.split(0)
        assert str(caught.value) == (
            "Both parts of the training set of lines must have an example, but get 4 and 0; add examples or change "
            "data.train_portion from 0.9."
        )

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
            (
                {"train_targets": torch.arange(60) % 4},
                "must have targets 0 to 2, one for each name in classes, but has 0 to 3",
            ),
            (
                {"test_targets": torch.arange(10) - 1},
                "must have targets 0 to 2, one for each name in classes, but has -1 to 8",
            ),
            ({"train_targets": torch.arange(60) % 2}, "must have a training example, but 'c2' has none"),
            ({"test_inputs": torch.zeros(10, 3, 9, 9, dtype=torch.uint8)}, r"one shape, but have \(3, 8, 10\) and"),
            ({"train_inputs": torch.full((60, 4), float("nan"))}, "must be finite"),
            (
                {"train_inputs": torch.zeros(60, 3, 8, 10)},
                r"inputs of toy must have one type, but have torch.float32 and torch.uint8",
            ),
            (
                {"train_inputs": torch.zeros(60)},
                r"\(N, ...\) float32 numbers or \(N, ...\) int64 tokens, not torch.float32",
            ),
            ({"train_inputs": torch.zeros(60, 4, dtype=torch.int32)}, "not torch.int32 of shape"),
            ({"train_inputs": torch.zeros(0, 4), "train_targets": torch.zeros(0, dtype=torch.int64)}, "at least one"),
            ({"train_inputs": torch.zeros(60, 0)}, "at least one"),
            (
                {"train_inputs": torch.arange(240).view(60, 4) - 1},
                "tokens of 0 or more, but has -1; number them from 0",
            ),
            ({"train_inputs": np.zeros((60, 4))}, "torch tensors on the CPU, but its inputs are ndarray; convert them"),
            ({"train_targets": torch.zeros(60, device="meta")}, "on the CPU, but its targets are on meta; convert"),
            ({"train_targets": torch.zeros(60, 3, dtype=torch.int64)}, r"torch.int64 targets of shape \(60, 3\)"),
            (
                {"train_targets": torch.zeros(60)},
                r"a row \(N, k\) of float32 targets, .* torch.float32 targets of shape \(60,\)",
            ),
            ({"train_targets": torch.zeros(60, dtype=torch.int32)}, "torch.int32 targets"),
            ({"train_targets": torch.zeros(60, 2)}, "one target for each name in classes, but has 2 for 3 names"),
            ({"train_targets": torch.full((60, 3), float("inf"))}, "must be finite, but has NaN or infinite targets"),
            (
                {"train_targets": torch.zeros(60, 3)},
                "targets of toy must have one type, but have torch.float32 and torch.int64",
            ),
        ],
    )
    def test_bad_parts(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            replace(image_dataset(), **changes)
        assert str(caught.value).count(". ") == 0

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b"])
    def test_names_that_name_no_directory(self, name: str) -> None:
        with pytest.raises(DataError, match=r"must have a name that can name a directory, but got .*; rename it\.$"):
            replace(image_dataset(), name=name)

    def test_kinds(self) -> None:
        kinds = [(data.is_image, data.is_regression, data.vocabulary) for data in _one_of_each()]
        assert kinds == [(True, False, 0), (False, False, 0), (False, True, 0), (False, False, 9)]

    def test_strata(self) -> None:
        assert torch.equal(image_dataset().strata, image_dataset().train_targets)
        assert regression_dataset().strata.tolist() == [0] * 40


def _one_of_each() -> list[Dataset]:
    return [image_dataset(), float_dataset(), regression_dataset(), token_dataset()]


class TestLoadTask:
    def test_digits(self) -> None:
        task = load_task("digits", DataSettings(train_portion=0.75))
        assert task.name == "digits" and task.shapes == Shapes((1, 8, 8), 10)
        assert task.settings.train_portion == 0.75

    def test_a_table_of_scikit_learn(self) -> None:
        task = load_task("sklearn:wine", DataSettings(train_size=60))
        assert task.name == "wine" and task.shapes == Shapes((13,), 3) and len(task.dataset.train_targets) == 60

    def test_unknown(self) -> None:
        with pytest.raises(UnknownNameError, match=r"Unknown data scheme 'digit': did you mean 'digits' "):
            load_task("digit")
