from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nasengine
from nasengine.data import SCHEMES
from nasengine.errors import ArchitectureError, RunError, SettingError
from nasengine.listing import show
from nasengine.predictor import PREDICTORS
from nasengine.registry import ALGORITHMS, SPACES
from search_spaces.darts import DARTS
from tests.nasengine.runs import GENOTYPE, contents, history, record

SMALL = DARTS(channels=2, layers=3, nodes=1)


def test_everything_that_has_a_name_is_listed() -> None:
    entries = nasengine.list()
    by_kind: dict[str, list[str]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry.name)
        assert entry.summary
    assert by_kind == {
        "space": SPACES.names(),
        "algorithm": ALGORITHMS.names(),
        "predictor": PREDICTORS.names(),
        "data": list(SCHEMES),
        "settings": ["data", "search", "train", "collect", "propose", "rank", "run", "compare", "front", "final"],
    }
    final = {row.name: (row.default, row.help) for row in entries[-1].settings}
    assert final["final.channels"] == (36, "darts: channels of the first cells, an even number")
    assert final["final.auxiliary"][0] is True and "final.nodes" not in final


def test_settings_are_listed_as_they_are_set() -> None:
    settings = {setting.name: setting for entry in nasengine.list() for setting in entry.settings}
    assert settings["algo.weights.lr"].default == 0.025 and settings["space.layers"].default == 8
    assert settings["search.epochs"].default == 50 and settings["train.epochs"].default == 600
    assert all(setting.help and setting.kind for setting in settings.values())


def test_show_a_search_a_training_and_a_text(ended: Path) -> None:
    found = show(ended)
    assert str(found.architecture) == record(ended)["result"]["architecture"]
    assert found.text == record(ended)["result"]["genotype"] and found.record == record(ended)
    assert list(found.graphs) == ["normal", "reduce"] and found.files == ()
    trained = show(ended / "final")
    assert trained.architecture == found.architecture and trained.record == record(ended / "final")
    text = show(genotype=GENOTYPE, space=SMALL)
    assert text.text == GENOTYPE and text.record is None and text.architecture == SMALL.read(GENOTYPE)


def test_show_a_search_that_goes_on(ended: Path) -> None:
    unfinished(ended)
    assert show(ended).text == history(ended)[-1]["architecture"]


def unfinished(path: Path) -> None:
    text = (path / "run.json").read_text()
    start = text.index(',\n  "result"')
    (path / "run.json").write_text(text[:start] + "\n}\n")


@pytest.mark.parametrize("rows", [None, b"", b"epoch,architecture\n"])
def test_show_a_search_without_an_epoch(ended: Path, rows: bytes | None) -> None:
    unfinished(ended)
    (ended / "history.csv").unlink()
    if rows is not None:
        (ended / "history.csv").write_bytes(rows)
    with pytest.raises(RunError, match=r"A run must have ended its first epoch to be shown, but the one in .* has not"):
        show(ended)


def test_show_a_damaged_history(ended: Path) -> None:
    unfinished(ended)
    (ended / "history.csv").write_bytes(b"epoch,architecture\n1,\x80\n")
    with pytest.raises(RunError, match=r"history.csv must be the readable history of a search, but is not"):
        show(ended)
    (ended / "history.csv").write_bytes(b"epoch,other\n1,2\n")
    with pytest.raises(ArchitectureError, match="A genotype must be"):
        show(ended)


@pytest.mark.parametrize("name", ["cell.svg", "cell.png"])
def test_show_draws(ended: Path, name: str, tmp_path: Path) -> None:
    before = contents(ended)
    assert show(ended, out=tmp_path / name).files == (tmp_path / name,)
    assert (tmp_path / name).stat().st_size > 1000
    assert contents(ended) == before


@pytest.mark.parametrize(
    ("out", "error", "told"),
    [
        ("cell.jpg", SettingError, r"must end in .svg or .png"),
        ("nowhere/cell.svg", RunError, "cell.svg must be writable, but No such file or directory"),
        ("run.json/cell.svg", RunError, "cell.svg must be writable, but Not a directory"),
    ],
)
def test_show_cannot_draw(ended: Path, out: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        show(ended, out=ended / out)


@pytest.mark.parametrize("arguments", [{}, {"run": "a", "genotype": GENOTYPE}])
def test_show_needs_one_source(arguments: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="Either a run directory or a genotype must be given to show, and not both"):
        show(**arguments)


def test_show_places_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There must be a run.json of nasengine at .*, but there is none"):
        show(tmp_path)
    with pytest.raises(RunError, match=r"must be a directory that nasengine wrote, but .* is missing"):
        show(GENOTYPE)
