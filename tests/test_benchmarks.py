"""The benchmark against public code: what it refuses, what it counts, how it compares."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.errors import UnknownNameError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def step() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("supernet_step")


@pytest.fixture(scope="module")
def contest(step: ModuleType) -> ModuleType:
    return importlib.import_module("peers.contest")


@pytest.fixture(autouse=True)
def _threads_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize("name", ["darts", "naslib", "nni"])
def test_a_peer_has_contests_and_differences(step: ModuleType, name: str) -> None:
    peer = step.peer_module(name)
    assert "DARTS, first order" in peer.CONTESTS and callable(peer.differences)
    assert "/" in peer.REPOSITORY and peer.REPOSITORY in step.heading(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quark={}", "Unknown peer 'quark' (known: darts, naslib, nni, ofa)."),
        ("darts", "--peer must be NAME=PATH, such as darts=../darts, but is 'darts'."),
        ("nni={}/none", "--peer nni=PATH must name a directory with its checkout, but {}/none is none."),
        (
            "naslib={}",
            "naslib.optimizers.oneshot.darts.optimizer of {} must be importable with torch "
            f"{torch.__version__}, but gives ModuleNotFoundError: No module named 'naslib'; make the checkout run on "
            "it.",
        ),
    ],
)
def test_a_peer_that_cannot_run_is_refused_in_one_sentence(
    step: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: str, message: str
) -> None:
    assert step.main(["--peer", given.format(tmp_path)]) == 2
    assert capsys.readouterr().err == message.format(tmp_path) + "\n"


def test_a_checkout_that_breaks_while_it_is_imported_is_refused(step: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "model_search.py").write_text("raise AttributeError('no cuda')")
    assert step.main(["--peer", f"darts={tmp_path}"]) == 2


def test_steps_are_chosen_by_parts_of_their_names(step: ModuleType) -> None:
    contests = step.peer_module("darts").CONTESTS
    assert step.chosen(contests, "") == list(contests)
    assert step.chosen(contests, "training; first") == [
        "DARTS, first order",
        "training DARTS_V2, 36 channels, 20 cells",
    ]
    with pytest.raises(UnknownNameError, match="Unknown step 'third'"):
        step.chosen(contests, "third")


def test_the_limit_is_said_with_its_share(step: ModuleType) -> None:
    assert step.share(54_500_000_000, 188e9, 0.4677) == "54.5 GFLOP at 188 GFLOP/s: 0.29 s, 62 %"


def test_operations_are_those_of_the_passes(contest: ModuleType) -> None:
    mixture = {label: torch.ones(8) for label in contest.LABELS}
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        contest.supernet()(torch.zeros(2, *contest.SHAPES.input), mixture)
    algorithms = [DARTS(order="first"), DARTS(order="second"), RARTS(sweep="exact"), RARTS(sweep="stale")]
    counted = [contest.search_operations(algorithm)(2) for algorithm in algorithms]
    # a pass is 1 forward, 1 for the gradients of activations, 1 for those of weights: alphas alone need no third
    assert [count / forward.get_total_flops() for count in counted] == [5, 13, 10, 6]


def test_networks_are_apart_by_the_norm_of_all_gradients(contest: ModuleType) -> None:
    wanted = contest.Found([torch.tensor(2.0)], [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([1.0])])
    found = contest.Found([torch.tensor(2.0)], [torch.tensor([3.0]), torch.tensor([4.5])], [torch.tensor([3.0])])
    assert contest.apart(found, wanted) == "loss 0e+00, weights' gradients 1e-01, alphas' 2e+00"
