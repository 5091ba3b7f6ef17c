"""Passes in bfloat16: what is lowered, what is not, and that runs keep their bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import nasengine
from nasengine import operations
from nasengine.compare_plan import plan_compare
from nasengine.config import CollectSettings
from nasengine.errors import DeviceError, InterruptedRun, SettingError
from nasengine.microbatches import micro_batches
from nasengine.precision import at_precision, require_precision
from nasengine.run_plan import plan_run
from nasengine.search_plan import plan_search
from nasengine.searching import SearchJob
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from nasengine.train_plan import plan_training
from nasengine.training import TrainJob, score_on_test
from search_spaces.transformer import Transformer
from tests.nasengine.runs import GENOTYPE, SEARCH, TRAIN, assert_same_run, record
from tests.test_pairs import StopAfter

aten = torch.ops.aten
HALF = "search.precision=bfloat16"
TINY = {
    "darts": SEARCH,
    "transformer": (
        *("space.embedding=8", "space.depth=2", "space.heads=2", "space.options=2", "space.patch=4"),
        *("search.epochs=2", "search.batch_size=8", "search.device=cpu"),
    ),
}


@pytest.fixture(autouse=True)
def _plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GPUs: the ones of CPUs have a backward pass of their own, for float32."""

    def plain(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    monkeypatch.setattr(operations, "depthwise", plain)


class Products(TorchDispatchMode):
    """Notes the types in which convolutions and matrix products are computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.convolution, aten.addmm, aten.mm, aten.bmm):
            self.types.add(found.dtype)
        return found


def job(space: str, algorithm: str, small: str, *settings: str) -> SearchJob:
    plan = plan_search(space=space, algorithm=algorithm, task=small, settings=(*TINY[space], *settings))
    return SearchJob(plan.space, plan.algorithm, plan.task, plan.settings)


@pytest.mark.parametrize(
    ("space", "algorithm", "settings"),
    [
        ("darts", "darts", ()),
        ("darts", "rarts", ()),
        ("transformer", "darts", ("algo.order=exact",)),
        ("transformer", "rarts", ("algo.widths=gates",)),
        ("transformer", "deps", ("algo.warmup=0", "algo.ramp=0")),
    ],
)
def test_a_search_is_about_that_of_float32(space: str, algorithm: str, settings: tuple[str, ...], small: str) -> None:
    half = job(space, algorithm, small, *settings, HALF)
    whole = job(space, algorithm, small, *settings)
    with Products() as low:
        found = [half.step(step) for step in range(3)]
    with Products() as high:
        expected = [whole.step(step) for step in range(3)]
    assert low.types == {torch.bfloat16} and high.types == {torch.float32}
    for one, other in zip(found, expected, strict=True):
        assert one["train_loss"].dtype == torch.float32 and one["train_loss"] != other["train_loss"]
        torch.testing.assert_close(one["train_loss"], other["train_loss"], rtol=0.03, atol=0)
    for part in tensors(half.state_dict()):
        assert part.dtype in (torch.float32, torch.int64, torch.uint8)  # uint8 is the state of a generator


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


def test_the_network_is_judged_as_it_is_trained(small: str) -> None:
    half = job("darts", "darts", small, HALF)
    with Products() as found:
        half.end_epoch(1)
    assert found.types == {torch.bfloat16}


def test_a_stopped_search_goes_on_with_the_same_bits(small: str, tmp_path: Path) -> None:
    settings = (*TINY["transformer"], HALF)
    nasengine.search("transformer", task=small, settings=settings, out=tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        nasengine.search("transformer", task=small, settings=settings, out=tmp_path / "stopped", observer=StopAfter(3))
    nasengine.search(out=tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert record(tmp_path / "stopped")["config"]["search"]["precision"] == "bfloat16"


def test_a_training(small: str, tmp_path: Path) -> None:
    settings = (*TRAIN, "space.nodes=1", "train.precision=bfloat16")
    found = nasengine.train(genotype=GENOTYPE, task=small, settings=settings, out=tmp_path / "run")
    assert found.record["config"]["train"]["precision"] == "bfloat16"
    plan = plan_training(genotype=GENOTYPE, task=small, settings=settings)
    training = TrainJob(plan.space, plan.architecture, plan.task, plan.settings)
    with Products() as low:
        assert training.step(0)["train_loss"].dtype == torch.float32
        assert found.test_score == score_on_test(tmp_path / "run", plan.task)
        training.test_score()
    assert low.types == {torch.bfloat16}
    assert {part.dtype for part in tensors(training.state_dict())} == {torch.float32, torch.int64}


def test_micro_batches_have_the_gradients_of_the_batch() -> None:
    torch.manual_seed(0)
    space = Transformer(embedding=8, depth=2, heads=2, options=2, patch=4)
    supernet: Supernet = space.supernet(Shapes((1, 8, 8), 4), F.cross_entropy)
    supernet.precision = "bfloat16"
    batch, weights = Batch(torch.randn(8, 1, 8, 8), torch.arange(8) % 4), list(supernet.parameters())

    def gradients(count: int) -> list[Tensor]:
        with micro_batches(count):
            return list(torch.autograd.grad(supernet.evaluate(batch, supernet.full()).loss, weights))

    for whole, parts in zip(gradients(1), gradients(3), strict=True):
        assert parts.dtype == torch.float32
        torch.testing.assert_close(parts, whole, rtol=0.1, atol=0.02 * float(whole.abs().max()) + 1e-4)


def test_outputs_have_the_type_of_the_loss() -> None:
    layer, inputs = nn.Linear(3, 2), torch.ones(1, 3)
    assert torch.equal(at_precision("float32", layer, inputs), layer(inputs))
    low = at_precision("bfloat16", layer, inputs)
    assert low.dtype == torch.float32 and torch.equal(low, low.bfloat16().float())
    both = at_precision("bfloat16", lambda x: (layer(x), None), inputs)
    assert both[0].dtype == torch.float32 and both[1] is None
    assert at_precision("bfloat16", layer.double(), inputs.double()).dtype == torch.float64


def test_what_comes_after_a_search_has_its_precision(ended: Path, small: str) -> None:
    asked = [HALF, "search.device=cpu"]
    plan = plan_run(task=small, settings=[*asked, "run.export=none", "train.batch_size=16"])
    assert plan.train.precision == plan.collect.precision == "bfloat16"
    assert plan.collect.training(0).precision == "bfloat16" and CollectSettings().training(0).precision == "float32"
    assert plan_compare(task=small, settings=asked).train.precision == "bfloat16"
    assert plan_run(task=small, settings=[*asked, "train.precision=float32"]).train.precision == "float32"
    assert plan_training(ended).settings.precision == "float32"


@pytest.mark.parametrize("group", ["search", "train"])
def test_a_wrong_precision(group: str, small: str) -> None:
    plan = partial(plan_search) if group == "search" else partial(plan_training, genotype=GENOTYPE)
    with pytest.raises(SettingError, match=rf"^{group}\.precision must be .*float32.*bfloat16.*'half'"):
        plan(task=small, settings=["space.nodes=1", f"{group}.precision=half"])


def test_a_device_without_it() -> None:
    require_precision("float32", torch.device("meta"))
    require_precision("bfloat16", torch.device("cpu"))
    with pytest.raises(
        DeviceError, match=r"^The device must compute in bfloat16 for --precision bfloat16, but 'meta' "
    ):
        require_precision("bfloat16", torch.device("meta"))


def test_differences_of_weights_that_it_does_not_tell_apart(small: str) -> None:
    with pytest.raises(
        SettingError, match=r"^algo\.order=second needs weights .*; set algo\.order=exact or first, or "
    ):
        job("darts", "darts", small, "algo.order=second", HALF)
