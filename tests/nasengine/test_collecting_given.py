"""Labels of architectures that are given, by shared weights, and by several workers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nasengine
from nasengine.collecting import collect
from nasengine.errors import InterruptedRun, NasengineError, RunError, SettingError
from nasengine.labelling import CollectJob
from nasengine.loop import Observer
from nasengine.searching import open_search
from nasengine.workers import Work
from tests.nasengine.runs import flags, record
from tests.nasengine.tasks import float_dataset
from tests.nasengine.test_collecting import COLLECT, rows


@pytest.fixture(scope="module")
def drawn(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of four random architectures, made in this process."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    collect("nasbench101", small, count=4, settings=COLLECT, out=out)
    return out


@pytest.fixture
def table(drawn: Path) -> pd.DataFrame:
    return pd.read_csv(drawn / "labels.csv", dtype=str)[["hash", "matrix", "operations"]]


def test_given_ones_have_the_labels_of_drawn_ones(drawn: Path, table: pd.DataFrame, small: str, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "next.csv", index=False)
    for number, given in enumerate((table, tmp_path / "next.csv", str(tmp_path / "next.csv"))):
        result = collect("nasbench101", small, architectures=given, settings=COLLECT, out=tmp_path / str(number))
        assert rows(tmp_path / str(number)) == rows(drawn) and result.record["config"]["collect"]["count"] == 4


def test_given_ones_are_gone_on_with(drawn: Path, table: pd.DataFrame, small: str, tmp_path: Path) -> None:
    class Stop(Observer):
        def epoch_ended(self, epoch: int, row: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedRun)):
        collect("nasbench101", small, architectures=table, settings=COLLECT, out=tmp_path / "out", observer=Stop())
    assert len(rows(tmp_path / "out")) == 1
    collect(out=tmp_path / "out", resume=True)
    assert rows(tmp_path / "out") == rows(drawn)
    other = table.iloc[::-1]
    with pytest.raises(RunError, match=r"A run must go on with its own data, but .* their architectures is"):
        collect("nasbench101", small, architectures=other, settings=COLLECT, out=_unfinished(tmp_path), resume=True)


def _unfinished(root: Path) -> Path:
    record_file = root / "out" / "run.json"
    record_file.write_text(record_file.read_text().replace('"finished"', '"interrupted"'))
    return root / "out"


def test_several_workers_make_the_same_labels(drawn: Path, small: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    watch = lambda work, event, done, total: told.append((event, done, total))  # noqa: E731
    result = collect("nasbench101", small, count=3, settings=COLLECT, out=tmp_path / "out", workers=2, watch=watch)
    assert rows(tmp_path / "out") == rows(drawn)[:3] and ("finished", 3, 3) in told
    assert result.record["result"]["labels"] == 3 and not (tmp_path / "out" / "parts").exists()
    more = collect(count=4, out=tmp_path / "out", resume=True)
    assert rows(tmp_path / "out") == rows(drawn) and more.record["result"]["labels"] == 4
    assert {n: v for n, v in more.record["result"].items() if "seconds" not in n} == {
        n: v for n, v in record(drawn)["result"].items() if "seconds" not in n
    }


def test_labels_go_to_workers_with_their_device(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Work] = []

    def stopped(works: list[Work], *more: object) -> None:
        sent.extend(works)
        raise InterruptedRun("Stopped.")

    monkeypatch.setattr("nasengine.collecting.perform", stopped)
    with pytest.raises(InterruptedRun):
        settings = (*COLLECT, "collect.device=auto")
        collect("nasbench101", small, count=2, settings=settings, out=tmp_path / "out", workers=2)
    assert [(work.directory.name, work.device) for work in sent] == [("00000", "auto"), ("00001", "auto")]
    assert record(tmp_path / "out")["status"] == "interrupted"


def test_labels_that_are_there_are_not_made_again(drawn: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(drawn, tmp_path / "out"))
    before = (out / "labels.csv").read_text()
    collect(count=5, out=out, resume=True, workers=2)
    after = (out / "labels.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 6


def _stopped_after(drawn: Path, out: Path, labels: list[int], parts: list[int]) -> Path:
    """A collection whose process was killed: workers had finished some labels, and of these some are in the file."""
    shutil.copytree(drawn, out)
    (out / "checkpoint.pt").unlink()
    (out / "run.json").write_text((out / "run.json").read_text().replace('"finished"', '"running"'))
    head, *lines = (out / "labels.csv").read_text().splitlines(keepends=True)
    (out / "labels.csv").write_text(head + "".join(lines[number] for number in labels))
    for number in parts:
        (out / "parts" / f"{number:05d}").mkdir(parents=True)
        (out / "parts" / f"{number:05d}" / "labels.csv").write_text(head + lines[number])
    return out


def test_labels_of_workers_are_never_lost_by_one_process(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Observer):
        def epoch_ended(self, epoch: int, row: object) -> None:
            raise KeyboardInterrupt

    out = _stopped_after(drawn, tmp_path / "out", labels=[3], parts=[2])
    with pytest.raises(KeyboardInterrupt):
        collect(out=out, resume=True, observer=Stop())
    assert rows(out) == [rows(drawn)[number] for number in (0, 2, 3)]
    made: list[int] = []
    begin = CollectJob.begin
    monkeypatch.setattr(CollectJob, "begin", lambda job, *numbers: made.append(numbers[0]) or begin(job, *numbers))
    collect(out=out, resume=True)
    assert rows(out) == rows(drawn) and set(made) <= {0, 1} and not (out / "parts").exists()


def test_a_given_collection_goes_on_to_more(drawn: Path, table: pd.DataFrame, small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect("nasbench101", small, architectures=table, count=2, settings=COLLECT, out=out)
    collect(out=out, resume=True, settings=["collect.count=3"])
    assert rows(out) == rows(drawn)[:3]
    collect(out=out, resume=True, count=4)
    assert rows(out) == rows(drawn)


def test_one_that_is_given_twice(table: pd.DataFrame, small: str, tmp_path: Path) -> None:
    twice = table.iloc[[0, 1, 0]]
    with pytest.raises(NasengineError, match=r"^Architectures to label must differ, but those of rows 1 and 3 are the"):
        collect("nasbench101", small, architectures=twice, settings=COLLECT, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objects_need_one_worker(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="must find space, data and the like by name"):
        collect(
            "tests/nasengine/dense.py:Dense",
            float_dataset(),
            count=2,
            settings=["collect.batch_size=8"],
            out=tmp_path / "out",
            workers=2,
        )


def test_shared_weights(ended: Path, tmp_path: Path) -> None:
    proposed = nasengine.propose(ended, count=5)
    keys = proposed.candidates[["architecture"]]
    result = collect(architectures=keys, inherit=ended, out=tmp_path / "out")
    search = open_search(ended)
    supernet = search.algorithm.supernet(search.state)
    found = pd.read_csv(result.labels)
    for text, score in zip(found["architecture"], found["score"], strict=True):
        assert score == search.judge.subnet(supernet, search.space.read(text))
    assert found["architecture"].tolist() == keys["architecture"].tolist() and (found["epochs"] == 0).all()
    assert result.record["result"]["diverged"] == 0
    random = collect(inherit=ended, count=3, out=tmp_path / "random")
    assert len(pd.read_csv(random.labels)) == 3
    again = collect(count=4, out=tmp_path / "random", resume=True)
    assert len(pd.read_csv(again.labels)) == 4


def test_what_is_refused(ended: Path, table: pd.DataFrame, small: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"inherit": ended}
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("must be of its space and its data, but --space is given", "darts", None, given),
        ("must be of its space and its data, but --data is given", None, small, given),
        ("must not be trained, but collect.epochs is given", None, None, {**given, "settings": ["collect.epochs=3"]}),
        (r"but --set space\.\.\. is given", None, None, {**given, "settings": ["space.channels=3"]}),
        ("number of architectures that are given, 4, but is 5", "nasbench101", small, {"count": 5}),
        ("but is of one of 'nasengine train'", None, None, {"inherit": ended / "final"}),
        ("Workers must be a number", "nasbench101", small, {"workers": "many"}),
    ]
    for message, space, data, more in cases:
        architectures = None if "inherit" in more else table
        with pytest.raises(NasengineError, match=message):
            collect(space, data, architectures=architectures, out=tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()


def test_on_the_command_line(
    drawn: Path, table: pd.DataFrame, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nasengine._cli.main import main

    table.to_csv(tmp_path / "next.csv", index=False)
    arguments = ["collect", "--space", "nasbench101", "--data", small, "--out", str(tmp_path / "out"), *flags(COLLECT)]
    assert main([*arguments, "--architectures", str(tmp_path / "next.csv")]) == 0
    said = capsys.readouterr().out
    assert "label 4/4" in said and "4 labels, validation scores" in said and rows(tmp_path / "out") == rows(drawn)
    assert main([*arguments, "--architectures", str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err
