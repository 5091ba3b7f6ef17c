from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine._cli.progress import print_result
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import flags, record

SPACE = ("--space", "tests.nasengine.dense:Dense")
QUICK = (*SPACE, "--epochs", "2", "--batch-size", "8", "--device", "cpu")


def test_a_regression_is_told_in_numbers(cli: Run) -> None:
    code, out, err = cli("search", "--data", "sklearn:diabetes", *QUICK)
    where = Path("results/diabetes/dense/rarts/seed-0")
    assert code == 0 and err == ""
    number = r"-?[\d.]+(?:e-\d+)?"
    losses = rf"train loss {number}  negative mse {number}  valid loss {number}  negative mse {number}"
    assert re.search(rf"\nepoch 2/2  {losses}  supernet {number}  derived {number}  entropy", out)
    found = record(where)["result"]
    assert f"\nvalidation negative mse of the supernet: {found['supernet_negative_mse']:.4g}\n" in out
    assert "accuracy" not in out and "%" not in out
    settings = ("train.epochs=2", "train.batch_size=8", "train.device=cpu")
    code, out, err = cli("train", where, *flags(settings))
    assert code == 0 and err == "" and "  negative mse -" in out
    assert f"\ntest negative mse: {record(where / 'final')['result']['test_negative_mse']:.4g}\n" in out
    assert cli("show", where / "final").out.count("test negative mse: -") == 1


def test_classes_of_a_table_are_told_in_per_cent(cli: Run) -> None:
    code, out, err = cli("search", "--data", "sklearn:wine", *QUICK)
    assert code == 0 and err == "" and re.search(r"acc [\d.]+%  supernet [\d.]+%  derived [\d.]+%  entropy", out)
    assert re.search(r"\nvalidation accuracy of the supernet: [\d.]+%\n", out)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"test_size": 9, "test_top5_accuracy": 0.5}, "\ntest top5 accuracy: 50.00%\n"),
        ({"supernet_f1": 0.25, "derived_f1": 0.125}, "\nvalidation f1 of the supernet: 0.25\n"),
        ({"test_negative_mse": -123456.0, "test_size": 9}, "\ntest negative mse: -1.235e+05\n"),
    ],
)
def test_any_measure_has_its_line(
    result: dict[str, float], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(tmp_path, {"result": result})
    assert told in capsys.readouterr().out


def test_own_data_by_file_and_module(cli: Run) -> None:
    Path("my_data.py").write_text("from nasengine import load_task\ntable = load_task('sklearn:iris').dataset\n")
    code, out, err = cli("search", "--data", "my_data.py:table", *QUICK, "--out", "file")
    assert code == 0 and err == "" and out.startswith("file: 2 epochs of ")
    assert record(Path("file"))["config"]["data"]["name"] == str(Path("my_data.py").resolve()) + ":table"
    assert cli("search", "--config", "file", "--out", "again").code == 0
    assert record(Path("again"))["result"].keys() == record(Path("file"))["result"].keys()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("gone.py:table", "A plug-in file must exist, but "),
        ("my_data.py:gone", "The data '"),
        ("my_data.py:three", "The data '"),
        ("my_data.py", "A file with data must come with a name in it, but got 'my_data.py'; write my_data.py:NAME."),
        ("sklearn", "The data scheme sklearn must come with a name, but got 'sklearn'; write sklearn:NAME."),
        ("sklearn:boston", "Unknown table of scikit-learn 'boston' (known: breast_cancer, diabetes, iris, wine)."),
        ("nowhere_at_all:table", "Unknown data scheme 'nowhere_at_all' (known: "),
    ],
)
def test_own_data_that_are_none(refuse: Callable[..., str], data: str, sentence: str) -> None:
    Path("my_data.py").write_text("three = 3\n")
    assert refuse("search", *QUICK, "--data", data).startswith(sentence)


def test_settings_of_images_do_not_fit_a_table(refuse: Callable[..., str]) -> None:
    assert refuse("search", *QUICK, "--data", "sklearn:iris", "--set", "data.flip=true") == (
        "data.crop, data.flip and data.cutout need images, which iris has not."
    )
    assert refuse("search", *QUICK, "--data", "sklearn:iris", "--set", "data.image_size=8") == (
        "data.image_size must be left out, not 8, because iris has no images."
    )
