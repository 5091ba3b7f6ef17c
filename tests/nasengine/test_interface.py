from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from nasengine.errors import DataError, RunError
from nasengine.interface import Interface
from nasengine.seeding import generator
from nasengine.task import Dataset, Task
from tests.nasengine.tasks import float_dataset, image_dataset, regression_dataset, token_dataset


@pytest.mark.parametrize("dataset", [image_dataset(), float_dataset(), regression_dataset(), token_dataset()])
def test_what_is_stored_is_read_back_to_the_bit(dataset: Dataset) -> None:
    task = Task(dataset=dataset)
    interface = Interface.of(task)
    assert Interface.read(json.loads(json.dumps(interface.plain())), "run.json") == interface
    assert interface.shapes == task.shapes and interface.regression == dataset.is_regression
    if interface.vocabulary:
        assert interface.mean == interface.std == ()
    else:
        for own, moment in zip((interface.mean, interface.std), task.normalisation, strict=True):
            assert torch.equal(torch.tensor(own), moment)


def test_random_inputs_are_as_the_network_meets_them() -> None:
    tokens = Interface.of(Task(dataset=token_dataset()))
    drawn = tokens.examples(200, generator(0))
    assert drawn.shape == (200, 6) and drawn.dtype == torch.int64 and drawn.unique().tolist() == list(range(9))
    images = Interface.of(Task(dataset=image_dataset())).examples(50, generator(0))
    assert images.shape == (50, 3, 8, 10) and images.dtype == torch.float32 and abs(float(images.mean())) < 0.1


def test_preprocessing_in_words() -> None:
    said = [Interface.of(Task(dataset=dataset)).preprocessing for dataset in (image_dataset(), token_dataset())]
    assert said[0] == "(x - mean) / std in float32, by channel (dimension 1), x being uint8 images from 0 to 255"
    assert said[1] == "none: int64 tokens from 0 to 8"


def standardised() -> Dataset:
    return replace(regression_dataset(), target_mean=(10.0, -1.0), target_std=(2.0, 0.5))


def test_postprocessing_in_words() -> None:
    several = (image_dataset(), regression_dataset(), standardised())
    said = [Interface.of(Task(dataset=dataset)).postprocessing for dataset in several]
    assert said[0].startswith("none: a score a class")
    assert said[1] == "none: the outputs are the targets as the data have them"
    assert said[2] == "y * target_std + target_mean, by target, for the targets in their own units: y is standardised"


def test_how_targets_were_standardised_is_kept() -> None:
    interface = Interface.of(Task(dataset=standardised()))
    plain = json.loads(json.dumps(interface.plain()))
    assert (plain["target_mean"], plain["target_std"]) == ([10.0, -1.0], [2.0, 0.5])
    assert Interface.read(plain, "run.json") == interface
    older = {name: value for name, value in plain.items() if not name.startswith("target_")}
    assert Interface.read(older, "run.json") == replace(interface, target_mean=(), target_std=())
    for wrong in ({"target_std": [2.0]}, {"target_std": [2.0, 0.0]}, {"target_mean": ["a", 1.0]}):
        with pytest.raises(RunError, match="must say what the network takes and gives"):
            Interface.read(plain | wrong, "run.json")


@pytest.mark.parametrize(("mean", "std"), [((1.0,), (1.0, 2.0)), ((1.0, 2.0), (1.0, 0.0)), ((), (1.0, 1.0))])
def test_moments_of_targets_that_do_not_fit(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="must be a number for each target of a regression, with deviations above 0"):
        replace(regression_dataset(), target_mean=mean, target_std=std)
