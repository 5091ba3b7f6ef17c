from __future__ import annotations

import pytest
import torch

from nasengine.errors import ArchitectureError, SettingError
from nasengine.measure import (
    ACCURACY,
    NEGATIVE_MSE,
    Measure,
    count_correct,
    mean_squared_error,
    negative_squared_error,
)

OUTPUTS = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
TARGETS = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 1.0]])


def test_count_correct() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    right = count_correct(logits, torch.tensor([1, 1, 1]))
    assert right.shape == () and right == 2 and right.dtype == torch.int64
    assert torch.equal(ACCURACY(logits, torch.tensor([1, 1, 1])), right)


def test_squared_error_counted_by_hand() -> None:
    assert negative_squared_error(OUTPUTS, TARGETS).tolist() == -(4 + 9) / 2
    assert mean_squared_error(OUTPUTS, TARGETS).tolist() == pytest.approx((4 + 9) / 6)
    assert NEGATIVE_MSE(OUTPUTS, TARGETS).shape == ()


def test_the_loss_has_the_gradient_of_the_mean_square() -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    mean_squared_error(outputs, TARGETS).backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, (OUTPUTS - TARGETS) / 3)


@pytest.mark.parametrize("function", [negative_squared_error, mean_squared_error])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 2)])
def test_outputs_are_not_broadcast(function: type, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        function(torch.zeros(shape), TARGETS)
    assert str(caught.value) == (
        f"A network for a regression must give one number a target, (3, 2) for this batch, but gave {shape}; end it "
        "with a layer of shapes.outputs numbers."
    )


@pytest.mark.parametrize("name", ["", "loss", "size", "Top 5", "a-b", "5th", "accuracy\n"])
def test_names_that_cannot_end_a_column(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        Measure(name, count_correct)
    assert str(caught.value) == (
        "A measure must have a name of small letters, digits and underscores other than loss and size, but got "
        f"{name!r}; rename it."
    )


@pytest.mark.parametrize(
    ("total", "came"),
    [
        (lambda outputs, targets: (outputs == targets).sum(dim=1), r"shape \(3,\)"),
        (lambda outputs, targets: 3.0, "float"),
    ],
)
def test_a_total_that_is_not_one_number(total: type, came: str) -> None:
    with pytest.raises(SettingError, match=rf"'mine' must give a 0-dim tensor, .*, but gave {came}; sum it up\.$"):
        Measure("mine", total)(OUTPUTS, TARGETS)
