from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.batches import Batches
from nasengine.config import SearchSettings
from nasengine.judging import Judge
from nasengine.measure import NEGATIVE_MSE
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Augment, Dataset, DataSettings, Task
from nasengine.testing import SizedSpace
from tests.nasengine.tasks import CPU

SPACE = SizedSpace()
TRAIN, VALID = torch.arange(10, 40), torch.arange(10)
SMALL = Architecture.parse("width=2 depth=1 block1/kernel=1 block1/hidden=1 block2/kernel=1 block2/hidden=1 last=tanh")


def task() -> Task:
    """Signals (2, 5) whose mean is far from zero, and whose class is the sign of a sum."""
    inputs = 3 * torch.randn(50, 2, 5, generator=generator(3)) + 2
    targets = (inputs[:, 0].sum(-1) > inputs[:, 1].sum(-1)).long()
    data = Dataset(
        name="signals",
        train_inputs=inputs[:40],
        train_targets=targets[:40],
        test_inputs=inputs[40:],
        test_targets=targets[40:],
        classes=("a", "b"),
    )
    return Task(dataset=data, settings=DataSettings())


TASK = task()


def judge(task: Task = TASK, **settings: Any) -> Judge:
    return Judge(task, SearchSettings(**{"batch_size": 8, "device": "cpu", **settings}), TRAIN, VALID, 4, CPU)


@pytest.fixture
def supernet() -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SPACE.supernet(TASK.shapes, TASK.loss)


def normalised(indices: Tensor) -> Tensor:
    mean, std = TASK.normalisation
    return (TASK.dataset.train_inputs[indices] - mean.view(1, -1, 1)) / std.view(1, -1, 1)


def share_right(logits: Tensor, indices: Tensor) -> float:
    return float((logits.argmax(1) == TASK.dataset.train_targets[indices]).double().mean())


def test_a_supernet_is_judged_on_the_held_out_examples_as_it_is(supernet: Supernet) -> None:
    mixture = supernet.full()
    before = copy.deepcopy(supernet.state_dict())
    found = judge().supernet(supernet.train(), mixture)
    with torch.no_grad():
        assert found == share_right(supernet.eval()(normalised(VALID), mixture), VALID)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_a_subnet_has_the_statistics_of_its_own_activations(supernet: Supernet) -> None:
    rule = judge()
    network = rule.extracted(supernet, SMALL)
    stem = network.get_submodule("stem")
    assert isinstance(stem, nn.Sequential) and isinstance(stem[1], nn.BatchNorm1d)
    batches = Batches(TASK, TRAIN, 8, seed=0, stream=4, augment=Augment(), device=CPU)
    seen = torch.stack([stem[0](batches[step].inputs).mean((0, 2)) for step in range(3)]).mean(0)
    torch.testing.assert_close(stem[1].running_mean, seen.detach())
    with torch.no_grad():
        assert rule.subnet(supernet, SMALL) == share_right(network.eval()(normalised(VALID)), VALID)


def test_statistics_of_mixtures_have_no_part(supernet: Supernet) -> None:
    expected = judge().subnet(supernet, SMALL)
    spoiled = copy.deepcopy(supernet)
    for name, buffer in spoiled.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(100.0)
    assert judge().subnet(spoiled, SMALL) == expected
    assert all(bool((b == 100).all()) for name, b in spoiled.named_buffers() if name.endswith("running_mean"))


def test_judging_leaves_supernet_and_modes_alone(supernet: Supernet) -> None:
    before, modes = copy.deepcopy(supernet.state_dict()), [m.training for m in supernet.train().modules()]
    judge().subnet(supernet, SMALL)
    judge().supernet(supernet, supernet.full())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert [m.training for m in supernet.modules()] == modes and torch.is_grad_enabled()


def test_judging_is_a_function_of_seed_and_weights(supernet: Supernet) -> None:
    one, again = judge().extracted(supernet, SMALL), judge().extracted(supernet, SMALL)
    other = judge(seed=1).extracted(supernet, SMALL)
    assert same(one, again) and not same(one, other)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize(("eval_size", "count"), [(4, 4), (10, 10), (5000, 10)])
def test_at_most_as_many_examples_as_are_asked_for(supernet: Supernet, eval_size: int, count: int) -> None:
    seen: list[int] = []
    handle = supernet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    judge(eval_size=eval_size, batch_size=2).supernet(supernet, supernet.full())
    handle.remove()
    assert sum(seen) == count and max(seen) == 4


def test_the_measure_is_that_of_the_task() -> None:
    inputs = torch.randn(20, 2, 5, generator=generator(3))
    targets = inputs.mean(-1)
    data = Dataset(
        name="means",
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        classes=("one", "other"),
    )
    means = Task(dataset=data, settings=DataSettings())
    assert means.measure is NEGATIVE_MSE
    supernet = SPACE.supernet(means.shapes, means.loss).eval()
    rule = Judge(means, SearchSettings(batch_size=4, device="cpu"), torch.arange(10), torch.arange(10, 20), 4, CPU)
    mean, std = means.normalisation
    with torch.no_grad():
        outputs = supernet((inputs[10:] - mean.view(1, -1, 1)) / std.view(1, -1, 1), supernet.full())
    assert rule.supernet(supernet, supernet.full()) == pytest.approx(-float(((outputs - targets[10:]) ** 2).mean()))
