"""What README.md and results/ say is what the committed runs gave."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar10_search", ROOT / "results" / "cifar10_search.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows() -> list[dict[str, str]]:
    with (ROOT / "results" / "cifar10-search.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_the_summary_of_the_rows(experiment: ModuleType) -> None:
    written = (ROOT / "results" / "cifar10-search.md").read_text(encoding="utf-8").splitlines()
    assert experiment.summary(_rows()).splitlines()[:-1] == written[:-1]


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_the_table_stands_in_the_documents(name: str) -> None:
    table = (ROOT / "results" / "cifar10-search.md").read_text(encoding="utf-8").split("\n\n")[0]
    assert table in (ROOT / name).read_text(encoding="utf-8")


def test_every_method_has_every_seed(experiment: ModuleType) -> None:
    runs = {(row["method"], int(row["seed"])) for row in _rows()}
    assert runs == {(method, seed) for method in experiment.METHODS for seed in experiment.SEEDS}


def test_results_are_small_text() -> None:
    for path in (ROOT / "results").iterdir():
        if path.is_file():
            assert path.stat().st_size < 100_000
            path.read_text(encoding="utf-8")


def test_links_of_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "results/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    exec(compile(example[1], "README.md", "exec"), {})
    assert (tmp_path / "results" / "first" / "final" / "network.safetensors").exists()
