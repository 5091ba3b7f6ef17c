"""What the tests of reports share: the directory of a pipeline, put together from small real runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

import nasengine
from nasengine.architecture import Architecture
from nasengine.pricing import Prices
from nasengine.ranking import PREDICTOR
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces.nasbench201 import NASBench201
from tests.nasengine.runs import record

SPACE, SHAPES = NASBench201(channels=2, cells=1), Shapes((1, 8, 8), 10)
SETTINGS = ("space.channels=2", "space.cells=1", "data.train_size=200")
SEARCH = (*SETTINGS, "search.epochs=2", "search.device=cpu", "search.eval_size=50", "algo.alphas.lr=0.05")
TRAIN = (*SETTINGS, "train.epochs=2", "train.device=cpu")
STAGES = {"search": 4.0, "collect": 3.0, "rank": 2.0, "train": 1.0}


def make_pipeline(path: Path) -> Path:
    """Everything that a report has a section for."""
    nasengine.search("nasbench201", "darts", "digits", settings=SEARCH, out=path / "search")
    settings = (*SETTINGS, "collect.count=4", "collect.epochs=1", "collect.device=cpu")
    nasengine.collect("nasbench201", "digits", settings=settings, out=path / "scores")
    known, others = _drawn(30, 0), _drawn(40, 1)
    labels = pd.DataFrame({"architecture": map(SPACE.write, known), "score": map(_truth, known)})
    candidates = pd.DataFrame({"architecture": map(SPACE.write, [*known[:5], *others])})
    given = ("rank.draws=1", "rank.top=12")
    out = path / "ranking"
    ranked = nasengine.rank(
        SPACE, labels, predictor="ridge", candidates=candidates, task=SHAPES, settings=given, out=out
    )
    small = ("front.population=8", "front.generations=3", "front.against=parameters,multiply_adds")
    nasengine.front(path, settings=small)
    best = list(SPACE.from_table(ranked.top))
    for seed in (0, 1):
        settings = (*TRAIN, f"train.seed={seed}")
        final = path / "final" / f"1-seed-{seed}"
        nasengine.train(architecture=best[0], space=SPACE, task="digits", settings=settings, out=final)
    _write_candidates(path, [*best, *known], ranked.path / PREDICTOR)
    _write_record(path, best[0])
    (path / "export").mkdir()
    files = {"onnx": {"file": "model.onnx", "bytes": 4321, "difference": 1.5e-6}}
    (path / "export" / "export.json").write_text(json.dumps({"files": files, "input_shape": [1, 8, 8]}))
    return path


def _drawn(count: int, seed: int) -> list[Architecture]:
    rng, choices = generator(seed, 5), SPACE.choices()
    return list(dict.fromkeys(SPACE.sample(choices, rng) for _ in range(count)))


def _truth(architecture: Architecture) -> float:
    """Better with convolutions."""
    return 0.5 + sum({"nor_conv_3x3": 0.05, "nor_conv_1x1": 0.03}.get(option, 0.0) for option in architecture.values())


def _write_candidates(path: Path, architectures: Sequence[Architecture], predictor: Path) -> None:
    costs = Prices(SPACE, SHAPES, ("parameters", "multiply_adds"))(architectures)
    scores, deviations = nasengine.load_predictor(predictor).predict(architectures, return_std=True)
    count = len(architectures)
    columns: dict[str, Any] = {
        "rank": range(1, count + 1),
        "source": ["search", *["predictor"] * (count - 1)],
        "architecture": map(SPACE.write, architectures),
        **{name: values.astype(int) for name, values in costs.items()},
        "predicted": scores,
        "uncertainty": deviations,
        "measured": [_truth(a) if row >= 12 else "" for row, a in enumerate(architectures)],
        "trained": [0.31, *[""] * (count - 1)],
        "trained_deviation": [0.02, *[""] * (count - 1)],
    }
    pd.DataFrame(columns).to_csv(path / "candidates.csv", index=False)


def _write_record(path: Path, best: Architecture) -> None:
    winner = record(path / "final" / "1-seed-0")
    parts = ("search", "propose", "collect", "predictor", "rank", "train", "run")
    config = {
        "algo": {"name": "darts"},
        **{part: {} for part in parts},
        **{part: winner["config"][part] for part in ("space", "data")},
    }
    result = {"winner": "final/1-seed-0", "architecture": str(best), "genotype": SPACE.write(best), "stages": STAGES}
    result["test_accuracy"] = winner["result"]["test_accuracy"]
    whole = {**winner, "verb": "run", "config": config, "seconds": sum(STAGES.values()), "result": result}
    (path / "run.json").write_text(json.dumps(whole))


class Page(HTMLParser):
    """What a page has: its elements, its text outside of scripts, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.copied: list[str] = []
        self.words: list[str] = []
        self.policy = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given.get("href", ""))
        else:
            self.loaded += [
                given[name]
                for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
                if name in given and not given[name].startswith("#")
            ]
        self.styles.append(given.get("style", ""))
        if "data-copy" in given:
            self.copied.append(given["data-copy"])
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and self.lasttag == "script":
            self.scripts.append(data)
        elif self.lasttag == "style":
            self.styles.append(data)
        else:
            self.words.append(data)
