from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import nasengine.registry as module
from nasengine.algorithm import Algorithm
from nasengine.algorithms.darts import DARTS as DartsSearch
from nasengine.config import plain_plugin, resolve_space
from nasengine.errors import SettingError, UnknownNameError
from nasengine.predictor import PREDICTORS, Predictor
from nasengine.registry import ALGORITHMS, SPACES, Registry
from nasengine.space import Space
from search_spaces.darts import DARTS

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.supernet import MixedOp

@dataclass(frozen=True, kw_only=True)
class Toy(Space):
    width: int = setting(3, "how wide", low=1)
    name = {name!r}

    def __post_init__(self) -> None:
        validate(self, "space")

    def network(self, shapes):
        return nn.Sequential(nn.Flatten(), MixedOp("op", {{"a": nn.Identity(), "b": nn.ReLU()}}), nn.LazyLinear(2))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package without plug-ins."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "entry_points", lambda group: [])
    known = set(sys.modules)
    path = tmp_path / "toys_package"
    path.mkdir()
    (path / "__init__.py").touch()
    yield path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def registry(package: str = "toys_package") -> Registry[Space]:
    return Registry("search space", Space, package, "nasengine.search_spaces")  # type: ignore[type-abstract]


def test_what_comes_with_the_project() -> None:
    assert "darts" in SPACES.names() and SPACES["darts"] is DARTS
    assert {"darts", "rarts"} <= set(ALGORITHMS.names()) and ALGORITHMS["darts"] is DartsSearch
    assert SPACES.names() == sorted(SPACES.names())


def test_a_file_is_enough(package: Path) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="one"))
    (package / "two.py").write_text(PLUGIN.format(name="two"))
    (package / "_hidden.py").write_text("raise RuntimeError")
    (package / "three.py").write_text("from toys_package.one import Toy\nfrom nasengine.space import Space")
    assert registry().names() == ["one", "two"]
    assert registry()["two"].__module__ == "toys_package.two"


def test_unknown_name_answers_with_the_nearest_and_the_list(package: Path) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="resnet"))
    (package / "two.py").write_text(PLUGIN.format(name="cells"))
    with pytest.raises(UnknownNameError) as caught:
        registry()["resnets"]
    assert str(caught.value) == "Unknown search space 'resnets': did you mean 'resnet' (known: cells, resnet)?"
    with pytest.raises(UnknownNameError) as caught:
        registry()["xyz"]
    assert str(caught.value) == "Unknown search space 'xyz' (known: cells, resnet)."
    assert registry().get("xyz") is None


def test_duplicate_name(package: Path) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="same"))
    (package / "two.py").write_text(PLUGIN.format(name="same"))
    with pytest.raises(SettingError) as caught:
        registry().names()
    assert str(caught.value) == (
        "Every search space must have a name of its own, but 'same' is both toys_package.one.Toy and "
        "toys_package.two.Toy; rename one."
    )


def test_empty_scan(package: Path) -> None:
    with pytest.raises(SettingError) as caught:
        registry().names()
    assert str(caught.value) == (
        f"There must be a search space in {package}, but there is none: a folder or file of yours called "
        "'toys_package' hides the one of nasengine; rename it or start elsewhere."
    )


def test_a_file_in_the_place_of_the_package(package: Path) -> None:
    (package.parent / "toys_file.py").touch()
    with pytest.raises(SettingError, match=r"There must be a search space in .*toys_file.py, but there is none"):
        registry("toys_file").names()


def announce(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [EntryPoint("any", value, "nasengine.search_spaces") for value in values]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "nasengine.search_spaces" else [])


def test_entry_points(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="one"))
    (package.parent / "strangers_module.py").write_text(PLUGIN.format(name="stranger"))
    announce(monkeypatch, "strangers_module:Toy")
    found = registry()
    assert found.names() == ["one", "stranger"] and found["stranger"].__module__ == "strangers_module"
    assert found.spec(found["stranger"]()) == "stranger"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("strangers_gone:Toy", "The search space 'strangers_gone:Toy' must be importable, but got ModuleNotFoundError"),
        ("pathlib:Path", "The search space 'pathlib:Path' must be a subclass of Space, but is not"),
    ],
)
def test_broken_entry_points(package: Path, monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="one"))
    announce(monkeypatch, value)
    with pytest.raises(SettingError, match=told):
        registry().names()


def test_an_entry_point_cannot_take_a_name(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "one.py").write_text(PLUGIN.format(name="one"))
    (package.parent / "strangers_module.py").write_text(PLUGIN.format(name="one"))
    announce(monkeypatch, "strangers_module:Toy")
    with pytest.raises(SettingError, match=r"'one' is both toys_package.one.Toy and strangers_module.Toy; rename one"):
        registry().names()


def test_module_and_class(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package.parent / "my_module.py").write_text(PLUGIN.format(name="mine"))
    kind = SPACES["my_module:Toy"]
    assert kind.__name__ == "Toy" and SPACES.spec(kind()) == "my_module:Toy"


def test_a_module_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local_module_of_mine.py").write_text(PLUGIN.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert SPACES["local_module_of_mine:Toy"].name == "mine"


def test_file_and_class(tmp_path: Path) -> None:
    file = tmp_path / "my_space.py"
    file.write_text(PLUGIN.format(name="mine"))
    kind = SPACES[f"{file}:Toy"]
    assert SPACES[f"{file}:Toy"] is kind
    spec = SPACES.spec(kind())
    assert spec == f"{file}:Toy" and SPACES[spec] is kind


def test_files_of_one_name(tmp_path: Path) -> None:
    kinds = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "space.py"
        file.write_text(PLUGIN.format(name=folder))
        kinds.append(SPACES[f"{file}:Toy"])
    assert [kind.name for kind in kinds] == ["a", "b"]
    assert [SPACES[SPACES.spec(kind())] for kind in kinds] == kinds


def test_settings_of_a_file_survive_the_record(tmp_path: Path) -> None:
    file = tmp_path / "my_space.py"
    file.write_text(PLUGIN.format(name="mine"))
    space = resolve_space(f"{file}:Toy", {}, {"width": "5"})
    stored = plain_plugin(SPACES, space)
    assert resolve_space(None, stored, {}) == space and resolve_space(f"{file}:Toy", stored, {}) == space


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "A plug-in file must exist, but .* does not"),
        ("1 +", "must be importable, but got SyntaxError: invalid syntax"),
        ("raise OSError('no\\nluck.')", r"must be importable, but got OSError: no luck \(broken\.py, line 1\)\.$"),
        ("Toy = 3", "The search space .* must be a subclass of Space or of torch.nn.Module, but is not"),
        ("", "must name something in its file, but there is no 'Toy'; it has nothing"),
    ],
)
def test_files_that_are_no_plugins(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    known = set(sys.modules)
    with pytest.raises(SettingError, match=told):
        SPACES[f"{file}:Toy"]
    assert content in ("", "Toy = 3") or set(sys.modules) == known


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(
        SettingError, match="The algorithm 'nowhere:Toy' must be importable, but got ModuleNotFoundError"
    ):
        ALGORITHMS["nowhere:Toy"]
    with pytest.raises(SettingError, match=r"'search_spaces.darts:DARTS' must be a subclass of Algorithm, but is not"):
        ALGORITHMS["search_spaces.darts:DARTS"]


def test_an_instance_of_a_local_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Local(DARTS):
        pass

    assert SPACES.spec(Local()).endswith(":test_an_instance_of_a_local_class.<locals>.Local")


def test_a_namesake_is_not_the_registered_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(DartsSearch):
        pass

    assert issubclass(Mine, Algorithm) and Mine.name == "darts"
    spec: Any = ALGORITHMS.spec(Mine())
    assert spec.endswith("<locals>.Mine") and ALGORITHMS.spec(DartsSearch()) == "darts"


@pytest.mark.parametrize("name", ["one.py", "__init__.py"])
def test_a_scanned_file_that_is_broken(package: Path, name: str) -> None:
    (package / name).write_text("import nowhere_to_be_found")
    with pytest.raises(SettingError) as caught:
        registry().names()
    module = "toys_package.one" if name == "one.py" else "toys_package"
    assert str(caught.value) == (
        f"The module {module!r}, which is scanned for a search space, must be importable, but got ModuleNotFoundError: "
        "No module named 'nowhere_to_be_found'."
    )


PREDICTOR = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from nasengine.predictor import Predictor
from nasengine.settings import setting

@dataclass(kw_only=True, eq=False, repr=False)
class Constant(Predictor):
    value: float = setting(0.0, "what it guesses")
    name = {name!r}

    def _fit(self, graphs, targets, pool):
        pass

    def _predict(self, graphs, return_std):
        return np.full(len(graphs), self.value), np.ones(len(graphs))

    def _arrays(self):
        return {{}}

    def _restore(self, arrays):
        pass
"""


def predictors(package: str = "toys_package") -> Registry[Predictor]:
    return Registry("predictor", Predictor, package, "nasengine.predictors")  # type: ignore[type-abstract]


def test_predictors_are_found_as_all_plug_ins(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "one.py").write_text(PREDICTOR.format(name="one"))
    (package / "_shared.py").write_text("raise RuntimeError")
    (package.parent / "strangers_module.py").write_text(PREDICTOR.format(name="stranger"))
    points = [EntryPoint("any", "strangers_module:Constant", "nasengine.predictors")]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "nasengine.predictors" else [])
    found = predictors()
    assert found.names() == ["one", "stranger"] and found["stranger"].__module__ == "strangers_module"
    assert found.spec(found["one"](space="darts")) == "one"
    file = package.parent / "own.py"
    file.write_text(PREDICTOR.format(name="mine"))
    for spec in ("strangers_module:Constant", f"{file}:Constant"):
        assert found[spec](space="darts", value=2.0).value == 2.0
    with pytest.raises(UnknownNameError, match=r"Unknown predictor 'on': did you mean 'one' \(known: one, stranger\)"):
        found["on"]
    assert PREDICTORS.group == "nasengine.predictors" and PREDICTORS.package == "predictors"


def test_a_registry_is_a_collection_of_names() -> None:
    assert list(SPACES) == SPACES.names() and len(SPACES) == len(SPACES.names()) and "darts" in SPACES
