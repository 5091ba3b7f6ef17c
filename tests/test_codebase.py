"""Rules of the code base that a machine can check."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import nasengine
from nasengine.predictor import PREDICTORS
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.settings import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nasengine", "search_spaces", "predictors")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]


def _calls(tree: ast.AST, name: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: split it by noun"


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not _calls(tree, "print") and not _calls(tree, "input") and not _calls(tree, "exit")
    if "_cli" not in path.parts:
        assert not {"sys.exit", "typer"} & set(_imported(tree))


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {"nasengine": {"nasengine"}, "search_spaces": {"nasengine", "search_spaces"}}
    allowed["predictors"] = {"nasengine", "predictors"}
    own = {name.split(".")[0] for name in _imported(ast.parse(path.read_text(encoding="utf-8")))} & set(PACKAGES)
    assert own <= allowed[package]


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_functions_are_short_typed_and_explicit(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where = f"{path.name}:{node.lineno} {node.name}"
            assert (node.end_lineno or node.lineno) - node.lineno < 80, f"{where} is long"
            assert node.returns is not None, f"{where} says not what it returns"
            assert node.args.kwarg is None or node.name.startswith("_"), f"{where} swallows keywords"
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno} is a bare except"


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_nothing_loads_code_from_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "weights_only=False" not in text and "allow_pickle=True" not in text
    tree = ast.parse(text)
    assert not _calls(tree, "eval") and not _calls(tree, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            assert (owner, node.func.attr) not in {("pickle", "load"), ("pickle", "loads")}


def test_plugins_are_frozen_documented_and_do_not_inherit_from_each_other() -> None:
    for registry in (SPACES, ALGORITHMS):
        for name in registry.names():
            plugin = registry[name]
            assert dataclasses.is_dataclass(plugin)
            assert "arXiv:" in (plugin.__doc__ or ""), f"{name} names no paper"
            with pytest.raises(dataclasses.FrozenInstanceError):
                plugin().name = "other"
            concrete = [base for base in plugin.__mro__[1:] if inspect.isclass(base) and not inspect.isabstract(base)]
            assert all(base.__module__ in ("builtins", "typing", "abc") for base in concrete), f"{name} inherits code"


def test_predictors_are_documented_settable_and_do_not_inherit_from_each_other() -> None:
    kinds = [PREDICTORS[name] for name in PREDICTORS.names()]
    for kind in kinds:
        assert dataclasses.is_dataclass(kind) and kind.__name__ not in nasengine.__all__
        doc = kind.__doc__ or ""
        assert "arXiv:" in doc or "Reference:" in doc, f"{kind.name} names no source"
        predictor = kind(space="darts")
        predictor.set_params(space="nasbench201")  # so it cannot be frozen, and is equal to nothing but itself
        assert predictor.space == "nasbench201" and predictor != kind(space="nasbench201")
        assert not set(kinds) & set(kind.__mro__[1:]), f"{kind.name} inherits from another predictor"
        assert all(setting.help for setting in table(kind, "predictor"))


def test_public_names_exist() -> None:
    assert nasengine.__all__ == sorted(nasengine.__all__)
    for name in nasengine.__all__:
        assert getattr(nasengine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        nasengine.serch  # noqa: B018
