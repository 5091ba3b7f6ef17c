"""Subnets judged inside their supernet have the scores of the extracted networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nasengine.config import SearchSettings
from nasengine.elastic import ElasticDepth
from nasengine.evaluation import evaluating
from nasengine.judging import Judge
from nasengine.seeding import generator
from nasengine.separable import by_formula
from nasengine.space import Space
from nasengine.subnets import judging
from nasengine.supernet import MixedOp, Supernet
from nasengine.task import Dataset, DataSettings, Shapes, Task
from nasengine.testing import SizedSpace
from search_spaces.ofa import OFA
from search_spaces.transformer import Transformer
from tests.nasengine.tasks import CPU

SMALL = OFA(width=0.5, units=2, depths=(1, 2), kernels=(3, 5), expands=(1, 2))


def task(*shape: int) -> Task:
    """Numbers or images of two classes, which are far from standardised."""
    inputs = 3 * torch.randn(90, *shape, generator=generator(3)) + 2
    if len(shape) == 3:
        inputs = (20 * inputs + 100).clamp(0, 255).to(torch.uint8)
    targets = torch.arange(90) % 2
    data = Dataset(
        name="numbers",
        train_inputs=inputs[:80],
        train_targets=targets[:80],
        test_inputs=inputs[80:],
        test_targets=targets[80:],
        classes=("a", "b"),
    )
    return Task(dataset=data, settings=DataSettings())


def judge(task: Task) -> Judge:
    settings = SearchSettings(batch_size=8, device="cpu")
    return Judge(task, settings, torch.arange(20, 80), torch.arange(20), 4, CPU)


def supernet(space: Space, task: Task) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = space.supernet(task.shapes, task.loss)
    with torch.no_grad():
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer.add_(5)  # statistics that nobody may take
    return made


@pytest.mark.parametrize(
    ("space", "shape"),
    [(SizedSpace(), (2, 5)), (SMALL, (3, 8, 8)), (Transformer(depth=2, embedding=16, patch=4), (3, 8, 8))],
    ids=["signals", "ofa", "transformer"],
)
@pytest.mark.parametrize("formula", [False, True])
def test_outputs_are_those_of_the_extracted_network(space: Space, shape: tuple[int, ...], formula: bool) -> None:
    data = task(*shape)
    rule, full = judge(data), supernet(space, data)
    before = copy.deepcopy(full.state_dict())
    for seed in range(4):
        architecture = space.sample(full.choices, generator(seed))
        network = rule.extracted(full, architecture)
        with evaluating(network):
            expected = torch.cat([network(batch.inputs) for batch in rule._held_out()])
        if formula:
            with by_formula():
                outputs = rule._outputs(full, architecture)
        else:
            outputs = rule._outputs(full, architecture)
        assert outputs is not None
        torch.testing.assert_close(torch.cat(outputs), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert rule.subnet(full, architecture) == rule.plain(full, architecture)
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items())
    assert judging() is None and not any("forward" in vars(module) for module in full.modules())


class _Centred(nn.Module):
    """Mixes the examples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class _Folded(nn.Module):
    """A batch norm whose rows are no batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x[:, :3].repeat(2, 1)[1:])
        return torch.cat([y[:1], y])[: len(x)]


class _Odd(Space):
    name = "odd"

    def network(self, shapes: Shapes) -> nn.Module:
        options = {"centred": _Centred(), "plain": nn.Identity()}
        return nn.Sequential(MixedOp("operation", options), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class _Repeating(Space):
    name = "repeating"

    def network(self, shapes: Shapes) -> nn.Module:
        norm = nn.BatchNorm1d(4)
        layers = [nn.Sequential(nn.Linear(4, 4), norm) for _ in range(3)]
        return nn.Sequential(ElasticDepth("depth", layers), nn.Linear(4, 2))


class _Folding(Space):
    name = "folding"

    def network(self, shapes: Shapes) -> nn.Module:
        layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
        return nn.Sequential(ElasticDepth("depth", layers), _Folded(), nn.Linear(3, 2))


@pytest.mark.parametrize("space", [_Odd(), _Folding()])
def test_networks_that_mix_examples_are_judged_by_the_extracted_one(space: Space) -> None:
    data = task(4)
    rule, full = judge(data), supernet(space, data)
    architecture = space.smallest(full.choices)
    assert rule._outputs(full, architecture) is None
    assert rule.subnet(full, architecture) == rule.plain(full, architecture)
    assert rule._outputs(full, space.largest(full.choices)) is None


def test_a_norm_that_is_used_twice_has_one_mean() -> None:
    data = task(4)
    rule, full = judge(data), supernet(_Repeating(), data)
    architecture = _Repeating().largest(full.choices)
    network = rule.extracted(full, architecture)
    with evaluating(network):
        expected = torch.cat([network(batch.inputs) for batch in rule._held_out()])
    outputs = rule._outputs(full, architecture)
    assert outputs is not None
    torch.testing.assert_close(torch.cat(outputs), expected)


def test_scores_do_not_depend_on_what_was_judged_before() -> None:
    data = task(3, 8, 8)
    full = supernet(SMALL, data)
    one, other = (SMALL.sample(full.choices, generator(seed)) for seed in (1, 2))
    rule = judge(data)
    rule.subnet(full, one)
    later, first = rule._outputs(full, other), judge(data)._outputs(full, other)
    assert later is not None and first is not None
    assert all(torch.equal(a, b) for a, b in zip(later, first, strict=True))


def test_whether_it_was_the_first_subnet_leaves_no_trace() -> None:
    data = task(3, 8, 8)
    rule, full = judge(data), supernet(SMALL, data)

    def drawn_after_judging() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rule.subnet(full, SMALL.smallest(full.choices))
            return torch.rand(3)

    assert torch.equal(drawn_after_judging(), drawn_after_judging())
