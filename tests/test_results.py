"""What README.md and results/ say is what the committed runs gave."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from nasengine.task import Shapes
from search_spaces.nasbench101 import NASBench101

ROOT = Path(__file__).resolve().parents[1]


SEARCH = "cifar10_search"
EXPERIMENTS = (
    SEARCH,
    "cifar10_elastic",
    "cifar10_slimming",
    "cifar10_predictor",
    "nasbench201_search",
    "nasbench_ranking",
)
DOCUMENTS = [("README.md", SEARCH), ("README.md", "nasbench201_search")]
DOCUMENTS += [("results/README.md", name) for name in EXPERIMENTS]


def _experiment(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "results" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / f"{name.replace('_', '-')}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _written(name: str) -> str:
    return (ROOT / "results" / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_table_is_the_summary_of_the_rows(name: str) -> None:
    assert _experiment(name).summary(_rows(name)).splitlines()[:-1] == _written(name).splitlines()[:-1]


@pytest.mark.parametrize(
    ("document", "name"),
    [
        *(("results/README.md", name) for name in EXPERIMENTS),
        ("README.md", SEARCH),
        ("README.md", "nasbench201_search"),
    ],
)
def test_the_table_stands_in_the_documents(document: str, name: str) -> None:
    assert _written(name).split("\n\n")[0] in (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_method_has_every_seed(name: str) -> None:
    experiment, rows = _experiment(name), _rows(name)
    if name == "cifar10_slimming":
        runs = {(row["removed"], row["way"], int(row["seed"])) for row in rows}
        ways = [(str(share), way) for share in experiment.SHARES for way in (experiment.WAYS if share else ("none",))]
        assert runs == {(*way, seed) for way in ways for seed in experiment.SEEDS}
    elif name == "nasbench_ranking":
        fits = {(row["space"], row["method"], int(row["labels"]), int(row["seed"])) for row in rows}
        tables = dict.fromkeys(experiment.LABELS, "")
        assert fits == {(space, *job) for space, _, *job in experiment.jobs_of(tables)}
    else:
        assert {(row["method"], int(row["seed"])) for row in rows} == {
            (method, seed) for method in experiment.METHODS for seed in experiment.SEEDS
        }


def test_the_labels_are_of_different_cells_and_say_what_they_say() -> None:
    table = pd.read_csv(ROOT / "results" / "nasbench101-digits.csv", dtype={"matrix": str})
    space = NASBench101(channels=8, cells=1)
    cells = space.from_table(table)  # refuses a hash that is not the cell's
    assert len(set(table["hash"])) == len(table) == 280
    assert space.to_table(cells, Shapes((1, 8, 8), 10))["parameters"].tolist() == table["parameters"].tolist()
    assert table["score"].between(0.1, 1.0).all() and table["score"].nunique() > 200


def test_results_are_small_text() -> None:
    for path in (ROOT / "results").iterdir():
        if path.is_file():
            assert path.stat().st_size < 100_000
            path.read_text(encoding="utf-8")


def test_links_of_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "docs/spaces-and-algorithms.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    exec(compile(example[1], "README.md", "exec"), {})
    assert (tmp_path / "results" / "first" / "final" / "network.safetensors").exists()
