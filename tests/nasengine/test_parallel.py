"""Processes that search together: they agree, one writes, and a lost one costs nothing that was saved."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nasengine
from nasengine import parallel
from nasengine._cli.main import main
from nasengine.batches import Batches
from nasengine.errors import DeviceError, ParallelError, SettingError
from nasengine.parallel import ALONE, Ranks, digest, from_first, largest, local_device, ranks_of_environment
from nasengine.shared_run import SharedRun, agreed, ranks_of
from nasengine.task import Augment
from tests.nasengine.process_searches import COMMAND
from tests.nasengine.processes import ROOT, environment
from tests.nasengine.runs import contents, history, record
from tests.nasengine.tasks import CPU, image_task

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(scope="module")
def told(by_ranks: Path) -> list[dict[str, Any]]:
    """What each of two processes had to say."""
    return [torch.load(by_ranks / f"told-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def last(by_ranks: Path) -> dict[str, Any]:
    """What rank 0 had to say after rank 1 was killed."""
    return dict(json.loads((by_ranks / "said.json").read_text()))


def assert_like(out: Path, alone: Path) -> None:
    """Both runs are finished, with the same architectures, and numbers that differ by rounding."""
    ours, theirs = history(out), history(alone)
    assert record(out)["status"] == record(alone)["status"] == "finished"
    assert [row["architecture"] for row in ours] == [row["architecture"] for row in theirs]
    assert record(out)["result"]["architecture"] == record(alone)["result"]["architecture"]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "supernet_accuracy"):
            assert float(mine[name]) == pytest.approx(float(other[name]), abs=1e-4), name


@pytest.mark.parametrize("name", ["whole", "stopped"])
def test_search_of_two_is_that_of_one(name: str, by_ranks: Path) -> None:
    assert_like(by_ranks / name, by_ranks / "alone")


def test_the_directory_is_that_of_one_process(by_ranks: Path) -> None:
    def names(path: Path) -> set[str]:
        return {name for name in contents(path) if not name.startswith("events")}

    whole, alone = by_ranks / "whole", by_ranks / "alone"
    assert names(whole) == names(alone) and not list(whole.glob(".partial*"))
    assert len(list(whole.glob("events*"))) <= 1
    assert record(whole)["config"] == record(alone)["config"] and record(whole)["facts"] == record(alone)["facts"]
    assert record(whole)["device"].startswith("2 x cpu, ") and record(alone)["device"].startswith("cpu, ")
    assert (whole / "genotype.txt").read_text() == (alone / "genotype.txt").read_text()


def test_all_answer_and_one_is_observed(told: list[dict[str, Any]], by_ranks: Path) -> None:
    for mine in told:
        assert mine["architecture"] == mine["resumed"] == record(by_ranks / "alone")["result"]["architecture"]
        assert mine["record"] == "finished"
    assert [mine["observed"] for mine in told] == [4, 0]


def test_an_error_of_rank_0_is_that_of_all(told: list[dict[str, Any]]) -> None:
    for mine in told:
        message, shared = mine["occupied"]
        assert "must be new or empty, but holds a run that is finished; give another --out." in message and shared


def test_a_signal_to_one_stops_all_after_the_same_step(told: list[dict[str, Any]]) -> None:
    for mine in told:
        assert mine["stopped"] == ["Stopped by SIGINT after step 3 of 4, all is saved.", True]


def test_processes_that_differ(told: list[dict[str, Any]], by_ranks: Path) -> None:
    for rank, mine in enumerate(told):
        other, bad, drifted = mine["failed"]
        assert other == [
            "ParallelError",
            "All 2 processes must have the same configuration and data, but they differ; give all of them the same "
            "command, files and versions.",
            True,
        ]
        where = "" if rank else " (rank 1 of 2)"
        assert bad == ["SettingError", f"search.epochs must be at least 1, but got 0{where}.", True]
        assert drifted == [
            "ParallelError",
            "All 2 processes must have the same state, but they differ; nothing was saved since step 0: use "
            "processors of one kind, and resume.",
            True,
        ]
    assert not (by_ranks / "other").exists() and not (by_ranks / "bad").exists()
    assert not (by_ranks / "drifted" / "checkpoint.pt").exists()


def test_a_lost_process_is_noticed_at_once(last: dict[str, Any], by_ranks: Path) -> None:
    message, shared = last["lost"]
    assert message == (
        "All 2 processes must go on, but rank 0 lost another one, which ended; what was saved is whole: start all of "
        "them again with --resume."
    )
    assert not shared and last["seconds"] < 30  # far below the time that an exchange may take
    assert record(by_ranks / "killed")["status"] == "running" and record(by_ranks / "killed")["step"] == 2


def test_one_goes_on_where_two_were(by_ranks: Path, tmp_path: Path) -> None:
    out = shutil.copytree(by_ranks / "killed", tmp_path / "killed")
    nasengine.search(out=out, resume=True)
    assert_like(out, by_ranks / "alone")
    assert record(out)["device"].startswith("cpu, ")


def test_torchrun_goes_on_and_one_tells(by_ranks: Path, tmp_path: Path) -> None:
    out = shutil.copytree(by_ranks / "killed", tmp_path / "killed")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nasengine"]
    done = subprocess.run(
        [sys.executable, *command, *COMMAND, "--out", str(out), "--resume"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_like(out, by_ranks / "alone")
    assert done.stdout.count("goes on after step 2 on cpu") == 1 and done.stdout.count("epoch 2/2") == 1


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT is missing"),
        ({"RANK": "two"}, "their numbers are wrong"),
        ({"RANK": "2"}, "their numbers are wrong"),
    ],
)
def test_half_of_what_torchrun_sets(changes: dict[str, str | None], wrong: str) -> None:
    variables = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ParallelError, match=rf"^Where WORLD_SIZE is '2', torchrun must have set .* but {wrong}; start"):
        ranks_of_environment(variables)


def test_what_torchrun_sets() -> None:
    assert ranks_of_environment(TORCHRUN) == Ranks(1, 2, 0)
    assert ranks_of_environment({}) == ranks_of_environment({**TORCHRUN, "WORLD_SIZE": "1"}) == ALONE


def test_processes_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name, value in {**TORCHRUN, "RANK": "0", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(ParallelError, match=r"^All 2 processes must start within 1 seconds and reach each other at"):
        parallel.start(wait_seconds=1)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("said", "how"),
    [
        (
            "Read error [127.0.0.1]:1: Connection reset by peer",
            "lost another one, which ended; what was saved is whole",
        ),
        ("Timed out waiting 600000ms for recv operation", "lost another one, which did not answer in time; what"),
        ("unknown. Thing", "lost another one, as 'RuntimeError: unknown; Thing' says; what was saved"),
    ],
)
def test_how_a_process_was_lost(said: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensor: torch.Tensor) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(ParallelError, match=how):
        parallel.sum_over_ranks(torch.ones(1))


def test_other_verbs_are_for_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert main(["show", "results"]) == 2
    assert capsys.readouterr().err == ""  # rank 1 leaves it to rank 0
    monkeypatch.setenv("RANK", "0")
    assert main(["show", "results"]) == 2
    assert capsys.readouterr().err == (
        "nasengine: Only 'nasengine search' divides its work among the processes of torchrun, but 2 of 'nasengine "
        "show' were started; start it without torchrun.\n"
    )


def test_a_gpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device(ALONE, torch.device("cuda:1")) == torch.device("cuda:1")
    assert local_device(Ranks(1, 2, 1), CPU) == CPU
    for name in ("cuda:1", "mps"):
        with pytest.raises(
            DeviceError, match=f"^The device of 2 processes must be cpu or cuda, .*, but got '{name}'; "
        ):
            local_device(Ranks(1, 2, 1), torch.device(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="has 1 and local rank 1 is one too many; start with --nproc-per-node 1, or"):
        local_device(Ranks(1, 2, 1), torch.device("cuda"))


def batches(**part: int) -> Batches:
    task = image_task()
    augment = Augment(crop=2, flip=True, cutout=3)
    return Batches(task, torch.arange(60), 12, seed=1, stream=0, augment=augment, device=CPU, **part)


def test_shards_are_the_parts_of_a_batch() -> None:
    for step in (0, 7):
        whole = batches()[step]
        parts = [batches(shard=shard, shards=3)[step] for shard in range(3)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert {len(part.targets) for part in parts} == {4}


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(
        SettingError, match=r"^--batch-size must be a multiple of the 5 processes, but is 12; choose 10, say\.$"
    ):
        batches(shard=0, shards=5)


def test_what_one_process_exchanges_with_itself(tmp_path: Path) -> None:
    assert largest(ALONE, 3, -4) == [3, -4] and from_first(ALONE, lambda: b"x") == b"x"
    run: Callable[..., Any] = nasengine.run_directory.Run
    alone = run(tmp_path, {}, None)
    assert agreed(alone, "SIGINT", True) == ("SIGINT", True) and ranks_of(alone) == ALONE


def test_digests_tell_states_apart() -> None:
    state = {"a": [torch.arange(3), 1.5], "b": {"c": torch.zeros(2, dtype=torch.bfloat16)}, "d": ("x", None)}
    others = [
        {**state, "a": [torch.arange(3).int(), 1.5]},
        {**state, "a": [torch.arange(3), 1.5000001]},
        {**state, "b": {"c": torch.zeros(1, 2, dtype=torch.bfloat16)}},
        {**state, "b": {"e": torch.zeros(2, dtype=torch.bfloat16)}},
        {**state, "d": ("x", "None")},
    ]
    found = [digest(value) for value in (state, *others)]
    assert len(set(found)) == len(found) and all(0 <= number < 2**63 for number in found)
    assert digest({**state, "a": [torch.arange(3), 1.5]}) == found[0]


def test_states_that_drifted_apart_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SharedRun.open(ALONE, False, tmp_path, "search", {}, {})
    run.ranks = Ranks(0, 2, 0)
    run.update({"step": 5})
    monkeypatch.setattr(parallel, "largest", lambda ranks, *numbers: [numbers[0] + 1, numbers[1]])
    with pytest.raises(
        ParallelError,
        match=r"^All 2 processes must have the same state, but they differ; nothing was saved since step 5: ",
    ) as caught:
        run.save_checkpoint({"step": 6, "job": {}})
    assert caught.value.shared and not (tmp_path / "checkpoint.pt").exists()


def test_a_follower_writes_nothing(tmp_path: Path) -> None:
    with SharedRun.open(ALONE, False, tmp_path, "search", {}, {}) as run:
        run.ranks = Ranks(1, 2, 0)
        before = contents(tmp_path)
        run.update({"status": "finished"})
        run.write_text("cells.svg", "")
        run.write_history([])
        run.discard(["run.json"])
        assert contents(tmp_path) == before and run.record["status"] == "finished"
