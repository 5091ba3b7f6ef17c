"""Limits on cost, the evolution that keeps them, and the weights that a search leaves, from the command line."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import nasengine
from nasengine.algorithms.darts import DARTS, DARTSState
from nasengine.architecture import Architecture
from nasengine.budget import Cost, CostModel
from nasengine.config import resolve_space
from nasengine.errors import LimitError
from nasengine.evolution import Budget
from nasengine.judging import Judge
from nasengine.loop import Loop
from nasengine.searching import SearchJob
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.training import TrainJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import assert_same_run, contents, flags, history, record, result

SHAPES = Shapes((1, 8, 8), 4)
CELLS = ("space.channels=2", "space.layers=3", "space.nodes=1")
SIZES = ("space.embedding=8", "space.heads=2", "space.depth=2", "space.mlp=8", "space.options=2")
EVOLUTION = ("algo.evolution.population=4", "algo.evolution.generations=2")
SPACES = {"darts": CELLS, "transformer": SIZES}
FORMS = {"darts": ("final.channels=4", "final.layers=4"), "transformer": ()}
"""Networks to train whose costs take less time to count than those of 20 cells."""
QUICK = ("--epochs", "1", "--batch-size", "8", "--device", "cpu")
Refuse = Callable[..., str]


def made(name: str) -> Space:
    """The space of the tests by its name."""
    return resolve_space(name, {}, dict(text.removeprefix("space.").split("=") for text in SPACES[name]))


def common(space: str, algo: str, small: str) -> list[str]:
    """The arguments of a search without limits."""
    few = {"deps": EVOLUTION, "random": ("algo.samples=4",)}.get(algo, ())
    settings = (*SPACES[space], *few)
    return ["search", "--space", space, "--algo", algo, "--data", small, *flags(settings), *QUICK]


def final(name: str) -> Space:
    """Its networks to train, in the forms of the tests."""
    values = {key: int(value) for key, value in (text.removeprefix("final.").split("=") for text in FORMS[name])}
    return dataclasses.replace(made(name).final(), **values)


def between(space: str, share: float) -> Cost:
    """A cost between that of the smallest and that of the largest network."""
    costs = CostModel(final(space), SHAPES)
    ends = costs.of(costs.space.smallest(costs.choices)), costs.of(costs.space.largest(costs.choices))
    return Cost(*(low + int(share * (high - low)) for low, high in zip(*ends, strict=True)))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("algo", ["darts", "rarts", "deps", "slimming", "random"])
def test_what_is_derived_keeps_the_limits(cli: Run, small: str, space: str, algo: str) -> None:
    most = between(space, 0.02)  # hardly more than the smallest network: what is derived freely is above it
    limits = ("--max-params", most.parameters, "--max-flops", most.multiply_adds)
    code, _, err = cli(*common(space, algo, small), *flags(FORMS[space]), *limits, "--out", "run")
    assert code == 0 and err == ""
    found, costs = record(Path("run"))["result"], CostModel(final(space), SHAPES)
    answer = Architecture.parse(found["architecture"])
    assert costs.of(answer) == (found["parameters"], found["multiply_adds"])
    assert found["parameters"] <= most.parameters and found["multiply_adds"] <= most.multiply_adds
    costs.space.check(costs.choices, answer)
    (row,) = history(Path("run"))
    watched = costs.of(costs.space.read(row["architecture"]))
    assert watched.parameters <= most.parameters and watched.multiply_adds <= most.multiply_adds
    config = record(Path("run"))["config"]["search"]
    assert (config["max_params"], config["max_flops"]) == most


@pytest.mark.parametrize("space", SPACES)
def test_the_cost_of_a_search_is_that_of_the_trained_network(cli: Run, small: str, space: str) -> None:
    assert cli(*common(space, "darts", small), "--out", "run").code == 0
    found = record(Path("run"))["result"]
    code, out, _ = cli("train", "run", "--epochs", 1, "--batch-size", 32)
    trained = record(Path("run/final"))["result"]
    assert code == 0 and f"\nparameters: {found['parameters']:,}\n" in out
    for name in ("parameters", "multiply_adds"):
        assert found[name] == trained[name]


# Limits that nothing keeps


@pytest.mark.parametrize("limit", ["--max-params", "--max-flops", "--max-latency", "--max-memory"])
@pytest.mark.parametrize("space", SPACES)
def test_a_limit_below_the_least_network_is_answered_from_that_network_alone(
    refuse: Refuse, small: str, monkeypatch: pytest.MonkeyPatch, space: str, limit: str
) -> None:
    monkeypatch.setattr("nasengine.searching.CostModel", lambda *_: pytest.fail("all costs were counted"))
    monkeypatch.setattr("nasengine.searching.check_network", lambda *_: pytest.fail("the supernet was tried"))
    sentence = refuse(*common(space, "rarts", small), limit, "1us" if limit == "--max-latency" else 2)
    assert f"{limit} " in sentence and re.search(r"; give \S+ or more\.$", sentence)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        (
            "--max-params",
            1000,
            r"--max-params 1,000 is below the ([\d,]+) parameters of its smallest network as .*; give \d+",
        ),
        (
            "--max-flops",
            10,
            r"--max-flops 10 is below the ([\d,]+) multiply-adds of its smallest network as .*; give \d+",
        ),
    ],
    ids=["params", "flops"],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_limit_that_nothing_keeps_is_told_before_anything_happens(
    refuse: Refuse, small: str, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, told: str, dry: tuple[str, ...]
) -> None:
    monkeypatch.setattr(SearchJob, "step", lambda job, step: pytest.fail("a step was taken"))
    sentence = refuse(*common("darts", "rarts", small), limit, value, *dry)
    must = "The limit must leave an architecture of space 'darts', but"
    assert re.fullmatch(rf"{must} {told} or more\.", sentence)
    assert not list(Path().iterdir())


def test_what_the_sentence_names_is_enough(cli: Run, refuse: Refuse, small: str) -> None:
    sentence = refuse(*common("transformer", "slimming", small), "--max-flops", 10)
    least = sentence.removesuffix(" or more.").split()[-1]
    assert cli(*common("transformer", "slimming", small), "--max-flops", least, "--out", "run").code == 0
    assert record(Path("run"))["result"]["multiply_adds"] == int(least)


@pytest.mark.parametrize("value", ["0", "-5", "1e6", "many"])
def test_limits_are_positive_whole_numbers(refuse: Refuse, small: str, value: str) -> None:
    sentence = refuse(*common("darts", "darts", small), "--max-params", value)
    assert sentence.startswith("search.max_params must be ") and value in sentence


# The evolution


def test_the_evolution_is_told(cli: Run, small: str) -> None:
    code, out, _ = cli(*common("transformer", "deps", small), "--out", "run")
    assert code == 0
    found = re.findall(r"^  generation (\d) of 2: best ([\d.]+)$", out, flags=re.MULTILINE)
    assert [generation for generation, _ in found] == ["0", "1", "2"]
    scores = [float(score) for _, score in found]
    assert scores == sorted(scores)
    assert record(Path("run"))["result"]["derived_accuracy"] == pytest.approx(scores[-1], abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_evolution_goes_on(
    cli: Run, small: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert cli(*common("transformer", "deps", small), "--out", "whole").code == 0
    judged, subnet = [], Judge.subnet

    def interrupted(judge: Judge, *arguments: object) -> float:
        judged.append(1)
        if len(judged) == 4:  # the first is at the end of the epoch
            os.kill(os.getpid(), number)
        return subnet(judge, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "subnet", interrupted)
        code, _, err = cli(*common("transformer", "deps", small), "--out", "my run")
    again = "nasengine search --out 'my run' --resume"
    assert code == 130 and len(judged) == 4
    assert err == f"nasengine: Stopped by {number.name} after step 2 of 2, all is saved: go on with '{again}'.\n"
    assert record(Path("my run"))["status"] == "interrupted" and not Path("my run/genotype.txt").exists()
    code, out, err = cli(*shlex.split(again)[1:])
    assert code == 0 and err == "" and out.startswith("my run: goes on after step 2 on cpu\n  generation 0 of 2: best ")
    assert_same_run(Path("my run"), Path("whole"))


# Other limits for a search that is finished


def test_a_finished_search_answers_anew_under_other_limits(cli: Run, refuse: Refuse, small: str) -> None:
    arguments = common("transformer", "deps", small)
    limits = [between("transformer", share).parameters for share in (0.5, 0.1)]
    assert cli(*arguments, "--out", "run").code == 0
    free, files = result(Path("run")), contents(Path("run"))
    assert free["parameters"] > limits[1]
    for limit in limits:
        code, out, err = cli("search", "--out", "run", "--resume", "--max-params", limit)
        assert code == 0 and err == "" and "generation 2 of 2" in out
        assert cli(*arguments, "--max-params", limit, "--out", f"at-{limit}").code == 0
        assert_same_run(Path("run"), Path(f"at-{limit}"))
        assert record(Path("run"))["config"] == record(Path(f"at-{limit}"))["config"]
        assert record(Path("run"))["result"]["parameters"] <= limit
    assert "is finished: nothing is left to go on with" in refuse("search", "--out", "run", "--resume")
    now = contents(Path("run"))
    assert "--max-flops 10 is below" in refuse("search", "--out", "run", "--resume", "--max-flops", 10)
    assert "is finished" in refuse("search", "--out", "run", "--resume", "--max-flops", 10**9, "--epochs", 2)
    assert contents(Path("run")) == now
    assert cli("search", "--out", "run", "--resume", "--set", "search.max_params=none").code == 0
    assert (
        result(Path("run")) == free and contents(Path("run"))["inherited.safetensors"] == files["inherited.safetensors"]
    )


# Weights that a search leaves


@pytest.fixture(scope="module")
def _searched(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searches")
    quick = ("search.epochs=1", "search.batch_size=8", "search.device=cpu")
    for space, settings in SPACES.items():
        nasengine.search(space, "darts", small, settings=(*settings, *quick), out=out / space)
    return out


@pytest.fixture
def searched(_searched: Path, tmp_path: Path) -> Path:
    """Finished searches by the names of their spaces."""
    return Path(shutil.copytree(_searched, tmp_path / "searched"))


def first_loss(cli: Run, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[float, TrainJob]:
    """The loss of a training's first step, and the training."""
    seen: list[tuple[Tensor, TrainJob]] = []
    step = TrainJob.step

    def watched(job: TrainJob, at: int) -> dict[str, Tensor]:
        metrics = step(job, at)
        seen.append((metrics["train_loss"], job))
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(TrainJob, "step", watched)
        assert cli("train", *arguments, "--epochs", 1, "--batch-size", 16, "--device", "cpu").code == 0
    return float(seen[0][0]), seen[0][1]


def test_a_training_begins_with_the_weights_of_the_search(
    cli: Run, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = searched / "transformer"
    found, job = first_loss(cli, monkeypatch, run, "--inherit", "--out", "tuned")
    network = job.space.build(job.architecture, job.task.shapes)
    network.load_state_dict(load_file(run / "inherited.safetensors"))
    with torch.no_grad():
        inputs, targets = job.batches[0]
        expected = float(job.task.loss(network(inputs), targets))
    assert found == pytest.approx(expected, abs=1e-6)
    scratch, _ = first_loss(cli, monkeypatch, run, "--out", "scratch")
    assert abs(scratch - expected) > 1e-3
    assert record(Path("tuned"))["config"]["train"]["inherit"] is True


def test_what_is_left_is_judged_as_the_search_says(searched: Path) -> None:
    run = searched / "transformer"
    job = nasengine.searching.open_search(run)
    network = job.space.build(Architecture.parse(record(run)["result"]["architecture"]), job.task.shapes)
    network.load_state_dict(load_file(run / "inherited.safetensors"))
    data, chosen = job.task.dataset, job.valid_indices
    mean, std = job.task.normalisation
    inputs = (data.train_inputs[chosen].float() - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    with torch.no_grad():
        right = network.eval()(inputs).argmax(1) == data.train_targets[chosen]
    assert float(right.double().mean()) == record(run)["result"]["derived_accuracy"]


def test_a_space_whose_networks_have_another_form_leaves_no_weights(refuse: Refuse, searched: Path) -> None:
    run = searched / "darts"
    assert not (run / "inherited.safetensors").exists()
    assert refuse("train", run, "--inherit") == (
        f"A training that inherits needs inherited.safetensors in {run}, but it is not there or not readable: searches "
        "of some spaces leave none; leave out --inherit."
    )
    assert not (run / "final").exists()


def test_weights_that_do_not_fit_or_are_damaged(refuse: Refuse, searched: Path) -> None:
    run = searched / "transformer"
    told = f"A training that inherits must build the network of the search in {run}, but its settings make another one"
    assert refuse("train", run, "--inherit", "--set", "space.pooling=class").startswith(told)
    (run / "inherited.safetensors").write_bytes(b"nothing")
    assert "but it is not there or not readable" in refuse("train", run, "--inherit")
    assert not (run / "final").exists()


def test_a_training_without_a_search_has_nothing_to_inherit(refuse: Refuse, searched: Path, small: str) -> None:
    architecture = searched / "transformer" / "architecture.txt"
    settings = ("--space", "transformer", *flags(SIZES), "--data", small)
    assert refuse("train", "--architecture", architecture, *settings, "--inherit") == (
        "A training that inherits must be of the directory of a search, which has the weights, but got none; give RUN "
        "or leave out --inherit."
    )
    assert not list(Path().iterdir())


class Lavish(DARTS):
    """Does not look at the budget."""

    name = "lavish"

    def derive(self, state: DARTSState, budget: Budget | None = None) -> Architecture:
        return state.supernet.space.largest(state.supernet.choices)


def test_an_algorithm_that_breaks_the_limits_is_told(small: str, tmp_path: Path) -> None:
    settings = (*SIZES, "search.epochs=1", "search.batch_size=8", "search.device=cpu")
    limit = f"search.max_flops={between('transformer', 0.5).multiply_adds}"
    with pytest.raises(LimitError) as caught:
        nasengine.search("transformer", Lavish(), small, settings=(*settings, limit), out=tmp_path / "run")
    assert str(caught.value) == (
        "An algorithm must derive an architecture that keeps the limits, but 'lavish' did not; its derive(state, "
        "budget) must heed the budget."
    )


def test_a_fine_tuning_that_ends_before_its_first_checkpoint_inherits_again(
    cli: Run, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, arguments = searched / "transformer", ("--epochs", "1", "--batch-size", "8", "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "__call__", lambda loop: loop.run.update({"status": "running"}) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli("train", run, "--inherit", *arguments)
    assert cli("train", run, "--inherit", *arguments, "--resume").code == 0
    assert cli("train", run, "--inherit", *arguments, "--out", "whole").code == 0
    assert_same_run(run / "final", Path("whole"))
