"""Rankings: what is written, what is held apart, and that nothing half is left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import nasengine
from nasengine.architecture import Architecture
from nasengine.config import read_config
from nasengine.errors import DataError, NasengineError, RunError, SettingError, TooManyError, UnknownNameError
from nasengine.predictor import PREDICTORS, load_predictor
from nasengine.ranking import rank
from nasengine.task import Shapes
from search_spaces.nasbench101 import NASBench101
from tests.nasengine.rankings import SHAPES, Five, ranked, table, truth
from tests.nasengine.runs import contents, record

SPACE = Five()
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "nasbench101" / "labels.parquet"


def test_what_is_written(tmp_path: Path) -> None:
    labels = table(40)
    found = rank(SPACE, labels, task=SHAPES, settings=["rank.next=7", "rank.draws=2"], out=tmp_path / "out")
    names = {"ranking.csv", "ranking.parquet", "next.csv", "curve.csv", "predictor.safetensors", "run.json"}
    assert set(contents(tmp_path / "out")) == names | {"ranking.svg", "ranking.png"}
    whole = pd.read_parquet(tmp_path / "out" / "ranking.parquet")
    assert list(whole) == ["rank", "score", "uncertainty", "architecture", "known"]
    assert whole["rank"].tolist() == list(range(1, 244)) and whole["score"].is_monotonic_decreasing
    assert whole["architecture"].nunique() == 243 and (whole["uncertainty"] > 0).all()
    top = pd.read_csv(tmp_path / "out" / "ranking.csv")
    pd.testing.assert_frame_equal(top, whole.head(20), check_dtype=False)
    pd.testing.assert_frame_equal(found.top, whole.head(20))
    assert found.texts == tuple(whole["architecture"][:20])
    result = record(tmp_path / "out")["result"]
    assert (result["labels"], result["candidates"], result["draws"], result["k"]) == (40, 243, 2, 1)
    assert result["best"] == whole["score"][0] and record(tmp_path / "out")["status"] == "finished"
    assert found.evaluation is not None and result["advice"] == found.evaluation.advice()
    for name, (mean, deviation) in found.evaluation.summary().items():
        assert result["measures"][name] == {"mean": mean, "deviation": deviation}
    assert record(tmp_path / "out")["facts"]["score"] == "score"


def test_the_ranking_is_what_the_saved_predictor_guesses(tmp_path: Path) -> None:
    ranked(table(40), tmp_path / "out")
    whole = pd.read_parquet(tmp_path / "out" / "ranking.parquet")
    predictor = load_predictor(tmp_path / "out" / "predictor.safetensors")
    scores, deviations = predictor.predict(SPACE.from_table(whole), return_std=True)
    np.testing.assert_allclose(whole["score"], scores, rtol=1e-9)
    np.testing.assert_allclose(whole["uncertainty"], deviations, rtol=1e-6)
    true = [truth(architecture) for architecture in SPACE.from_table(whole)]
    assert stats.kendalltau(true, scores).statistic > 0.8


def test_true_scores_stand_where_they_are_known(tmp_path: Path) -> None:
    labels = table(40)
    ranked(labels, tmp_path / "out", "rank.top=all")
    whole = pd.read_csv(tmp_path / "out" / "ranking.csv")
    assert len(whole) == 243 and whole["known"].notna().sum() == 40
    there = whole.dropna().set_index("architecture")["known"].to_dict()
    assert there == pytest.approx(dict(zip(labels["architecture"], labels["score"], strict=True)))


def test_proposals_have_no_label_and_differ(tmp_path: Path) -> None:
    labels = table(40)
    found = ranked(labels, tmp_path / "out", "rank.next=203")
    assert found.proposals is not None and len(found.proposals) == 203
    proposed = SPACE.from_table(pd.read_csv(tmp_path / "out" / "next.csv"))
    assert len(set(proposed)) == 203 and not set(proposed) & set(SPACE.from_table(labels))
    few = ranked(labels, tmp_path / "few", "rank.next=10").proposals
    assert few is not None and few["rank"].is_monotonic_increasing and few["rank"].median() < 80
    again = ranked(labels, tmp_path / "again", "rank.next=10").proposals
    other = ranked(labels, tmp_path / "other", "rank.next=10", "rank.seed=1").proposals
    assert few.equals(again) and not few.equals(other)
    with pytest.raises(SettingError, match=r"rank.next must be at most the number of candidates without a label, 203,"):
        ranked(labels, tmp_path / "more", "rank.next=204")
    assert not (tmp_path / "more").exists()


def test_one_seed_one_ranking(tmp_path: Path) -> None:
    settings = ["rank.next=5", "rank.draws=2", "rank.unlabelled=50"]
    for name in ("one", "other"):
        rank(SPACE, table(40), task=SHAPES, settings=settings, out=tmp_path / name)
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    own = {"run.json", "predictor.safetensors"}  # clocks; safetensors writes its metadata in any order
    assert {name: one[name] for name in one if name not in own} == {n: other[n] for n in other if n not in own}


def test_candidates_of_a_file(tmp_path: Path) -> None:
    every = list(SPACE.everything(SHAPES))
    texts = [str(every[place]) for place in (3, 200, 3, 77, 242)]
    pd.DataFrame({"architecture": texts, "rank": 9, "note": "x"}).to_csv(tmp_path / "some.csv", index=False)
    found = ranked(table(40), tmp_path / "out", "rank.next=1", candidates=tmp_path / "some.csv")
    assert sorted(found.top["architecture"]) == sorted(texts) and list(found.top["rank"]) == [1, 2, 3, 4, 5]
    assert record(tmp_path / "out")["facts"]["candidates"]["path"] == str(tmp_path / "some.csv")
    (tmp_path / "none.csv").write_text("architecture\n")
    with pytest.raises(DataError, match=r"A file of candidates must have one row an architecture, but .*none.csv has"):
        ranked(table(40), tmp_path / "none", candidates=tmp_path / "none.csv")
    (tmp_path / "foreign.csv").write_text("architecture\nkernel=3\n")
    with pytest.raises(
        DataError, match=r"Row 1 of .*foreign.csv must be of space 'five': The architecture must decide"
    ):
        ranked(table(40), tmp_path / "none", candidates=tmp_path / "foreign.csv")
    assert not (tmp_path / "none").exists()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many(Five):
    """Too many to be enumerated."""

    def everything(self, shapes: Shapes, progress: object = None) -> list[Architecture]:
        raise TooManyError("too many")


def test_random_candidates_of_a_large_space(tmp_path: Path) -> None:
    stages: list[str] = []
    found = rank(
        Many(),
        table(40),
        task=SHAPES,
        settings=["rank.sample=100", "rank.evaluate=false", "rank.top=all"],
        out=tmp_path / "out",
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert 50 < len(found.top) <= 100 and found.top["architecture"].nunique() == len(found.top)
    assert list(dict.fromkeys(stages)) == ["reading", "enumerating", "encoding", "fitting", "ranking", "writing"]


def test_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, sizes = PREDICTORS["ridge"], list[tuple[int, int]]()
    fit = kind._fit

    def watched(self: object, graphs: object, targets: object, pool: object) -> None:
        sizes.append((len(graphs), len(pool)))  # type: ignore[arg-type]
        fit(self, graphs, targets, pool)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "_fit", watched)
    for count, size in ((0, 40), (50, 90), (10_000, 243)):
        ranked(table(40), tmp_path / str(count), f"rank.unlabelled={count}", predictor="ridge")
        assert sizes.pop() == (40, size)
    assert not sizes
    rank(SPACE, table(40), predictor="ridge", task=SHAPES, settings=["rank.unlabelled=50"], out=tmp_path / "judged")
    assert len(sizes) == 1 + 5 + 15 and sizes[1] == (32, 82) and min(sizes)[0] == 8


@pytest.mark.parametrize("count", [2, 3, 19])
def test_few_labels_are_not_judged(count: int, tmp_path: Path) -> None:
    found = rank(SPACE, table(count), task=SHAPES, out=tmp_path / "out")
    assert found.evaluation is None and "measures" not in found.record["result"]
    assert not (tmp_path / "out" / "curve.csv").exists() and len(found.top) == 20


def test_labels_of_a_collection_know_their_space(small: str, tmp_path: Path) -> None:
    quick = ("collect.epochs=1", "collect.batch_size=16", "space.channels=4", "space.stacks=1", "space.cells=1")
    nasengine.collect("nasbench101", small, count=3, settings=(*quick, "collect.device=cpu"), out=tmp_path / "labels")
    labels = pd.read_csv(tmp_path / "labels" / "labels.csv", dtype=str)
    labels["score"] = ["0.1", "0.3", "0.2"]  # trainings as short as these may end in equal ones
    labels.to_csv(tmp_path / "labels" / "labels.csv", index=False)
    found = rank(labels=tmp_path / "labels", candidates=labels.drop(columns="score"), out=tmp_path / "out")
    assert found.record["config"]["space"] == {"name": "nasbench101", "channels": 4, "stacks": 1, "cells": 1}
    assert found.record["config"]["shapes"]["input"] == (1, 8, 8) and found.record["config"]["data"]["name"] == small
    assert sorted(found.top["known"]) == [0.1, 0.2, 0.3]
    other = rank(
        "nasbench101", tmp_path / "labels", candidates=labels, task=Shapes((3, 8, 8), 10), out=tmp_path / "other"
    )
    assert other.record["config"]["shapes"]["input"] == (3, 8, 8) and other.top["parameters"].min() > 0


def test_isomorphic_cells_are_one(tmp_path: Path) -> None:
    space, shapes = NASBench101(), Shapes((3, 8, 8), 10)
    cells = ["110-01-1 conv3x3-bn-relu,maxpool3x3", "110-01-1 maxpool3x3,conv3x3-bn-relu", "10-1 maxpool3x3", "1"]
    labels = pd.DataFrame({"architecture": cells[::2], "score": [0.1, 0.2]})
    candidates = pd.DataFrame({"architecture": cells[1:]})
    found = rank(space, labels, candidates=candidates, task=shapes, settings=["rank.next=1"], out=tmp_path / "out")
    assert sorted(found.top["known"].dropna()) == [0.1, 0.2] and found.proposals is not None
    assert [space.write(cell) for cell in space.from_table(found.proposals)] == ["1"]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            pd.concat([table(5), table(5).assign(score=9.0)[3:4]]),
            r"An architecture must have one score, but those of rows 4 and 6 are the same and have [\d.]+ and 9; give "
            "their mean.",
        ),
        (
            table(5).assign(score=0.5),
            "Scores must differ for a predictor to be fitted, but they are 0.5 all 5 times; label more architectures.",
        ),
        (table(5).assign(score=[1.0, 2.0, 3.0, 4.0, -1e200]), "Scores must be .*1e.?200.*"),
    ],
)
def test_labels_that_cannot_be_fitted(labels: pd.DataFrame, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{told}$"):
        ranked(labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_network_labelled_apart_has_the_mean(tmp_path: Path) -> None:
    cells = ["110-01-1 conv3x3-bn-relu,maxpool3x3", "10-1 maxpool3x3", "110-01-1 maxpool3x3,conv3x3-bn-relu", "1"]
    labels = pd.DataFrame({"architecture": cells, "score": [0.5, 0.1, 0.7, 0.3]})
    shapes = Shapes((3, 8, 8), 10)
    found = rank("nasbench101", labels, candidates=labels, task=shapes, out=tmp_path / "out")
    assert (found.record["result"]["labels"], found.record["result"]["networks"]) == (4, 3)
    assert sorted(found.top["known"]) == pytest.approx([0.1, 0.3, 0.6, 0.6])
    assert found.top["score"].nunique() == 3
    with pytest.raises(DataError, match=r"Scores of different networks must differ .* the table of labels are all 0.6"):
        rank("nasbench101", labels[::2], candidates=labels, task=shapes, out=tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_labels_twice_with_one_score_count_once(tmp_path: Path) -> None:
    labels = table(12)
    labels["score"] *= 0.1  # numbers of which a third of three is another one
    found = ranked(pd.concat([labels] * 3), tmp_path / "out", "rank.top=all")
    assert (found.record["result"]["labels"], found.record["result"]["networks"]) == (36, 12)
    once = ranked(labels, tmp_path / "once", "rank.top=all")
    pd.testing.assert_frame_equal(found.top, once.top, check_exact=True)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown predictor 'gausian-process': did you mean 'gaussian-process'"):
        ranked(table(5), tmp_path / "out", predictor="gausian-process")
    with pytest.raises(SettingError, match="must be"):
        ranked(table(5), tmp_path / "out", predictor=Five)
    with pytest.raises(SettingError, match="A ranking must have labels to fit to, but none are given"):
        rank(SPACE)
    with pytest.raises(SettingError, match="The space of the labels must be known, but the table of labels does not"):
        rank(labels=table(5))
    for text, told in {
        "rank.top=0": "rank.top must be at least 1, but got 0",
        "rank.top=some": "rank.top must be a whole number or all, but got 'some'",
        "rank.next=-1": "rank.next must be at least 0, but got -1",
        "rank.draws=0": "rank.draws must be at least 1",
        "predictor.prior=0": "predictor.prior must be more than 0",
        "predictor.priors=1": "did you mean 'predictor.prior'",
        "space.width=0": "space.width must be at least 1",
    }.items():
        with pytest.raises(NasengineError, match=told):
            ranked(table(5), tmp_path / "out", text)
    assert not (tmp_path / "out").exists()


def test_a_configuration_is_taken_again(tmp_path: Path) -> None:
    first = ranked(table(40), tmp_path / "one", "predictor.prior=2", "rank.seed=3", "rank.top=5", "space.width=4")
    config = read_config(tmp_path / "one", "rank")
    again = rank(labels=table(40), config=config, out=tmp_path / "two")
    assert again.record["config"] == first.record["config"] and again.top.equals(first.top)
    assert config["predictor"]["prior"] == 2.0 and config["space"]["width"] == 4 and len(first.top) == 5
    other = rank(labels=table(40), config=config, predictor="ridge", out=tmp_path / "three")
    assert other.record["config"]["predictor"] == {"name": "ridge"}


def test_a_configuration_knows_its_files_and_its_column(tmp_path: Path) -> None:
    labels, some = tmp_path / "labels.csv", tmp_path / "some.csv"
    table(40).rename(columns={"score": "right"}).assign(wrong=1.5).to_csv(labels, index=False)
    table(60)[["architecture"]].to_csv(some, index=False)
    first = rank(SPACE, labels, score="right", candidates=some, task=SHAPES, out=tmp_path / "one")
    again = rank(config=read_config(tmp_path / "one", "rank"), out=tmp_path / "two")
    assert again.top.equals(first.top) and again.record["result"]["candidates"] == 60
    assert again.record["config"] == first.record["config"]


def test_a_predictor_in_any_form(tmp_path: Path) -> None:
    kind = PREDICTORS["gaussian-process"]
    for number, form in enumerate((kind, kind(space=SPACE, prior=2.0), "gaussian-process")):  # type: ignore[call-arg]
        found = ranked(table(10), tmp_path / str(number), "predictor.seed=4", predictor=form)
        config = found.record["config"]["predictor"]
        assert config["name"] == "gaussian-process" and config["seed"] == 4
        assert config["prior"] == (2.0 if number == 1 else 3.0)


# The directory


def test_a_ranking_is_not_written_over(tmp_path: Path) -> None:
    ranked(table(10), tmp_path / "out")
    before = contents(tmp_path / "out")
    told = "must be new or empty, but holds a run that is finished; give another --out"
    with pytest.raises(RunError, match=told):
        ranked(table(20), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match="holds other files; give another --out"):
        ranked(table(20), tmp_path / "mine")
    assert contents(tmp_path / "out") == before and list(contents(tmp_path / "mine")) == ["thesis.txt"]


@pytest.mark.parametrize("stage", ["fitting", "evaluating", "ranking", "writing"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_interrupted_it_leaves_nothing(stage: str, at: int, tmp_path: Path) -> None:
    def stop(now: str, done: int, total: int) -> None:
        if now == stage and (done >= at or done == total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank(SPACE, table(20), task=SHAPES, settings=["rank.next=3"], out=tmp_path / "out", progress=stop)
    assert contents(tmp_path / "out") == {}
    ranked(table(10), tmp_path / "out")


def test_killed_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasengine.run_directory.Run.discard", lambda *anything, **more: None)
    with pytest.raises(MemoryError):
        ranked(table(20), tmp_path / "out", "rank.next=3", progress=_exhausted)
    monkeypatch.undo()
    assert record(tmp_path / "out")["status"] == "running" and "next.csv" in contents(tmp_path / "out")
    with pytest.raises(RunError, match="holds a run that is not finished; give another --out"):
        nasengine.collect("nasbench101", out=tmp_path / "out")
    ranked(table(10), tmp_path / "out")
    assert record(tmp_path / "out")["status"] == "finished" and "next.csv" not in contents(tmp_path / "out")
    with pytest.raises(RunError, match=r"the one in .* is of 'nasengine rank', which finds no architecture; open its"):
        nasengine.show(tmp_path / "out")


def _exhausted(stage: str, done: int, total: int) -> None:
    if (stage, done) == ("writing", 3):
        raise MemoryError


# Real labels


@pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA.name} of NAS-Bench-101 beside the repository")
def test_real_cells_are_ranked(tmp_path: Path) -> None:
    every = pd.read_parquet(DATA).sample(2300, random_state=0)
    found = rank(
        "nasbench101",
        every[:300],
        score="validation_accuracy",
        candidates=every[300:],
        settings=["rank.evaluate=false", "rank.top=all"],
        out=tmp_path / "out",
    )
    true = dict(zip(every["hash"], every["validation_accuracy"], strict=True))
    known = found.top["hash"].map(true)
    assert stats.kendalltau(found.top["score"], known).statistic > 0.7 and found.top["known"].isna().all()
