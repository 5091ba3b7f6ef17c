from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import nasengine
from nasengine.alphas import entropy
from nasengine.architecture import Architecture
from nasengine.config import SearchSettings
from nasengine.errors import DivergedError, InterruptedRun, RunError, SettingError, UnknownNameError
from nasengine.loop import Observer
from nasengine.run_directory import Row
from nasengine.search_plan import plan_search
from nasengine.searching import SearchJob
from nasengine.tables import read_rows
from search_spaces.darts import DARTS
from tests.nasengine.runs import SEARCH, assert_same_run, contents, history, record, same, state


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[Row] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch_ended(self, epoch: int, row: Row) -> None:
        self.rows.append(row)


class Stopping(Observer):
    def saved(self, step: int) -> None:
        raise InterruptedRun("enough")


def test_what_a_run_leaves(ended: Path) -> None:
    assert {name for name in contents(ended) if "/" not in name} == {
        *("run.json", "history.csv", "alphas.csv", "checkpoint.pt", "architecture.txt", "genotype.txt"),
        *("cells.svg", "cells.png"),
    }
    found = Architecture.parse((ended / "architecture.txt").read_text())
    space = DARTS(channels=2, layers=3, nodes=1)
    assert space.write(found) + "\n" == (ended / "genotype.txt").read_text()
    assert str(found) == record(ended)["result"]["architecture"]
    assert space.read(record(ended)["result"]["genotype"]) == found
    assert b"<svg" in (ended / "cells.svg").read_bytes() and (ended / "cells.png").read_bytes()[:4] == b"\x89PNG"


def test_result_is_what_the_directory_holds(small: str, tmp_path: Path) -> None:
    found = nasengine.search(task=small, settings=SEARCH, out=tmp_path / "run")
    assert found.path == tmp_path / "run" and json.loads(json.dumps(found.record)) == record(found.path)
    assert str(found.architecture) == found.record["result"]["architecture"]
    assert found.text == found.record["result"]["genotype"]


def test_history_of_a_search(ended: Path) -> None:
    rows = history(ended)
    assert list(rows[0]) == [
        *("epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "supernet_accuracy"),
        *("derived_accuracy", "gap", "alpha_entropy", "changed", "skips_normal", "skips_reduce", "architecture"),
    ]
    space = DARTS(channels=2, layers=3, nodes=1)
    for row in rows:
        assert float(row["gap"]) == float(row["supernet_accuracy"]) - float(row["derived_accuracy"])
        cells = space.graphs(space.read(row["architecture"]))
        for kind, cell in cells.items():
            edges = [operation for _, _, operation in cell.edges(data="operation")]
            assert float(row[f"skips_{kind}"]) == edges.count("skip_connect")
        assert 0.0 <= float(row["train_accuracy"]) <= 1.0
    assert rows[0]["changed"] == "0" and rows[-1]["architecture"] + "\n" == (ended / "genotype.txt").read_text()
    final = record(ended)["result"]
    assert float(rows[-1]["supernet_accuracy"]) == final["supernet_accuracy"]
    assert float(rows[-1]["derived_accuracy"]) == final["derived_accuracy"]


def test_entropy_column(ended: Path) -> None:
    tables = {
        name: torch.softmax(table, -1)
        for name, table in state(ended)["job"]["algorithm"]["alphas"].items()
        if name.startswith("tables")
    }
    rows = {f"{name}{index}": row for name, table in tables.items() for index, row in enumerate(table)}
    assert len(rows) == 4
    assert float(history(ended)[-1]["alpha_entropy"]) == pytest.approx(entropy(rows), abs=1e-12)


def test_weights_of_every_epoch(ended: Path, small: str, tmp_path: Path) -> None:
    rows = read_rows(ended / "alphas.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"] and len(rows[0]) == 1 + 2 * 2 * 8
    assert list(rows[0])[1] == "normal/0-2=none"
    last = [float(value) for name, value in rows[1].items() if name.startswith("normal/0-2=")]
    table = torch.softmax(state(ended)["job"]["algorithm"]["alphas"]["tables.normal-8"], -1)[0]
    assert last == pytest.approx(table.tolist(), abs=1e-6) and sum(last) == pytest.approx(1, abs=1e-5)
    half = tmp_path / "half"
    with pytest.raises(InterruptedRun):
        nasengine.search(task=small, settings=SEARCH, out=half, observer=Stopping())
    assert read_rows(half / "alphas.csv") == rows[:1]
    nasengine.search(out=half, resume=True)
    assert (half / "alphas.csv").read_bytes() == (ended / "alphas.csv").read_bytes()


def test_hard_choices_have_no_weights(small: str, tmp_path: Path) -> None:
    settings = ("search.epochs=1", "search.batch_size=8", "search.device=cpu")
    found = nasengine.search("transformer", "deps", small, settings=settings, out=tmp_path / "run")
    assert not (found.path / "alphas.csv").exists()


def test_changes_and_skip_connections_are_told(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = DARTS(channels=2, layers=3, nodes=1)
    cells = [
        space.read(
            f"Genotype(normal=[({first!r}, 0), ('skip_connect', 1)], normal_concat=[2], "
            "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=[2])"
        )
        for first in ("sep_conv_3x3", "skip_connect", "skip_connect")
    ]
    derived = iter(cells)
    from nasengine.algorithms.rarts import RARTS

    monkeypatch.setattr(RARTS, "derive", lambda algorithm, state, budget: next(derived))
    observer = Notes()
    nasengine.search(space, task=small, settings=SEARCH, out=tmp_path / "run", observer=observer)
    assert [row["changed"] for row in observer.rows] == [0, 1]
    assert [row["skips_normal"] for row in observer.rows] == [1, 2]
    assert len(observer.notes) == 2 and "skip_connect" in observer.notes[0]
    assert observer.notes[1] == (
        "2 of the 2 edges of the normal cell are skip connections: the search may be collapsing."
    )


def test_same_seed_same_bits_other_seed_other_bits(ended: Path, small: str, tmp_path: Path) -> None:
    nasengine.search(task=small, settings=SEARCH, out=tmp_path / "again")
    assert_same_run(ended, tmp_path / "again")
    nasengine.search(task=small, settings=(*SEARCH, "search.seed=1"), out=tmp_path / "other")
    assert not same(state(ended), state(tmp_path / "other"))
    assert history(ended) != history(tmp_path / "other")


def test_record_repeats_the_run(ended: Path, tmp_path: Path) -> None:
    nasengine.search(config=record(ended)["config"], out=tmp_path / "again")
    assert_same_run(ended, tmp_path / "again")
    assert record(ended)["config"] == record(tmp_path / "again")["config"]


def test_random_states_of_the_caller_are_left_alone(small: str, tmp_path: Path) -> None:
    def states() -> tuple[list[int], object, str]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    nasengine.search(task=small, settings=SEARCH, out=tmp_path / "run")
    assert states() == before


def test_random_states_of_the_caller_do_not_matter(ended: Path, small: str, tmp_path: Path) -> None:
    fixed = torch.get_rng_state()
    torch.manual_seed(999)
    try:
        nasengine.search(task=small, settings=SEARCH, out=tmp_path / "run")
    finally:
        torch.set_rng_state(fixed)
    assert_same_run(ended, tmp_path / "run")


def test_default_directory(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = nasengine.search(algorithm="darts", task=small, settings=(*SEARCH, "search.seed=3", "search.epochs=1"))
    assert found.path == Path("results/npz-small/darts/darts/seed-3") and found.path.is_dir()


def test_a_learning_rate_that_blows_up(small: str, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"Loss and weights must stay finite, but .*; no state was saved before"):
        nasengine.search(
            algorithm="darts",
            task=small,
            settings=(*SEARCH, "algo.weights.lr=1e30", "algo.weights.clip=0"),
            out=tmp_path / "run",
        )
    assert record(tmp_path / "run")["status"] == "diverged"
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_last_good_checkpoint_survives(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SearchJob.step

    def spoiled(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        metrics = step(job, number)
        return metrics | {"valid_loss": torch.tensor(float("nan"))} if number == 2 else metrics

    monkeypatch.setattr(SearchJob, "step", spoiled)
    settings = (*SEARCH, "search.checkpoint_seconds=0")
    with pytest.raises(
        DivergedError, match=r"but the valid loss became nan at step 3 \(epoch 2\); .* of step 2, is in"
    ):
        nasengine.search(task=small, settings=settings, out=tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 2 and len(history(tmp_path / "run")) == 1


def test_weights_are_checked_before_they_are_saved(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SearchJob.step

    def spoiled(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        metrics = step(job, number)
        if number == 2:
            next(job.state.valid_copy.parameters()).data.flatten()[0] = float("inf")
        return metrics

    monkeypatch.setattr(SearchJob, "step", spoiled)
    with pytest.raises(DivergedError, match=r"a weight became NaN or infinite at step 3 \(epoch 2\)"):
        nasengine.search(task=small, settings=(*SEARCH, "search.checkpoint_seconds=0"), out=tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 2


def test_resume_takes_its_configuration_from_the_run(small: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        nasengine.search(task=small, settings=SEARCH, out=tmp_path / "run", observer=_Stop())
    with pytest.raises(RunError, match=r"search.epochs is 2 in .* and 9 is asked for; drop what differs"):
        nasengine.search(settings=("search.epochs=9",), out=tmp_path / "run", resume=True)
    assert record(tmp_path / "run")["status"] == "running"
    nasengine.search(out=tmp_path / "run", resume=True)
    assert record(tmp_path / "run")["status"] == "finished"


class _Stop(Observer):
    """Leaves a run after its first epoch."""

    def saved(self, step: int) -> None:
        raise ZeroDivisionError


def test_data_that_changed_are_noticed(small: str, tmp_path: Path) -> None:
    images = dict(np.load(small.removeprefix("npz:")))
    np.savez(tmp_path / "small.npz", x=images["x"], y=images["y"])
    with pytest.raises(ZeroDivisionError):
        nasengine.search(task=f"npz:{tmp_path}/small.npz", settings=SEARCH, out=tmp_path / "run", observer=_Stop())
    images["x"][0, 0, 0] ^= 1
    np.savez(tmp_path / "small.npz", x=images["x"], y=images["y"])
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match=r"A run must go on with its own data, but in .* their fingerprint is"):
        nasengine.search(out=tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_rising_order_of_right() -> None:
    config = {
        "space": {"name": "darts", "channels": 4, "nodes": 2},
        "algo": {"name": "darts", "order": "second"},
        "data": {"name": "digits", "train_portion": 0.6},
        "search": {"epochs": 7, "seed": 5},
    }
    plan = plan_search(settings=("search.epochs=3", "space.nodes=1", "data.crop=0", "search.epochs=4"), config=config)
    assert plan.settings == SearchSettings(epochs=4, seed=5)
    assert (plan.config["space"]["channels"], plan.config["space"]["nodes"]) == (4, 1)
    assert plan.config["algo"]["order"] == "second" and plan.config["data"]["train_portion"] == 0.6
    other = plan_search(algorithm="rarts", space=DARTS(channels=6), config=config, settings=("space.layers=3",))
    assert "order" not in other.config["algo"] and other.config["algo"]["name"] == "rarts"
    assert (other.config["space"]["channels"], other.config["space"]["layers"], other.config["space"]["nodes"]) == (
        6,
        3,
        4,
    )


def test_defaults() -> None:
    plan = plan_search()
    assert (plan.space.name, plan.algorithm.name, plan.task.name) == ("darts", "rarts", "digits")
    assert plan.default_out == Path("results/digits/darts/rarts/seed-0")


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (["train.epochs=3"], UnknownNameError, "Unknown group of settings 'train'"),
        (["epochs=3"], SettingError, "A setting must be group.name=value such as space.x=1, but got 'epochs=3'"),
        (["search.epochs"], SettingError, "but got 'search.epochs'"),
        (["search.epoch=3"], UnknownNameError, "Unknown setting 'search.epoch': did you mean 'search.epochs'"),
    ],
)
def test_settings_that_are_none(settings: list[str], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        plan_search(settings=settings)
