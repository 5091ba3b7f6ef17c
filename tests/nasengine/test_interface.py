from __future__ import annotations

import json

import pytest
import torch

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
