from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine._cli.show import EPILOG
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import contents, history, record

DARTS_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)


def test_show_a_search_and_a_training(cli: Run, ended: Path) -> None:
    before = contents(ended)
    code, out, err = cli("show", ended)
    found = record(ended)["result"]
    assert code == 0 and err == "" and out.startswith("\nnormal(c_{k-2}, c_{k-1})\n")
    assert f"\n{found['genotype']}\n\nvalidation accuracy of the supernet: {found['supernet_accuracy']:.2%}\n" in out
    assert out.endswith(f"in {ended}: run.json, history.csv, cells.svg, cells.png\n")
    code, out, _ = cli("show", ended / "final")
    assert code == 0 and f"test accuracy: {record(ended / 'final')['result']['test_accuracy']:.2%}\n" in out
    assert contents(ended) == before


def test_show_a_search_that_goes_on(cli: Run, stopped: Path) -> None:
    code, out, _ = cli("show", stopped)
    assert code == 0 and f"\n{history(stopped)[-1]['architecture']}\n" in out and "accuracy" not in out


def test_show_a_genotype(cli: Run) -> None:
    code, out, err = cli("show", "--genotype", DARTS_V1, "--out", "cell.svg")
    assert code == 0 and err == "" and out.endswith("drawn: cell.svg\n")
    cells, _, rest = out.partition("\n\nGenotype(")
    assert cells.splitlines()[0] == "normal(c_{k-2}, c_{k-1})" and "skip_connect(c_{k-2})" in cells
    text = "Genotype(" + rest.splitlines()[0]
    assert sorted(re.findall(r"\('\w+', \d\)", text)) == sorted(re.findall(r"\('\w+', \d\)", DARTS_V1))
    assert "<svg" in Path("cell.svg").read_text()


def test_the_example_works(cli: Run, ended: Path) -> None:
    example = re.search(r"nasengine (.*)", EPILOG)
    assert example is not None
    arguments = shlex.split(example[1])
    shutil.copytree(ended, arguments[1])
    code, out, _ = cli(*arguments)
    assert code == 0 and out.endswith("drawn: cell.png\n") and Path("cell.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--genotype", "normal/0-2=skip_connect"), "The architecture must decide 'normal/1-2', but names only "),
        (("--space", "nasbench201", "--genotype", "cell/0-1=none"), "The architecture must decide 'cell/0-2', but "),
        (
            ("--space", "transformer", "--genotype", "depth=two"),
            "An architecture to show must be one of space 'transformer', but got 'depth=two'; name its space by ",
        ),
        (("--space", "ofa", "--genotype", "unit1/depth=x"), "An architecture to show must be one of space 'ofa', but "),
        (
            ("RUN", "--space", "nasbench201"),
            "An architecture to show must be one of space 'nasbench201', but got 'norm",
        ),
    ],
)
def test_architectures_of_other_spaces(
    refuse: Callable[..., str], ended: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert refuse("show", *(ended if part == "RUN" else part for part in arguments)).startswith(told)


def test_show_the_text_of_an_architecture(cli: Run) -> None:
    text = "cell/0-1=none cell/0-2=nor_conv_3x3 cell/1-2=skip_connect cell/0-3=none cell/1-3=none cell/2-3=avg_pool_3x3"
    code, out, _ = cli("show", "--space", "nasbench201", "--genotype", text)
    assert code == 0 and "|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|" in out
    assert "\ncell(0)\n  1 = zero\n" in "\n" + out
