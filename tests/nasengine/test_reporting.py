"""Reports: what they tell, that they load nothing, and that no name can become a part of the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nasengine
from nasengine import markup
from nasengine.errors import InterruptedRun, RunError
from nasengine.findings import distinct, duration, read_findings, shown
from nasengine.loop import Observer
from nasengine.reporting import report
from tests.nasengine.reports import SEARCH, SPACE, STAGES, Page
from tests.nasengine.runs import record


@pytest.fixture(scope="module")
def page(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report(pipeline, out=tmp_path_factory.mktemp("pages") / "report.html"))


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "copy"))


def data_of(page: Page) -> dict[str, Any]:
    return dict(json.loads(page.scripts[0]))


def test_the_headline_is_the_test_score_of_the_winner(page: Page, pipeline: Path) -> None:
    scores = [record(pipeline / "final" / f"1-seed-{seed}")["result"]["test_accuracy"] for seed in (0, 1)]
    assert f"{scores[0]:.2%} test accuracy on digits" in page.text
    mean = f"mean and deviation of 2 seeds: {sum(scores) / 2:.2%} ±"
    assert "touched once, after the last step (359 examples)" in page.text and mean in page.text
    versions = record(pipeline)["versions"]
    assert f"torch {versions['torch']}" in page.text and "cpu, 1 thread" in page.text
    assert "took 10 s" in page.text and "algorithm darts" in page.text


def test_all_sections_are_there_and_linked(page: Page) -> None:
    names = ["cells", "weights", "curves", "candidates-0", "front-0", "trainings", "exports", "cost", "configuration"]
    assert [link for link in page.links if link != "#main"] == [f"#{name}" for name in names]
    assert set(names) <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    for name, seconds in STAGES.items():
        assert f"{name} {seconds:.1f} {seconds / 10:.0%}" in page.text
    assert "onnx model.onnx 4321 1.5e-06" in page.text
    assert "train.weight_decay 0.0003" in page.text and "algo.alphas.lr 0.05" in page.text


def test_the_cells_are_drawn_inside(page: Page, pipeline: Path) -> None:
    found = record(pipeline / "search")["result"]["genotype"]
    assert page.tags.count("svg") == 2 and found in page.copied
    assert "The winner, trained in final/1-seed-0" in page.text and "Found by search" in page.text
    assert "skip_connect" in page.text or "nor_conv" in page.text


def test_the_data_are_those_of_the_runs(page: Page, pipeline: Path) -> None:
    data = data_of(page)
    search, *trainings = data["curves"]
    history = pd.read_csv(pipeline / "search" / "history.csv")
    assert search["epochs"] == [1, 2] and search["seconds"] == history["seconds"].tolist()
    assert search["series"]["derived_accuracy"] == history["derived_accuracy"].tolist()
    assert [run["run"] for run in trainings] == ["final/1-seed-0", "final/1-seed-1"]
    (weights,) = data["weights"]
    alphas = pd.read_csv(pipeline / "search" / "alphas.csv")
    choice = weights["choices"]["cell/0-1"]
    assert choice["options"] == list(SPACE.choices()["cell/0-1"].options)
    assert choice["weights"][1] == alphas["cell/0-1=skip_connect"].tolist()
    points = data["candidates"][0]["points"]
    table = pd.read_csv(pipeline / "candidates.csv")
    assert [point["predicted"] for point in points] == table["predicted"].tolist()
    assert [point["text"] for point in points] == table["architecture"].tolist()
    assert points[0]["trained"] == 0.31 and points[1]["trained"] is None and points[12]["measured"] is not None
    (front,) = data["fronts"]
    searched = pd.read_csv(pipeline / "ranking" / "front" / "front.csv")
    assert [point["score"] for point in front["points"]] == searched["score"].tolist()
    assert front["costs"] == ["parameters", "multiply_adds"] and front["searched"]
    assert len(front["cloud"]) == len(points)


def test_commands_can_be_given(page: Page, pipeline: Path) -> None:
    points = data_of(page)["candidates"][0]["points"]
    assert points[0]["command"] == f"nasengine export {pipeline / 'final' / '1-seed-0'}"
    text = SPACE.write(SPACE.read(points[1]["text"]))
    assert points[1]["command"] == (
        f"nasengine train --space nasbench201 --genotype '{text}' --set space.channels=2 --set space.cells=1 "
        "--set data.train_size=200 --set train.epochs=2 --set train.device=cpu --data digits"
    )
    assert points[1]["command"] in page.copied


def test_nothing_is_loaded(page: Page) -> None:
    assert page.loaded == [] and all(link.startswith("#") for link in page.links)
    assert not {"link", "iframe", "object", "embed", "base", "img", "form"} & set(page.tags)
    styles = " ".join(page.styles)
    assert "@import" not in styles and not re.search(r"url\((?!['\"]?#)", styles)
    assert "default-src 'none'" in page.policy and "http" not in page.policy
    own = [script for script in page.source.split("<script>")[1:]]
    assert len(own) == 2 and page.tags.count("script") == 3
    for script in own:
        digest = hashlib.sha256(script.partition("</script>")[0].encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in page.policy
    assert len(page.source) < 6_000_000


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", '"><script>alert(1)<', "</script><b>x", "[[data]]"])
def test_names_are_no_part_of_the_page(page: Page, copied: Path, name: str) -> None:
    """In the name of a run, a configuration, tables, an export."""
    table = pd.read_csv(copied / "candidates.csv")
    table["source"], table.loc[0, "architecture"] = name, name
    table.to_csv(copied / "candidates.csv", index=False)
    whole = record(copied)
    whole["config"]["data"]["name"], whole["config"]["data"][name], whole["device"] = name, name, name
    whole["result"]["stages"] = {name: 1.0}
    (copied / "run.json").write_text(json.dumps(whole))
    (copied / "export" / "export.json").write_text(json.dumps({"files": {name: {name: name}}, name: name}))
    history = (copied / "search" / "history.csv").read_text()
    (copied / "search" / "history.csv").write_text(history.replace("gap", f'"{name.replace(chr(34), chr(34) * 2)}"', 1))
    folder = copied.rename(copied.parent / name.replace("/", "∕"))
    made = Page(report([folder, folder / "search"], out=copied.parent / "page.html"))
    assert set(made.tags) <= {*page.tags, "select"}
    assert made.loaded == [] and made.tags.count("script") == 3
    assert name.replace("/", "∕") in made.text and name in made.text


@pytest.mark.parametrize("part", ["search", "ranking", "scores", "ranking/front", "final/1-seed-0"])
def test_any_run(pipeline: Path, tmp_path: Path, part: str) -> None:
    made = Page(report(pipeline / part, out=tmp_path / "report.html"))
    said: dict[str, Callable[[dict[str, Any]], str]] = {
        "search": lambda r: f"{r['derived_accuracy']:.2%} validation accuracy on digits On the validation data, which",
        "ranking": lambda r: f"{r['best']:.4g} best guess of 45 candidates Guessed by a predictor, not measured.",
        "scores": lambda r: f"{r['best_score']:.4g} best of 4 labels On the validation data of the labels",
        "ranking/front": lambda r: f"{r['points']} architectures on the front, of {r['evaluated']}",
        "final/1-seed-0": lambda r: f"{r['test_accuracy']:.2%} test accuracy on digits On the test set, which",
    }
    assert said[part](record(pipeline / part)["result"]) in made.text
    data = data_of(made)
    assert bool(data["weights"]) == (part == "search") and bool(data["labels"]) == (part == "scores")
    assert bool(data["fronts"]) == part.startswith("ranking")
    if part == "ranking":
        (known,) = data["candidates"]
        assert sum(point["measured"] is not None for point in known["points"]) >= 5 and known["learning"]


def test_the_front_of_candidates_where_none_was_searched(copied: Path) -> None:
    shutil.rmtree(copied / "ranking" / "front")
    (front,) = data_of(Page(report(copied)))["fronts"]
    table = pd.read_csv(copied / "candidates.csv")
    texts = {point["text"] for point in front["points"]}
    for name, edge in front["edges"].items():
        expected = {
            row["architecture"]
            for _, row in table.iterrows()
            if not (
                (table["predicted"] >= row["predicted"])
                & (table[name] <= row[name])
                & ((table["predicted"] > row["predicted"]) | (table[name] < row[name]))
            ).any()
        }
        assert {front["points"][place]["text"] for place in edge} == expected <= texts
    assert not front["searched"] and len(front["points"]) + len(front["cloud"]) == len(table)


def test_a_front_beside_the_candidates(copied: Path) -> None:
    table = pd.read_csv(copied / "candidates.csv").sort_values("parameters").iloc[:3]
    table.to_csv(copied / "front.csv", index=False)
    made = Page(report(copied))
    (front,) = data_of(made)["fronts"]
    assert [point["score"] for point in front["points"]] == table["predicted"].tolist() and not front["searched"]
    assert "the front is that of the candidates." in made.text


def test_latencies_and_bytes_are_told_with_units_and_the_machine(pipeline: Path, tmp_path: Path) -> None:
    whole = record(pipeline / "ranking" / "front")
    machine = {"device": "cpu Zed", "runtime": "onnxruntime", "threads": 2, "batch_size": 8}
    whole["result"] |= {"latency_by": "table", "latency_table_error": 0.034, "latency_on": machine}
    whole["config"]["final"] = {**whole["config"]["space"], "channels": 4}
    (tmp_path / "run.json").write_text(json.dumps(whole))
    table = pd.read_csv(pipeline / "ranking" / "front" / "front.csv").head(1)
    table.assign(latency=0.00123, memory=2_340_000).to_csv(tmp_path / "front.csv", index=False)
    page = Page(report(tmp_path))
    assert "latency on cpu Zed, onnxruntime, threads 2, batch size 8" in page.text
    assert "latency by the table of operations, which is off by 3.4%" in page.text
    assert "latency (ms) memory (MB)" in page.text and "1.23 2.34" in page.text
    assert "--set space.channels=4" in page.copied[0]


def test_an_interrupted_search(tmp_path: Path) -> None:
    class Stopping(Observer):
        def saved(self, step: int) -> None:
            raise InterruptedRun("enough")

    with pytest.raises(InterruptedRun):
        nasengine.search("nasbench201", "darts", "digits", settings=SEARCH, out=tmp_path / "run", observer=Stopping())
    made = Page(report(tmp_path / "run"))
    assert "Search is running, or was killed after epoch 1 of 2: this report shows what there is." in made.text
    assert "So far in run" in made.text and data_of(made)["curves"][0]["epochs"] == [1]
    (tmp_path / "run" / "history.csv").unlink()
    (tmp_path / "run" / "alphas.csv").unlink()
    assert data_of(Page(report(tmp_path / "run")))["curves"] == []


def test_a_pipeline_that_has_just_begun(copied: Path) -> None:
    whole = record(copied)
    whole["status"] = "interrupted"
    del whole["result"]
    (copied / "run.json").write_text(json.dumps(whole))
    for name in ("candidates.csv", "ranking", "final", "export", "scores"):
        shutil.rmtree(copied / name, ignore_errors=True)
    (copied / "candidates.csv").unlink()
    made = Page(report(copied))
    assert "Pipeline was interrupted: this report shows what there is." in made.text and "Found by search" in made.text


def test_several_searches_are_overlaid(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(shutil.copytree(pipeline / "search", tmp_path / "seed-1"))
    monkeypatch.chdir(tmp_path)
    made = report([pipeline / "search", other])
    assert made == Path("report.html")
    page = Page(made)
    assert "2 searches compared" in page.text and "search: nasbench201, darts" in page.text
    assert [curve["run"] for curve in data_of(page)["curves"]] == ["search", "seed-1"]
    assert page.text.count(f"{record(other)['result']['derived_accuracy']:.2%}") >= 2


def test_a_space_that_is_not_here_is_told_as_text(copied: Path) -> None:
    for file in copied.rglob("run.json"):
        file.write_text(file.read_text().replace('"nasbench201"', '"gone.py:Gone"'))
    made = Page(report(copied))
    assert made.tags.count("svg") == 0 and "gone.py:Gone" in made.text
    assert data_of(made)["candidates"][0]["points"][1]["text"].startswith("|")


def test_wrong_inputs(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be of one run directory or more, but none is given; name one"):
        report([])
    with pytest.raises(RunError, match=r"A run must be a directory that nasengine wrote, but .* is missing"):
        report(tmp_path / "none")
    with pytest.raises(RunError, match=r"must be a file, but .* is a directory; name a file by --out"):
        report(copied, out=tmp_path)
    (copied / "ranking" / "ranking.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"ranking.parquet must be a readable parquet file of a ranking, but is damaged"):
        report(copied)
    (copied / "ranking" / "ranking.parquet").unlink()
    (copied / "export" / "export.json").write_text("[")
    with pytest.raises(RunError, match=r"export.json must be the JSON of an export, but is damaged; export again"):
        report(copied)
    (copied / "candidates.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"candidates.csv must be a readable CSV file of a run, but is damaged; move"):
        report(copied)


def test_names_tell_runs_apart() -> None:
    assert distinct([Path("/a/b/seed-0"), Path("/a/b/seed-1")]) == ["seed-0", "seed-1"]
    assert distinct([Path("/a/darts/seed-0"), Path("/a/rarts/seed-0")]) == ["darts/seed-0", "rarts/seed-0"]


def test_numbers_in_words() -> None:
    assert [duration(s) for s in (0.25, 42, 61, 7260)] == ["0.2 s", "42 s", "1 min 01 s", "2 h 01 min"]
    assert shown("accuracy", 0.98765) == "98.77%" and shown("negative_error", -0.123456) == "-0.1235"
    assert shown("accuracy", None) == ""


def test_markup_is_escaped_unless_it_is_markup() -> None:
    assert markup.element("b", "<i>", {"title": 'a"b'}) == '<b title="a&quot;b">&lt;i&gt;</b>'
    assert markup.element("b", markup.element("i", "&")) == "<b><i>&amp;</i></b>"
    assert markup.json_text({"a": "</script>&\u2028"}) == '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        markup.json_text(float("nan"))


def test_read_findings_of_a_pipeline(pipeline: Path) -> None:
    (found,) = read_findings([pipeline])
    names = ["pipeline", "search", "scores", "ranking", "ranking/front", "final/1-seed-0", "final/1-seed-1"]
    assert [run.name for run in found.all()] == names
