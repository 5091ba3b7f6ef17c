"""Pipelines that were killed, taken apart or given what they cannot have, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nasengine
from nasengine import pipeline
from nasengine.errors import InterruptedRun, LimitError, NasengineError, RunError, SettingError
from nasengine.pipeline import RunObserver
from tests.nasengine.runs import record
from tests.nasengine.tasks import float_dataset

SPACE = f"{Path(__file__).parent / 'dense.py'}:Dense"
RUN = (
    *("search.epochs=1", "search.batch_size=16", "propose.count=9", "run.labels=5", "run.train=2", "run.export=none"),
    *("train.epochs=1", "train.batch_size=16", "collect.epochs=1", "collect.batch_size=16"),
)


def run(out: Path, *settings: str, **more: Any) -> nasengine.RunResult:
    return nasengine.run(SPACE, "rarts", "sklearn:wine", settings=[*RUN, *settings], out=out, **more)


@pytest.fixture(scope="module")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "run"
    run(out)
    return out


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A copy of a finished pipeline."""
    return Path(shutil.copytree(_whole, tmp_path / "whole"))


def killed(out: Path, *stages: str) -> None:
    """The process was killed before these stages were noted."""
    found = record(out)
    left = {name: stage for name, stage in found["stages"].items() if name not in stages}
    (out / "run.json").write_text(json.dumps({**found, "status": "running", "stages": left}))


class Told(RunObserver):
    """The stages that begin; the process is told to stop when one does."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.stages, self.said = stop, list[str](), dict[str, str]()

    def began(self, stage: str, path: Path) -> None:
        self.stages.append(stage)
        if stage == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def ended(self, stage: str, seconds: float, said: str) -> None:
        self.said[stage] = said


def test_the_report_is_of_a_finished_run(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert "is running, or was killed" not in page and record(whole)["result"]["winner"] in page


@pytest.mark.parametrize(
    ("removed", "again"),
    [
        (("search",), ["search"]),
        (("candidates", "ranking"), ["propose", "rank"]),
        (("scores", "report.html"), ["collect", "report"]),
        (("candidates.csv",), ["train"]),
        (("final",), ["train", "test"]),
    ],
)
def test_what_was_removed_is_made_again(removed: tuple[str, ...], again: list[str], _whole: Path, whole: Path) -> None:
    killed(whole)
    for name in removed:
        (shutil.rmtree if (whole / name).is_dir() else os.remove)(whole / name)
    told = Told()
    nasengine.run(out=whole, resume=True, observer=told)
    assert told.stages == again and record(whole)["status"] == "finished"
    assert (whole / "candidates.csv").read_text() == (_whole / "candidates.csv").read_text()
    before, after = (record(path)["result"] for path in (_whole, whole))
    assert all(before[name] == after[name] for name in ("winner", "valid_accuracy", "test_accuracy"))


@pytest.mark.parametrize("content", [None, '"a'])
def test_a_table_that_is_gone(content: str | None, whole: Path) -> None:
    killed(whole, "train")
    table = whole / "ranking" / "ranking.csv"
    table.unlink() if content is None else table.write_text(content)
    with pytest.raises(RunError, match=r"ranking\.csv must be a table that the run wrote, .* or remove .*ranking and"):
        nasengine.run(out=whole, resume=True)
    shutil.rmtree(whole / "ranking")
    nasengine.run(out=whole, resume=True)


def test_killed_after_the_test(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = record(whole)["result"]
    killed(whole, "test", "report")
    monkeypatch.setattr(pipeline, "score_on_test", lambda *arguments: pytest.fail("the test set was met again"))
    nasengine.run(out=whole, resume=True)
    assert record(whole)["result"]["test_accuracy"] == before["test_accuracy"]


def test_labels_that_tell_no_order(tmp_path: Path) -> None:
    told, out = Told(), tmp_path / "out"
    run(out, "run.score=training", "collect.lr=1e30", "collect.clip=0", observer=told)
    assert told.said["rank"] == "the labels tell no order, so that candidates keep that of the search"
    table, proposed = (pd.read_csv(path / "candidates.csv") for path in (out, out / "candidates"))
    assert table["architecture"].tolist() == proposed["architecture"].tolist()
    assert table["predicted"].isna().all() and table["measured"].notna().sum() == 5
    assert table["rank"].tolist() == list(range(1, 10)) and table["trained"].notna().sum() == 2
    assert record(out)["result"]["rank"] in (1, 2) and not (out / "ranking").exists()


def test_sigterm_between_the_stages(whole: Path) -> None:
    killed(whole, "rank", "train", "test", "report")
    shutil.rmtree(whole / "ranking")
    with pytest.raises(InterruptedRun, match=r"^Stopped by SIGTERM in the stage 'rank', all is saved\.$"):
        nasengine.run(out=whole, resume=True, observer=Told("rank"))
    assert record(whole)["status"] == "interrupted"


def test_other_formats_for_the_rest(whole: Path) -> None:
    killed(whole, "report")
    nasengine.run(out=whole, resume=True, settings=["run.export=safetensors"])
    assert (whole / "export" / "network.safetensors").exists()
    assert record(whole)["config"]["run"]["export"] == "safetensors"


def test_what_the_search_refuses_leaves_the_directory_free(tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="must leave an architecture"):
        run(tmp_path / "out", "search.max_params=1")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(LimitError, match="must leave an architecture"):
        run(tmp_path / "out", "search.max_params=2")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("setting", ["collect.count=3", "rank.top=3", "rank.next=3"])
def test_what_a_pipeline_sets_itself(setting: str, tmp_path: Path) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(SettingError, match=rf"^{name} must be left out, since a pipeline goes by how many .* as 3\.$"):
        run(tmp_path / "out", setting)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "setting", "message"),
    [
        ("sklearn:wine", "train.valid_portion=0.001", "Both parts of the training set of wine must have an example"),
        ("sklearn:diabetes", "train.label_smoothing=0.1", r"train\.label_smoothing must be 0 unless the loss is the"),
    ],
)
def test_what_trainings_refuse_is_told_before_the_search(data: str, setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NasengineError, match=message):
        nasengine.run(SPACE, "rarts", data, settings=[*RUN, setting], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objects_are_refused_by_workers_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(NasengineError, match="must find space, data and the like by name"):
        nasengine.run(SPACE, "rarts", float_dataset(), settings=RUN, out=tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
