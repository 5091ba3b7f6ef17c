from __future__ import annotations

import pytest
import torch

from nasengine.data import load_dataset
from nasengine.errors import DataError, UnknownNameError
from nasengine.task import Augment


@pytest.mark.parametrize(
    ("name", "train", "test", "features", "classes"),
    [
        ("iris", 120, 30, 4, ("setosa", "versicolor", "virginica")),
        ("wine", 142, 36, 13, ("class_0", "class_1", "class_2")),
        ("breast_cancer", 456, 113, 30, ("malignant", "benign")),
    ],
)
def test_classes(name: str, train: int, test: int, features: int, classes: tuple[str, ...]) -> None:
    data = load_dataset(f"sklearn:{name}")
    assert data.train_inputs.shape == (train, features) and data.test_inputs.shape == (test, features)
    assert data.train_inputs.dtype == torch.float32 and data.name == name and data.classes == classes
    counts = torch.bincount(data.test_targets), torch.bincount(data.train_targets)
    assert (counts[0] / (counts[0] + counts[1])).tolist() == pytest.approx([0.2] * len(classes), abs=0.01)
    assert torch.equal(load_dataset(f"sklearn:{name}").test_inputs, data.test_inputs)
    assert data.augment == Augment() and not data.is_regression


def test_regression() -> None:
    data = load_dataset("sklearn:diabetes")
    assert data.is_regression and data.classes == ("progression",)
    assert data.train_inputs.shape == (354, 10) and data.test_targets.shape == (88, 1)
    assert float(data.train_targets.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train_targets.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert abs(float(data.test_targets.mean())) > 1e-3  # by the training part alone
    assert torch.equal(load_dataset("sklearn:diabetes").test_targets, data.test_targets)


def test_rows_keep_their_targets() -> None:
    from sklearn.datasets import load_diabetes

    data = load_dataset("sklearn:diabetes")
    features, progression = load_diabetes(return_X_y=True, scaled=False)
    rows = {
        tuple(row): target for row, target in zip(torch.tensor(features).float().tolist(), progression, strict=True)
    }
    for inputs, targets in ((data.train_inputs, data.train_targets), (data.test_inputs, data.test_targets)):
        raw = torch.tensor([rows[tuple(row)] for row in inputs.tolist()])
        undone = targets[:, 0] * data.target_std[0] + data.target_mean[0]
        assert torch.allclose(undone, raw.float(), atol=1e-3)


def test_unknown_tables() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("sklearn:wines")
    assert str(caught.value) == (
        "Unknown table of scikit-learn 'wines': did you mean 'wine' (known: breast_cancer, diabetes, iris, wine)?"
    )
    for spec in ("sklearn", "sklearn:"):
        with pytest.raises(DataError, match=rf"sklearn must come with a name, but got '{spec}'; write sklearn:NAME\.$"):
            load_dataset(spec)
