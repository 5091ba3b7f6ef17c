"""Limits on latency and memory, from the command line; the latencies are those of a machine that is made up."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasengine.architecture import Architecture
from nasengine.cost import memory
from nasengine.footprint import Footprint
from nasengine.searching import SearchJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine._cli.test_limits import SHAPES, common, made
from tests.nasengine.machines import FakeMachine, sum_of_pieces
from tests.nasengine.runs import flags, record

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine = FakeMachine(lambda network: 0.001 + 2 * sum_of_pieces(network, SHAPES))
    monkeypatch.setattr("nasengine.footprint.Bench", lambda settings, shapes: machine)
    return machine


def taken(fake: FakeMachine, space: str, architecture: Architecture) -> tuple[float, int]:
    """Seconds and bytes of the network of an architecture in its final form."""
    final = made(space).final()
    network = final.build(architecture, SHAPES)
    return fake.latency(network), memory(lambda: final.build(architecture, SHAPES), SHAPES)


def between(fake: FakeMachine, space: str, share: float) -> tuple[float, int]:
    own, choices = made(space), made(space).choices(SHAPES)
    low, high = taken(fake, space, own.smallest(choices)), taken(fake, space, own.largest(choices))
    return low[0] + share * (high[0] - low[0]), int(low[1] + share * (high[1] - low[1]))


@pytest.mark.parametrize("algo", ["deps", "slimming"])
def test_what_is_derived_keeps_the_limits(cli: Run, small: str, fake: FakeMachine, algo: str) -> None:
    space = "transformer"
    seconds, size = between(fake, space, 0.1)
    limits = ("--max-latency", f"{1e6 * seconds:.1f}us", "--max-memory", size)
    code, _, err = cli(*common(space, algo, small), *limits, "--out", "run")
    assert code == 0 and err == ""
    found = record(Path("run"))["result"]
    latency, held = taken(fake, space, Architecture.parse(found["architecture"]))
    assert found["latency"] == pytest.approx(latency) and latency <= seconds * (1 + 1e-6)
    assert found["memory"] == held <= size
    assert found["latency_by"] == "table" and found["latency_measured"] == pytest.approx(latency)
    assert found["latency_on"]["device"] == "fake"


def test_a_measured_latency_above_the_limit_is_told(
    cli: Run, small: str, fake: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Footprint.facts
    slow = FakeMachine(lambda network: 0.0508)

    def measured(footprint: Footprint, architecture: Architecture) -> dict[str, Any]:
        monkeypatch.setattr(fake, "networks", slow.networks)
        return facts(footprint, architecture)

    limits = ("--max-latency", "50.7ms")
    code, out, _ = cli(*common("transformer", "darts", small), *limits, "--out", "kept")
    assert code == 0 and "Note" not in out
    assert "\nlatency, by the table of operations, which kept --max-latency: " in out
    monkeypatch.setattr(Footprint, "facts", measured)
    code, out, _ = cli(*common("transformer", "darts", small), *limits, "--out", "above")
    assert code == 0 and "\nlatency, measured at the end: 50.8ms\n" in out
    assert re.search(
        r"^Note: the measured latency is above the limit of 50\.7ms, which was kept by the table of operations \(its "
        r"median error is \d\.\d%\); for a network that measures less give a lower --max-latency\.$",
        out,
        re.M,
    )


@pytest.mark.parametrize("measured", ["51ms", "49ms"])
def test_a_pipeline_measures_its_winner(
    cli: Run, small: str, fake: FakeMachine, monkeypatch: pytest.MonkeyPatch, measured: str
) -> None:
    del fake
    facts = {"latency_measured": float(measured[:-2]) / 1000, "latency_by": "measurement", "latency": 0.049}
    monkeypatch.setattr(Footprint, "facts", lambda footprint, architecture: facts)
    few = ("--candidates", 3, "--labels", 2, "--train", 1, "--train-epochs", 1, "--export", "none")
    final = flags(("train.valid_portion=0.25", "train.batch_size=8"))
    arguments = ("run", *common("transformer", "darts", small)[1:-6], "--epochs", 1, "--device", "cpu")
    code, out, _ = cli(*arguments, *few, *final, *flags(["search.batch_size=8"]), "--max-latency", "50ms", "--out", "r")
    assert code == 0 and f"\nlatency, measured at the end: {measured}\n" in out
    assert "\nlatency, measured when the network was chosen, which kept --max-latency: 49ms\n" in out
    assert ("Note: the measured latency is above the limit of 50ms" in out) == (measured == "51ms")
    assert facts.items() <= record(Path("r"))["result"].items()


def test_memory_of_cells_is_kept(cli: Run, small: str) -> None:
    """The loss of the search heeds no memory; what is derived does."""
    own = made("darts")
    choices, final = own.choices(SHAPES), own.final()
    smallest = own.smallest(choices)
    least = memory(lambda: final.build(smallest, SHAPES), SHAPES)
    code, _, err = cli(*common("darts", "rarts", small), "--max-memory", int(1.02 * least), "--out", "run")
    found = record(Path("run"))["result"]
    assert code == 0 and err == "" and found["memory"] <= 1.02 * least
    answer = Architecture.parse(found["architecture"])
    assert found["memory"] == memory(lambda: final.build(answer, SHAPES), SHAPES)


def test_a_finished_search_answers_anew_under_other_limits(cli: Run, small: str, fake: FakeMachine) -> None:
    assert cli(*common("transformer", "darts", small), "--out", "run").code == 0
    free = record(Path("run"))["result"]
    assert not {"latency", "memory"} & set(free)
    seconds, size = between(fake, "transformer", 0.05)
    code, _, err = cli("search", "--out", "run", "--resume", "--max-memory", size)
    assert code == 0 and err == "" and record(Path("run"))["result"]["memory"] <= size
    code, _, err = cli("search", "--out", "run", "--resume", "--max-latency", f"{seconds}s", "--max-memory", "none")
    found = record(Path("run"))["result"]
    assert code == 0 and found["latency"] <= seconds and "memory" not in found


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("--max-latency", "1us", r"--max-latency 1us is below the ([\d.]+ms) of the fastest network found; give \1"),
        ("--max-memory", "1K", r"--max-memory 1,000 is below the [\d,]+ bytes of its smallest network; give \d+"),
    ],
    ids=["latency", "memory"],
)
def test_a_limit_that_nothing_keeps_is_told_before_anything_happens(
    refuse: Refuse, small: str, monkeypatch: pytest.MonkeyPatch, limit: str, value: str, told: str, dry: tuple[str, ...]
) -> None:
    monkeypatch.setattr(SearchJob, "step", lambda job, step: pytest.fail("a step was taken"))
    sentence = refuse(*common("transformer", "darts", small), limit, value, *dry)
    assert re.fullmatch(
        rf"The limit must leave an architecture of space 'transformer', but {told} or more\.", sentence
    ), sentence
    assert not list(Path().iterdir())


@pytest.mark.parametrize("limit", ["--max-latency", "--max-memory"])
def test_what_the_sentence_names_is_enough(cli: Run, refuse: Refuse, small: str, limit: str) -> None:
    sentence = (
        refuse(*common("transformer", "darts", small), limit, "1")
        if limit == "--max-memory"
        else refuse(*common("transformer", "darts", small), limit, "1us")
    )
    least = sentence.removesuffix(" or more.").split()[-1]
    assert cli(*common("transformer", "darts", small), limit, least, "--out", "run").code == 0


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        (
            "--max-latency",
            "5 parsecs",
            "search.max_latency must be a time with a unit such as 5ms, 300us or 0.005s (units: us, ms, s), or none, "
            "but got '5 parsecs'.",
        ),
        (
            "--max-latency",
            "5",
            "search.max_latency must be a time with a unit such as 5ms, 300us or 0.005s, but got '5'; give a unit, "
            "such as 5ms.",
        ),
        ("--max-latency", "0ms", "search.max_latency must be more than 0, but got 0.0."),
        ("--max-latency", "-5ms", "search.max_latency must be more than 0, but got -0.005."),
        ("--max-memory", "big", "search.max_memory must be a number of bytes such as 2000000, 2MB or 512KiB (units: "),
        ("--max-memory", "0.2", "search.max_memory must be at least 1, but got 0."),
    ],
)
def test_limits_are_amounts_with_units(refuse: Refuse, small: str, limit: str, value: str, told: str) -> None:
    assert refuse(*common("transformer", "darts", small), limit, value).startswith(told)


def test_dry_run_tells_the_limits(cli: Run, small: str, fake: FakeMachine) -> None:
    seconds, size = between(fake, "transformer", 0.5)
    limits = ("--max-latency", f"{seconds}s", "--max-memory", size, "--max-flops", 10**9)
    code, out, _ = cli(*common("transformer", "darts", small), *limits, "--dry-run")
    assert code == 0
    assert re.search(
        rf"^  limits: 1,000,000,000 multiply-adds, a latency of [\d.]+ms, {size:,} bytes; the nearest network "
        "found has ",
        out,
        re.M,
    )
