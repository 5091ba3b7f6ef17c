from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nasengine.config import resolve_task
from nasengine.data import load_dataset, own_task
from nasengine.data.own import absolute, names_own
from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.measure import ACCURACY
from nasengine.task import DataSettings, Shapes, load_task

OWN = """
import torch
from torch.nn.functional import l1_loss
from nasengine import Augment, Dataset, DataSettings, Measure, Task

calls = []
rows = torch.arange(80.0).view(20, 4)
table = Dataset(
    name="mine", train_inputs=rows, train_targets=torch.arange(20) % 2, test_inputs=rows[:4],
    test_targets=torch.arange(4) % 2, classes=("even", "odd"),
)
images = Dataset(
    name="pictures", train_inputs=torch.zeros(20, 1, 8, 8, dtype=torch.uint8), train_targets=torch.arange(20) % 2,
    test_inputs=torch.zeros(4, 1, 8, 8, dtype=torch.uint8), test_targets=torch.arange(4) % 2, classes=("a", "b"),
    augment=Augment(crop=2),
)
numbers = Dataset(
    name="numbers", train_inputs=rows, train_targets=rows[:, :1], test_inputs=rows[:4], test_targets=rows[:4, :1],
    classes=("first",),
)
near = Measure("near", lambda outputs, targets: ((outputs - targets).abs() < 1).float().sum())
task = Task(dataset=numbers, settings=DataSettings(train_portion=0.75, train_size=16), loss=l1_loss, measure=near)

def make():
    calls.append(1)
    return task

def broken():
    raise RuntimeError("no\\nluck.")

def quits():
    raise SystemExit(3)

def needs(path):
    return table

def refuses():
    return Dataset(name="a/b", train_inputs=rows, train_targets=rows, test_inputs=rows, test_targets=rows, classes=())

def nothing():
    return None

class Kind:
    pass

three = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with data of one's own."""
    path = tmp_path / "own_data.py"
    path.write_text(OWN)
    return path


def test_a_dataset_becomes_a_task(own: Path) -> None:
    task = load_task(f"{own}:table")
    assert (task.name, task.shapes, task.settings) == ("mine", Shapes((4,), 2), DataSettings())
    assert task.measure is ACCURACY and torch.equal(task.dataset.train_inputs, torch.arange(80.0).view(20, 4))


def test_a_task_keeps_its_loss_measure_and_settings(own: Path) -> None:
    task = load_task(f"{own}:task")
    assert task.measure.name == "near" and task.loss is torch.nn.functional.l1_loss
    assert task.settings == DataSettings(train_portion=0.75, train_size=16) and len(task.dataset.train_targets) == 16
    other = load_task(f"{own}:task", DataSettings(train_size=10))
    assert other.measure.name == "near" and other.settings.train_portion == 0.5
    assert len(other.dataset.train_targets) == 10


def test_a_function_is_called_once(own: Path) -> None:
    task = load_task(f"{own}:make")
    module = next(module for name, module in sys.modules.items() if getattr(module, "__file__", "") == str(own))
    assert task.name == "numbers" and module.calls == [1]
    load_task(f"{own}:make")
    assert module.calls == [1, 1]


def test_a_module_of_the_working_directory(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.rename(own.parent / "own_module_of_mine.py")
    monkeypatch.chdir(own.parent)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_task("own_module_of_mine:table").name == "mine"
    del sys.modules["own_module_of_mine"]


def test_image_settings_apply(own: Path) -> None:
    task = load_task(f"{own}:images", DataSettings(image_size=16, train_size=6, flip=True))
    assert task.shapes == Shapes((1, 16, 16), 2) and len(task.dataset.train_targets) == 6
    assert (task.search_augment.crop, task.search_augment.flip) == (4, True)
    for settings in (DataSettings(crop=1), DataSettings(image_size=4)):
        with pytest.raises(SettingError, match="mine has no"):
            load_task(f"{own}:table", settings)


def test_schemes_come_first(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.rename(own.parent / "digits.py")
    monkeypatch.chdir(own.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert own_task("digits") is None and own_task("digits:table") is None
    assert own_task("sklearn:wine") is None and own_task("npz:folder/data.py:table") is None
    assert own_task("digits.py:table") is not None


@pytest.mark.parametrize("spec", ["digits", "digits.py", "cifar:somewhere", "C:/data.npz", "./own:x", ":x", "a..b:x"])
def test_what_names_nothing_of_ones_own(spec: str) -> None:
    assert not names_own(spec)


@pytest.mark.parametrize("spec", ["imagefoldr:here", "./own:x", ":x", "a..b:x"])
def test_a_scheme_that_is_none(spec: str) -> None:
    with pytest.raises(UnknownNameError, match="Unknown data scheme"):
        load_task(spec)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("gone", SettingError, "must name something in its file, but there is no 'gone'; it has make, broken"),
        ("broken", SettingError, "The function behind the data .* must return without an error, but got RuntimeError"),
        ("quits", SettingError, "must return without an error, but got SystemExit: 3"),
        ("needs", SettingError, "must return without an error, but got TypeError: needs.. missing 1 required"),
        ("refuses", DataError, "A data set must have a name that can name a directory, but got 'a/b'; rename it"),
        ("nothing", DataError, "a function without arguments that gives one, but got NoneType"),
        ("Kind", DataError, "a function without arguments that gives one, but got Kind"),
        ("three", DataError, "The data .* must be a Dataset, a Task, or a function .* that gives one, but got int"),
    ],
)
def test_names_that_are_no_data(own: Path, name: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=rf"{told}[^\n]*\.$") as caught:
        load_task(f"{own}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"A plug-in file must exist, but .*broken.py does not\.$"),
        ("1 +", "must be importable, but got SyntaxError: invalid syntax"),
        ("import sys; sys.exit('enough')", r"must be importable, but got SystemExit: enough \(broken\.py, line 1\)\.$"),
        ("raise OSError('no\\nluck.')", r"must be importable, but got OSError: no luck \(broken\.py, line 1\)\.$"),
        ("import nothing_of_this_name", "must be importable, but got ModuleNotFoundError"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingError, match=told):
        load_task(f"{file}:table")


def test_modules_that_are_no_data() -> None:
    with pytest.raises(SettingError, match=r"The data 'nasengine.gone:x' must be importable, but got ModuleNotFound"):
        load_task("nasengine.gone:x")
    with pytest.raises(DataError, match=r"The data 'nasengine.seeding:torch' must be a Dataset, .* but got module\.$"):
        load_task("nasengine.seeding:torch")


def test_a_file_without_a_name(own: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_task(str(own))
    assert str(caught.value) == (f"A file with data must come with a name in it, but got '{own}'; write {own}:NAME.")


def test_a_spec_is_found_again_from_anywhere(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    _, stored = resolve_task("own_data.py:table", {}, {"train_portion": "0.6"})
    assert stored["name"] == f"{own}:table" == absolute("own_data.py:table")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    task, again = resolve_task(None, stored, {})
    assert again == stored and task.name == "mine" and task.settings.train_portion == 0.6


def test_absolute_leaves_other_specs() -> None:
    assert [absolute(spec) for spec in ("digits", "npz:a", "module:name")] == ["digits", "npz:a", "module:name"]
    assert absolute("~/a.py:x") == f"{Path.home().resolve()}/a.py:x"


def test_rising_order_of_right(own: Path) -> None:
    task, stored = resolve_task(f"{own}:task", {}, {})
    assert (stored["train_portion"], stored["train_size"]) == (0.75, 16) and task.settings.train_size == 16
    other = {"name": "digits", "train_portion": 0.6}  # what is stored belongs to its data
    assert resolve_task(f"{own}:task", other, {})[0].settings.train_portion == 0.75
    task, stored = resolve_task(None, {**other, "name": f"{own}:task"}, {"train_size": "8"})
    assert (task.settings.train_portion, len(task.dataset.train_targets)) == (0.6, 8)
    task, changed = resolve_task(task, {"name": "digits", "train_portion": 0.9}, {"train_size": "6"})
    assert (task.settings.train_portion, len(task.dataset.train_targets)) == (0.6, 6) and task.measure.name == "near"
    assert (changed["name"], changed["train_size"]) == ("numbers", 6)


def test_load_dataset_is_for_schemes(own: Path) -> None:
    with pytest.raises(UnknownNameError, match="Unknown data scheme"):
        load_dataset(f"{own}:table")
