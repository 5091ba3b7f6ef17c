"""What a dry run says besides the costs, which the tests of the verbs look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nasengine import cost
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import GENOTYPE, TINY, flags

SMALL = ("space.embedding=8", "space.depth=2", "space.heads=2", "space.options=2", "space.patch=4")
SEARCH = ("--space", "transformer", *flags(SMALL), "--device", "cpu", "--batch-size", 8)


def test_the_precision(cli: Run, small: str) -> None:
    code, out, err = cli("search", *SEARCH, "--data", small, "--precision", "bfloat16", "--dry-run")
    assert code == 0 and not err
    assert out.splitlines()[0].endswith(" steps, in bfloat16") and out.count("in bfloat16") == 2  # and of the training
    assert "bfloat16" not in cli("search", *SEARCH, "--data", small, "--dry-run").out


def test_a_wrong_precision(refuse: Callable[..., str], small: str) -> None:
    for verb in ("search", "train"):
        what = ("--genotype", GENOTYPE, "--set", "space.nodes=1") if verb == "train" else ()
        said = refuse(verb, *what, "--data", small, "--precision", "half")
        assert said.startswith(f"{verb}.precision must be") and "'half'" in said


@pytest.mark.parametrize("verb", ["search", "train", "collect", "run", "compare"])
def test_a_step_that_memory_does_not_hold(
    verb: str, refuse: Callable[..., str], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*arguments: object) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes.")

    monkeypatch.setattr(cost, "step_seconds", exhaust)
    monkeypatch.setattr("nasengine._cli.dry_run.calibrated", exhaust)
    settings = {
        "train": (
            "--genotype",
            GENOTYPE,
            *flags(["space.nodes=1", "space.channels=2", "space.layers=3", "train.batch_size=8"]),
        ),
        "collect": (*flags(TINY), "--count", 2, "--batch-size", 8),
        "run": (*SEARCH[:-2], "--set", "search.batch_size=8", "--set", "train.batch_size=8"),
        "compare": (*SEARCH[:-2], "--set", "search.batch_size=8"),
    }
    said = refuse(verb, *settings.get(verb, SEARCH), "--data", small, "--dry-run")
    assert said == (
        "The memory of the device must hold the steps of a dry run, but it did not; give a smaller --batch-size, a "
        "smaller space or another --device."
    )


def test_the_trial_of_a_limit_is_told(cli: Run, small: str) -> None:
    code, _, err = cli("search", *SEARCH, "--data", small, "--step-memory", "100MB", "--dry-run")
    assert code == 0 and err == "  trials of a step tell how to divide batches, to keep search.step_memory\n"
