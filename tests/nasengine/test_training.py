from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nasengine
from nasengine.architecture import Architecture
from nasengine.config import TrainSettings
from nasengine.errors import ArchitectureError, DivergedError, RunError
from nasengine.evaluation import evaluating, score
from nasengine.loop import Observer
from nasengine.operations import DropPath
from nasengine.task import DataSettings, load_task
from nasengine.train_plan import plan_training
from nasengine.training import TrainJob, tuned
from search_spaces.darts import DARTS
from tests.nasengine.runs import GENOTYPE, TINY, TRAIN, assert_same_run, contents, history, record, state

ONE_NODE = ("space.nodes=1", *TRAIN)


def test_what_a_training_leaves(ended: Path) -> None:
    assert set(contents(ended / "final")) == {"run.json", "history.csv", "checkpoint.pt", "network.safetensors"}
    rows = history(ended / "final")
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "lr"]
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_safetensors_give_the_recorded_accuracy(ended: Path, small: str) -> None:
    written = record(ended / "final")
    config = {name: value for name, value in written["config"]["space"].items() if name != "name"}
    space, task = DARTS(**config), load_task(small)
    network = space.build(Architecture.parse(written["config"]["architecture"]), task.shapes)
    network.load_state_dict(load_file(ended / "final" / "network.safetensors"))
    data = task.dataset
    mean, std = (moment.view(1, -1, 1, 1) for moment in task.normalisation)
    with evaluating(network):
        right = (network((data.test_inputs.float() - mean) / std).argmax(1) == data.test_targets).float().mean()
    assert written["result"]["test_accuracy"] == pytest.approx(float(right), abs=1e-9)
    assert written["result"]["test_size"] == len(data.test_targets) == 8


def test_result(ended: Path) -> None:
    written, config = record(ended / "final"), record(ended)["config"]
    assert written["config"]["space"]["nodes"] == 1 and written["config"]["space"]["auxiliary"] is True
    assert written["config"]["architecture"] == record(ended)["result"]["architecture"]
    assert written["config"]["data"] == config["data"] and written["result"]["genotype"].startswith("Genotype(")
    assert written["result"]["parameters"] > 0 and written["result"]["multiply_adds"] > 0


def test_same_seed_same_bits_and_the_record_repeats_it(ended: Path, tmp_path: Path) -> None:
    nasengine.train(ended, settings=TRAIN, out=tmp_path / "again")
    assert_same_run(ended / "final", tmp_path / "again")
    nasengine.train(config=record(ended / "final")["config"], out=tmp_path / "repeated")
    assert_same_run(ended / "final", tmp_path / "repeated")
    nasengine.train(ended, settings=(*TRAIN, "train.seed=1"), out=tmp_path / "other")
    assert history(ended / "final") != history(tmp_path / "other")


def test_the_three_sources_are_one(ended: Path, small: str, tmp_path: Path) -> None:
    genotype = (ended / "genotype.txt").read_text()
    for name, source in {
        "genotype": {"genotype": genotype},
        "file": {"architecture": ended / "architecture.txt"},
        "genotype-file": {"architecture": ended / "genotype.txt"},
        "text": {"architecture": str(Architecture.parse((ended / "architecture.txt").read_text()))},
        "instance": {"architecture": Architecture.parse((ended / "architecture.txt").read_text())},
    }.items():
        plan = plan_training(task=small, settings=ONE_NODE, **source)  # type: ignore[arg-type]
        assert plan.config == plan_training(ended, settings=TRAIN).config, name
        assert plan.default_out == Path("results/npz-small/darts/final/seed-0")
    assert plan_training(ended).default_out == ended / "final"


def test_settings_of_the_search_are_the_defaults(ended: Path, small: str, tmp_path: Path) -> None:
    plan = plan_training(ended)
    assert plan.settings == TrainSettings(device="cpu")
    assert (plan.space.channels, plan.space.layers) == (2, 3)  # type: ignore[attr-defined]
    quick = ("search.epochs=1", "search.batch_size=8", "search.device=cpu")
    nasengine.search(task=small, settings=(*TINY, *quick), out=tmp_path / "free")
    plan = plan_training(tmp_path / "free")
    assert (plan.space.channels, plan.space.layers) == (36, 20)  # type: ignore[attr-defined]


def test_a_run_wins_over_a_stored_architecture(ended: Path) -> None:
    config = plan_training(genotype=GENOTYPE, settings=ONE_NODE).config
    plan = plan_training(ended, config=config)
    assert str(plan.architecture) == record(ended)["result"]["architecture"] and plan.config["train"] == config["train"]


@pytest.mark.parametrize(
    ("source", "count"),
    [({}, 0), ({"run": "a", "genotype": "b"}, 2), ({"run": "a", "genotype": "b", "architecture": "c"}, 3)],
)
@pytest.mark.parametrize("function", [plan_training, nasengine.train])
def test_one_source_is_needed(source: dict[str, Any], count: int, function: Any) -> None:
    with pytest.raises(RunError, match=f"one of a run, a genotype and an architecture, but got {count} of them"):
        function(**source)


def test_resume_needs_to_know_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="one of a run, a genotype and an architecture, but got 0"):
        nasengine.train(resume=True)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("running", "is not finished; go on with it by 'nasengine search --resume'"),
        ("interrupted", "is not finished; go on with it by 'nasengine search --resume'"),
        ("diverged", "is diverged; search anew"),
    ],
)
def test_a_search_that_has_not_finished(ended: Path, status: str, told: str) -> None:
    text = (ended / "run.json").read_text()
    (ended / "run.json").write_text(text.replace('"status": "finished"', f'"status": "{status}"'))
    with pytest.raises(RunError, match=f"A training needs a finished search, but the one in .* {told}"):
        plan_training(ended)


def test_a_training_is_no_search(ended: Path) -> None:
    with pytest.raises(RunError, match=r"A training needs the run of a search, but .* holds one of 'nasengine train'"):
        plan_training(ended / "final")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "must be a readable file, but .* is not: No such file or directory"),
        (b"\x80\x81", "must be a readable file, but .* is not: not a text"),
        (b"", "A genotype must be Genotype"),
        (b"nonsense", "A genotype must be Genotype"),
        (b"a=b", "A genotype must be Genotype"),
        (b"normal/0-2=none", "must decide 'normal/1-2'"),
    ],
)
def test_an_architecture_file_that_is_none(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "architecture.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ArchitectureError, match=told):
        plan_training(architecture=file, settings=ONE_NODE)


def job(task: str, *settings: str) -> TrainJob:
    plan = plan_training(genotype=GENOTYPE, task=task, settings=(*ONE_NODE, *settings))
    return TrainJob(plan.space, plan.architecture, plan.task, plan.settings)


def test_drop_path_rises_epoch_by_epoch(small: str) -> None:
    training = job(small, "train.drop_path=0.6", "train.epochs=3")
    seen = []
    for step in range(6):
        training.step(step)
        probabilities = {module.probability for module in training.network.modules() if isinstance(module, DropPath)}
        assert len(probabilities) == 1
        seen += probabilities
    assert seen == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])


def test_learning_rates(small: str) -> None:
    cosine = job(small, "train.lr=0.1")
    assert [cosine.rate(step) for step in (0, 2, 4)] == pytest.approx([0.1, 0.05, 0.0], abs=1e-12)
    decaying = job(small, "train.lr=0.1", "train.schedule=exponential", "train.decay=0.5")
    assert [decaying.rate(step) for step in range(4)] == [0.1, 0.1, 0.05, 0.05]


def test_loss_with_auxiliary_head_and_smoothing(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = job(small, "train.auxiliary_weight=0.5", "train.label_smoothing=0.2", "train.lr=1e-9")
    totals = []
    grad = torch.autograd.grad

    def spied(outputs: torch.Tensor, *arguments: Any, materialize_grads: bool) -> Any:
        totals.append(float(outputs.detach()))
        return grad(outputs, *arguments, materialize_grads=materialize_grads)

    monkeypatch.setattr(torch.autograd, "grad", spied)
    reported = training.step(0)["train_loss"]
    inputs, targets = training.batches[0]
    logits, auxiliary = training.network.train()(inputs)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    total = smooth(logits, targets) + 0.5 * smooth(auxiliary, targets)
    assert float(reported) == pytest.approx(float(smooth(logits, targets).detach()), rel=1e-4)
    assert totals[0] == pytest.approx(float(total.detach()), rel=1e-4)


def test_the_final_training_sees_the_whole_training_set(small: str) -> None:
    training = job(small, "train.batch_size=32")
    _, targets = training.batches[0]
    assert torch.bincount(targets).tolist() == [8, 8, 8, 8]


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.other = nn.Linear(64, 64)
        self.other.weight = self.one.weight
        self.last = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.other(self.one(x.flatten(1)))).float()


def test_shared_weights_are_saved(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DARTS, "build", lambda space, architecture, shapes: _Tied())
    nasengine.train(genotype=GENOTYPE, task=small, settings=ONE_NODE, out=tmp_path / "run")
    network = _Tied()
    network.load_state_dict(load_file(tmp_path / "run" / "network.safetensors"))
    task = load_task(small, DataSettings())
    mean, std = (moment.view(1, -1, 1, 1) for moment in task.normalisation)
    batch = nasengine.task.Batch((task.dataset.test_inputs.float() - mean) / std, task.dataset.test_targets)
    with evaluating(network):
        assert score(network, [batch], task.measure) == record(tmp_path / "run")["result"]["test_accuracy"]


def test_divergence(small: str, tmp_path: Path) -> None:
    settings = (*ONE_NODE, "train.lr=1e30", "train.clip=0")
    with pytest.raises(DivergedError, match="Loss and weights must stay finite"):
        nasengine.train(genotype=GENOTYPE, task=small, settings=settings, out=tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "diverged"


def test_a_full_disk_at_the_end_loses_nothing(small: str, tmp_path: Path) -> None:
    class Full(Observer):
        def saved(self, step: int) -> None:
            (tmp_path / "run" / ".partial-network.safetensors").symlink_to("/dev/full") if step == 4 else None

    with pytest.raises(RunError, match=r"space to save .*network.safetensors, but the disk is full; what was saved"):
        nasengine.train(genotype=GENOTYPE, task=small, settings=ONE_NODE, out=tmp_path / "run", observer=Full())
    assert state(tmp_path / "run")["step"] == 4
    nasengine.train(genotype=GENOTYPE, task=small, settings=ONE_NODE, out=tmp_path / "whole")
    nasengine.train(out=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_cudnn_tries_its_convolutions_unless_bits_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", False)
    with tuned(torch.device("cuda")):
        assert cudnn.benchmark
    assert not cudnn.benchmark
    with tuned(torch.device("cpu")):
        assert not cudnn.benchmark
    with cudnn.flags(deterministic=True), tuned(torch.device("cuda")):
        assert not cudnn.benchmark
