from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasengine.evaluation import evaluating, recalibrate, score
from nasengine.measure import ACCURACY, NEGATIVE_MSE
from nasengine.task import Batch


def batches(count: int = 3, size: int = 16) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)
    return [
        Batch(3 * torch.randn(size, 4, 5, 5, generator=rng) + 2, torch.zeros(size, dtype=torch.int64))
        for _ in range(count)
    ]


def test_a_score_counts_every_example_once() -> None:
    logits = torch.eye(4)
    parts = [Batch(logits[:3], torch.tensor([0, 1, 0])), Batch(logits[3:], torch.tensor([3]))]
    assert score(lambda x: x, parts, ACCURACY) == 0.75


def test_a_score_is_the_mean_over_examples_and_not_over_batches() -> None:
    batches = [Batch(torch.zeros(3, 1), torch.ones(3, 1)), Batch(torch.zeros(1, 1), torch.full((1, 1), 3.0))]
    assert score(lambda x: x, batches, NEGATIVE_MSE) == -(3 + 9) / 4


def test_evaluating_puts_every_mode_back() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Sequential(nn.BatchNorm2d(4)))
    network[2][0].eval()  # frozen by its author
    with pytest.raises(ZeroDivisionError), evaluating(network):
        assert not any(part.training for part in network.modules()) and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert [part.training for part in network.modules()] == [True, True, True, True, False]
    assert torch.is_grad_enabled()


def test_recalibrated_statistics_are_the_true_means() -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.fill_(99.0)
    recalibrate(norm, batches())
    inputs = [part.inputs for part in batches()]
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3), correction=1) for x in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1 and norm.training


def test_statistics_behind_the_first_layer() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, momentum=0.3))
    recalibrate(network, batches(1))
    inputs = batches(1)[0].inputs
    with torch.no_grad():
        first = network[0](inputs)
        normal = (first - first.mean((0, 2, 3), keepdim=True)) / (
            first.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(network[3].running_mean, normal.relu().mean((0, 2, 3)))
    assert network[3].momentum == 0.3


def test_recalibration_draws_no_random_numbers_and_drops_nothing() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(4))
    before = torch.get_rng_state()
    recalibrate(network, batches())
    assert torch.equal(torch.get_rng_state(), before)
    plain = nn.BatchNorm2d(4)
    recalibrate(plain, batches())
    assert torch.equal(network[1].running_mean, plain.running_mean)


def test_recalibration_touches_no_weight_and_no_mode() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
            self.untracked = nn.BatchNorm2d(2, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return self.untracked(self.norm(self.conv(x))).mean((2, 3))

    network = Both().eval()
    before = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, batches())
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    assert not any(part.training for part in network.modules())


def test_a_failing_batch_leaves_the_momentum() -> None:
    norm = nn.BatchNorm2d(4)
    with pytest.raises(RuntimeError, match="running_mean"):
        recalibrate(norm, [Batch(torch.zeros(2, 5, 3, 3), torch.zeros(2))])
    assert norm.momentum == 0.1
