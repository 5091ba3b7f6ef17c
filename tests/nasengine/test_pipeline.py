"""From a question to a network: every stage once, the winner by validation, the test set met once."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nasengine
from nasengine import finals
from nasengine._cli.main import main
from nasengine.candidates import candidate_table, chosen_rows, worth
from nasengine.errors import DivergedError, InterruptedRun, NasengineError
from nasengine.finals import Finalist
from nasengine.run_observer import RunObserver
from nasengine.task import Task
from nasengine.training import TrainJob, score_on_test
from tests.nasengine.lives import hire
from tests.nasengine.runs import SEARCH, flags, record

STAGES = ["search", "propose", "collect", "rank", "train", "test", "export", "report"]
RUN = (
    *(*SEARCH, "propose.count=8", "run.labels=4", "run.train=2", "run.seeds=2", "run.export=py"),
    *("final.channels=2", "final.layers=3", "train.epochs=2", "train.batch_size=8", "train.valid_portion=0.25"),
)


@pytest.fixture(scope="module")
def _whole(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "run"
    nasengine.run("darts", "rarts", small, settings=RUN, out=out)
    return out


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A copy of a finished pipeline."""
    return Path(shutil.copytree(_whole, tmp_path / "whole"))


class Told(RunObserver):
    """What a pipeline tells of its stages; it may be stopped when one begins, as by Ctrl-C."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.stages = stop, dict[str, str]()

    def began(self, stage: str, path: Path) -> None:
        if stage == self.stop:
            raise KeyboardInterrupt
        self.stages[stage] = "began"

    def stood(self, stage: str) -> None:
        self.stages[stage] = "stood"


def test_every_stage_leaves_the_files_of_its_verb(whole: Path) -> None:
    found = record(whole)
    assert found["status"] == "finished" and list(found["stages"]) == STAGES
    for name, verb in (("search", "search"), ("candidates", "propose"), ("scores", "collect"), ("ranking", "rank")):
        assert (record(whole / name)["verb"], record(whole / name)["status"]) == (verb, "finished")
    trained = sorted(path.name for path in (whole / "final").iterdir())
    assert trained == ["1-seed-0", "1-seed-1", "2-seed-0", "2-seed-1"]
    assert (whole / "report.html").stat().st_size > 0 and (whole / "export" / "model.py").exists()
    assert sum(found["result"]["stages"].values()) == pytest.approx(found["result"]["seconds"], abs=0.5)


def test_one_table_of_all_candidates(whole: Path) -> None:
    table = pd.read_csv(whole / "candidates.csv")
    assert table["rank"].tolist() == list(range(1, 9)) and table["predicted"].is_monotonic_decreasing
    labels = pd.read_csv(whole / "scores" / "labels.csv").set_index("architecture")["score"]
    known = table.dropna(subset="measured").set_index("architecture")["measured"]
    assert len(labels) == 4 and known.to_dict() == labels.to_dict()
    derived = table[table["source"] == "derived"]
    assert len(derived) == 1 and derived["measured"].notna().all()
    assert table["trained"].notna().tolist() == [True, True] + [False] * 6
    for rank in (1, 2):
        scores = [record(whole / "final" / f"{rank}-seed-{seed}")["result"]["valid_accuracy"] for seed in (0, 1)]
        row = table.iloc[rank - 1]
        assert row["trained"] == pytest.approx(sum(scores) / 2)
        assert row["trained_deviation"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)


def test_the_winner_is_the_best_by_validation(whole: Path, small: str) -> None:
    result = record(whole)["result"]
    table = pd.read_csv(whole / "candidates.csv")
    assert result["rank"] == int(table["rank"][table["trained"].idxmax()])
    winner = whole / result["winner"]
    mine = record(winner)["result"]
    others = [record(path)["result"]["valid_accuracy"] for path in winner.parent.glob(f"{result['rank']}-seed-*")]
    assert mine["valid_accuracy"] == max(others) == result["valid_accuracy"]
    tested = [path for path in winner.parent.iterdir() if "test_accuracy" in record(path)["result"]]
    assert tested == [winner] and result["test_accuracy"] == mine["test_accuracy"] == score_on_test(
        winner, nasengine.load_task(small)
    )
    assert result["genotype"] == mine["genotype"] and result["architecture"] == record(winner)["config"]["architecture"]
    configs = [record(path)["config"] for path in (whole / "final").iterdir()]
    assert {config["space"]["channels"] for config in configs} == {2}
    assert {config["train"]["valid_portion"] for config in configs} == {0.25}


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    seen: list[int] = []

    def counting(path: Path, task: Task) -> float:
        seen.append(1)
        return score_on_test(path, task)

    monkeypatch.setattr("nasengine.pipeline.score_on_test", counting)
    return iter([seen])


@pytest.mark.parametrize("stop", ["propose", "train", "report"])
def test_stopped_between_stages_and_resumed(
    stop: str, whole: Path, small: str, tmp_path: Path, _counted: Iterator[list[int]]
) -> None:
    seen, out = next(_counted), tmp_path / "out"
    with pytest.raises(InterruptedRun, match=rf"^Stopped in the stage '{stop}', all is saved\.$"):
        nasengine.run("darts", "rarts", small, settings=[*RUN, "run.export=none"], out=out, observer=Told(stop))
    assert record(out)["status"] == "interrupted"
    told = Told()
    nasengine.run(out=out, resume=True, observer=told)
    stages = [stage for stage in STAGES if stage != "export"]
    before = stages.index(stop)
    assert told.stages == {**dict.fromkeys(stages[:before], "stood"), **dict.fromkeys(stages[before:], "began")}
    assert pd.read_csv(out / "candidates.csv").equals(pd.read_csv(whole / "candidates.csv"))
    assert record(out)["result"]["test_accuracy"] == record(whole)["result"]["test_accuracy"] and len(seen) == 1


def test_stopped_within_a_training_and_resumed(
    whole: Path, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count, out = TrainJob.step, [0], tmp_path / "out"

    def stopping(job: TrainJob, number: int) -> Any:
        count[0] += 1
        if count[0] == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(job, number)

    monkeypatch.setattr(TrainJob, "step", stopping)
    with pytest.raises(
        InterruptedRun, match=r"^Stopped by SIGTERM after step \d of \d+ in the stage 'train', all is saved\.$"
    ):
        nasengine.run("darts", "rarts", small, settings=[*RUN, "run.export=none"], out=out)
    assert record(out)["status"] == "interrupted"
    nasengine.run(out=out, resume=True)
    assert pd.read_csv(out / "candidates.csv").equals(pd.read_csv(whole / "candidates.csv"))


def test_several_workers_come_to_the_same(
    whole: Path, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasengine.workers._Crew._hire", hire)
    scored = [*RUN, "run.score=training", "run.labels=8", "collect.epochs=6", "collect.lr=0.05", "run.export=none"]
    scored += ["collect.batch_size=4"]
    for name, workers in (("one", 1), ("two", 2)):
        nasengine.run("darts", "rarts", small, settings=scored, out=tmp_path / name, workers=workers)
    one, two = (pd.read_csv(tmp_path / name / "candidates.csv") for name in ("one", "two"))
    assert one.equals(two) and record(tmp_path / "two")["result"]["stages"].keys() == set(STAGES) - {"export"}
    assert not one["measured"].equals(pd.read_csv(whole / "candidates.csv")["measured"])


def test_a_task_in_memory(small: str, tmp_path: Path) -> None:
    task: Task = nasengine.load_task(small)
    named = nasengine.Dataset(**{**vars(task.dataset), "name": "mine"})
    result = nasengine.run(
        "darts", "rarts", named, settings=[*RUN, "run.seeds=1", "run.export=none"], out=tmp_path / "out"
    )
    assert 0 <= result.test_score <= 1 and result.winner.parent.name == "final"


def test_all_trainings_diverge(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(whole / "final")
    found = record(whole)
    stages = {name: stage for name, stage in found["stages"].items() if name in STAGES[:4]}
    (whole / "run.json").write_text(json.dumps({**found, "status": "interrupted", "stages": stages}))
    step = TrainJob.step
    monkeypatch.setattr(
        TrainJob, "step", lambda job, number: {k: v * float("nan") for k, v in step(job, number).items()}
    )
    with pytest.raises(DivergedError, match=r"must stay finite, but all 4 diverged; .* smaller train\.lr\.$"):
        nasengine.run(out=whole, resume=True)
    assert record(whole)["status"] == "diverged"


def test_what_is_refused_before_anything_is_written(small: str, tmp_path: Path) -> None:
    cases: list[tuple[str, list[str]]] = [
        ("run.labels must be at most the number of candidates, 8, but is 9", ["run.labels=9"]),
        ("run.train must be at most the number of candidates, 8, but is 9", ["run.train=9"]),
        ("run.labels must be at least 2, but got 1", ["run.labels=1"]),
        ("train.valid_portion must be above 0", ["train.valid_portion=0"]),
        ("train.inherit must be false", ["train.inherit=true"]),
        ("Unknown format 'pt3': did you mean 'pt2'", ["run.export=pt3"]),
        ("run.score must be inherited or training, but got 'guess'", ["run.score=guess"]),
        ("Unknown setting 'final.chanels'", ["final.chanels=3"]),
    ]
    for message, more in cases:
        with pytest.raises(NasengineError, match=message):
            nasengine.run("darts", "rarts", small, settings=[*RUN, *more], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for workers, told in ((0, "Workers must be a number of processes"), ("ray://127.0.0.1:9", "must answer at ray://")):
        with pytest.raises(NasengineError, match=told):
            nasengine.run("darts", "rarts", small, settings=RUN, out=tmp_path / "out", workers=workers)
        assert not (tmp_path / "out").exists()


def test_a_finished_one_is_left_alone(whole: Path, small: str) -> None:
    before = (whole / "run.json").read_text()
    with pytest.raises(NasengineError, match="is finished: nothing is left to go on with"):
        nasengine.run(out=whole, resume=True)
    with pytest.raises(NasengineError, match="must be new or empty, but holds a run that is finished"):
        nasengine.run("darts", "rarts", small, settings=RUN, out=whole)
    assert (whole / "run.json").read_text() == before


def test_on_the_command_line(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["run", "--data", small, "--candidates", "6", "--labels", "4", "--train", "1", "--seeds", "1"]
    arguments += ["--train-epochs", "1", "--epochs", "1", "--export", "none", "--out", str(out)]
    settings = [text for text in RUN if not text.startswith(("run.", "propose.", "search.epochs", "train.epochs"))]
    assert main([*arguments, *flags(settings)]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{stage}: " in said for stage in STAGES if stage != "export")
    assert "the winner: candidate 1 by the predictor" in said and "test accuracy: " in said and "report.html" in said
    assert main(["run", "--config", str(out), "--out", str(tmp_path / "again")]) == 0
    assert record(tmp_path / "again")["result"]["test_accuracy"] == record(out)["result"]["test_accuracy"]


def test_which_are_labelled() -> None:
    assert chosen_rows(5, 3, [4, 0, 2, 1, 3]) == [0, 2, 4]
    assert chosen_rows(3, 9, [2, 1, 0]) == [0, 1, 2]


def test_worth() -> None:
    proposed = pd.DataFrame({"source": "sampled", "architecture": list("abcde"), "parameters": 1})
    ranking = pd.DataFrame(
        {
            "rank": [1, 2, 3, 4, 5],
            "score": [0.9, 0.8, 0.7, 0.6, 0.5],
            "uncertainty": 0.1,
            "architecture": list("cabed"),
            "known": [None, 0.8, None, None, 0.4],
        }
    )
    best = [nasengine.Architecture({"x": letter}) for letter in "cab"]
    trained = [Finalist(rank, a, (), s) for rank, a, s in zip((1, 2, 3), best, ((0.5, 0.7), (0.8,), ()), strict=True)]
    table = candidate_table(proposed, ranking, ["architecture"], trained)
    assert table["architecture"].tolist() == list("cabed") and table["trained"].tolist()[:2] == [0.6, 0.8]
    assert table["trained_deviation"].notna().tolist() == [True, False, False, False, False]
    found = worth(table, 2.0)
    assert found == {"trained_candidates": 2, "regret": pytest.approx(0.2), "saved_seconds": 6.0}


def test_the_best_mean_wins_and_of_it_the_best_training(tmp_path: Path) -> None:
    scores = {1: (0.9, 0.1), 2: (0.6, 0.7), 3: ()}
    several = []
    for rank, values in scores.items():
        paths = [tmp_path / f"{rank}-{number}" for number in range(2)]
        for path, value in zip(paths, values or (0.0, 0.0), strict=True):
            path.mkdir()
            status = "finished" if values else "diverged"
            entries = {"id": "", "status": status, "config": {"architecture": "a=b"}, "facts": {}, "verb": "train"}
            entries["config"] |= {"space": {}, "data": {}, "train": {}}  # type: ignore[operator]
            (path / "run.json").write_text(json.dumps({**entries, "result": {"valid_accuracy": value}}))
        several.append(Finalist(rank, nasengine.Architecture({"a": "b"}), tuple(paths), values))
    best, path = finals.winner(several, "accuracy")
    assert (best.rank, path.name) == (2, "2-1")
