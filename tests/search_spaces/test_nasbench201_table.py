"""The table of NAS-Bench-201: how it is read, refused, and looked up while a search goes on."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nasengine
from nasengine._cli.main import main
from nasengine.architecture import Architecture
from nasengine.config import SearchSettings, resolve_settings
from nasengine.errors import DataError, SettingError
from search_spaces.darts import DARTS
from tests.search_spaces.test_nasbench201 import EXAMPLE, SPACE, counted, everywhere

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench201/nasbench201.parquet"
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
LABELS = ("cell/0-1", "cell/0-2", "cell/1-2", "cell/0-3", "cell/1-3", "cell/2-3")
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
ROWS = {
    everywhere("skip_connect"): (39.75, 54.25),
    everywhere("none"): (9.75, 10.0),
    BEST: (91.5, 94.25),
}


def columns() -> dict[str, list[object]]:
    """A small table in the layout of the real one, in percent."""
    return {
        "index": list(range(len(ROWS))),
        "architecture": list(ROWS),
        "cifar10_validation_accuracy": [valid for valid, _ in ROWS.values()],
        "cifar10_test_accuracy": [test for _, test in ROWS.values()],
        "cifar100_validation_accuracy_one_seed": [15, 1, 70],
        "xeon_latency_ms": [1.0, 2.0, 3.0],
    }


def save(path: Path, table: Mapping[str, Sequence[object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    return path


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_accuracies_are_looked_up_as_shares(tmp_path: Path, name: str) -> None:
    benchmark = SPACE.benchmark(save(tmp_path / name, columns()))
    known = benchmark(SPACE.read(everywhere("skip_connect")))
    assert list(known.items()) == [
        ("cifar10_test_accuracy", 0.5425),
        ("cifar10_validation_accuracy", 0.3975),
        ("cifar100_validation_accuracy_one_seed", 0.15),
    ]
    assert benchmark(SPACE.read(BEST))["cifar10_test_accuracy"] == 0.9425
    assert all(type(value) is float for value in known.values())
    known.clear()
    assert benchmark(SPACE.read(everywhere("skip_connect")))


def test_the_file_is_read_once(tmp_path: Path) -> None:
    path = save(tmp_path / "table.csv", columns())
    benchmark = SPACE.benchmark(path)
    path.unlink()
    assert benchmark(SPACE.read(BEST))["cifar10_test_accuracy"] == 0.9425


def test_an_architecture_that_is_not_in_the_table(tmp_path: Path) -> None:
    benchmark = SPACE.benchmark(save(tmp_path / "table.csv", columns()))
    with pytest.raises(DataError) as refused:
        benchmark(SPACE.read(EXAMPLE))
    assert str(refused.value) == (
        f"{tmp_path}/table.csv must have every architecture that is found, but {EXAMPLE} is not among its 3; give the "
        "whole table, or leave out --benchmark."
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "architecture",
            None,
            "must have a column architecture and columns of accuracies such as .*, but has 'index, ",
        ),
        ("architecture", [*list(ROWS)[:2], EXAMPLE[:-1]], r"must have the form .*, but row 2 has '\|nor_conv_3x3~0\|"),
        ("architecture", [EXAMPLE] * 3, r"must have every architecture once, but \|nor_.* is in rows 0 and 1\.$"),
        ("architecture", [1, 2, 3], "The column architecture of .* must have a text in every row, but has not"),
        ("cifar10_test_accuracy", [1.0, None, 2.0], "column cifar10_test_accuracy of .* must be percentages from 0 to"),
        ("cifar10_test_accuracy", [1.0, 101.0, 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", [1.0, -1.0, 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", [1.0, float("nan"), 2.0], "must be percentages from 0 to 100, but is not everywhere"),
        ("cifar10_test_accuracy", ["high", "low", ""], "must be percentages from 0 to 100, but is not everywhere"),
    ],
)
def test_tables_of_another_layout(
    tmp_path: Path, suffix: str, column: str, values: list[object] | None, message: str
) -> None:
    table = {**columns(), column: values or []}
    if values is None:
        del table[column]
    path = save(tmp_path / f"table.{suffix}", table)
    with pytest.raises(DataError, match=message) as refused:
        SPACE.benchmark(path)
    assert str(path) in str(refused.value) and not re.search(r"[.?!] [A-Z]", str(refused.value))


def test_a_table_without_accuracies_or_rows(tmp_path: Path) -> None:
    few: dict[str, list[object]] = {"architecture": list(ROWS), "latency": [1, 2, 3]}
    with pytest.raises(DataError, match=r"columns of accuracies .*, but has 'architecture, latency'\.$"):
        SPACE.benchmark(save(tmp_path / "table.csv", few))
    empty: dict[str, list[object]] = {name: [] for name in columns()}
    with pytest.raises(DataError, match=r"must have a text in every row, but has not"):
        SPACE.benchmark(save(tmp_path / "table.parquet", empty))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and then nothing", "must be a whole parquet or CSV file, but .* is not one"),
        (b"", "must be a whole parquet or CSV file, but .* is not one"),
        (b"\xff\xfe\x00\x01" * 64, "table"),
        (b"\xff\xfe,x\n1,2\n", "must be a whole parquet or CSV file, but .* is not one"),
        (b"architecture,a_accuracy\n\xff\xfe,3\n", "must have a text in every row, but has not"),
        (b"architecture,a_accuracy,a_accuracy\nx,3,4\n", "a_accuracy, a_accuracy"),
        (b"\n" * 64, "table"),
        (bytes(range(256)) * 16, "table"),
        (b'architecture,a_accuracy\n"|none~0', "table"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_files_that_are_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        SPACE.benchmark(tmp_path / "table")
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_a_parquet_file_that_was_cut(tmp_path: Path) -> None:
    path = save(tmp_path / "table.parquet", columns())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="must be a whole parquet or CSV file"):
        SPACE.benchmark(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a readable file, but .*/none is not: No such file or directory\.$"):
        SPACE.benchmark(tmp_path / "none")
    with pytest.raises(DataError, match=r"must be a readable file, but .* is not: Is a directory\.$"):
        SPACE.benchmark(tmp_path)


def test_a_space_without_a_table_says_so() -> None:
    with pytest.raises(SettingError, match=r"space 'darts' has none, .* table.csv .*; leave out --benchmark\.$"):
        DARTS().benchmark(Path("table.csv"))


# The look-up in a search


def whole(path: Path) -> Path:
    """A table of all cells whose test accuracy tells which cell it is."""
    cells = [Architecture(dict(zip(LABELS, options, strict=True))) for options in product(NAMES, repeat=6)]
    accuracies: list[object] = [100.0 * place / len(cells) for place in range(len(cells))]
    texts: list[object] = [SPACE.write(cell) for cell in cells]
    halves: list[object] = [50] * len(cells)
    return save(
        path, {"architecture": texts, "cifar10_validation_accuracy": halves, "cifar10_test_accuracy": accuracies}
    )


def share(genotype: str) -> float:
    """The accuracy of a cell in that table."""
    place = 0
    for option in SPACE.read(genotype).values():
        place = 5 * place + NAMES.index(option)
    return 100.0 * place / 5**6 / 100.0


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data spec: 40 grey images of 8x8 pixels in 4 classes."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    rng, labels = np.random.default_rng(0), np.arange(40) % 4
    np.savez(tmp_path / "tiny.npz", x=rng.integers(255, size=(40, 8, 8), dtype=np.uint8), y=labels)
    return f"npz:{tmp_path}/tiny.npz"


SEARCH = ("space.channels=2", "space.cells=1", "search.epochs=2", "search.batch_size=8", "search.device=cpu")
KNOWN = ("benchmark_cifar10_test_accuracy", "benchmark_cifar10_validation_accuracy")


def test_a_search_writes_what_is_known(digits: str, tmp_path: Path) -> None:
    settings = (*SEARCH, f"search.benchmark={whole(tmp_path / 'all.parquet')}")
    found = nasengine.search("nasbench201", task=digits, settings=settings, out=tmp_path / "run")
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert tuple(name for name in row if "benchmark" in name) == KNOWN
        assert float(row[KNOWN[0]]) == pytest.approx(share(row["architecture"]), abs=1e-15)
        assert row[KNOWN[1]] == "0.5"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["search"]["benchmark"] == str(tmp_path / "all.parquet")
    assert record["result"][KNOWN[0]] == pytest.approx(share(found.text), abs=1e-15)
    assert record["result"][KNOWN[1]] == 0.5


def test_without_a_table_nothing_is_written(digits: str, tmp_path: Path) -> None:
    found = nasengine.search("nasbench201", task=digits, settings=SEARCH, out=tmp_path / "run")
    assert "benchmark" not in (tmp_path / "run" / "history.csv").read_text()
    assert not any("benchmark" in name for name in found.record["result"])
    assert found.record["config"]["search"]["benchmark"] is None


def test_the_command_line_shows_what_is_known(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = whole(tmp_path / "all.csv")
    flags = [part for setting in SEARCH for part in ("--set", setting)]
    arguments = ["--space", "nasbench201", "--data", digits, *flags, "--out", str(tmp_path / "run")]
    assert main(["search", *arguments, "--benchmark", str(table)]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert re.search(rf"\nepoch 2/2 .*  benchmark {result[KNOWN[0]]:.1%}  [\d.]+ s/step", out)
    assert f"\nbenchmark, cifar10 test accuracy: {result[KNOWN[0]]:.2%}\n" in out
    assert "\nbenchmark, cifar10 validation accuracy: 50.00%\n" in out
    assert f"\n{result['genotype']}\n" in out


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("nasbench201", "nasengine: A benchmark table must be a readable file, but gone.csv is not: No such file or "),
        ("darts", "nasengine: A benchmark must be a table of the space, but space 'darts' has none, "),
    ],
)
def test_a_bad_table_stops_before_anything_is_written(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str, message: str
) -> None:
    arguments = ["--space", space, "--data", digits, "--out", str(tmp_path / "run"), "--benchmark", "gone.csv"]
    assert main(["search", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message) and not (tmp_path / "run").exists()


def test_none_takes_the_table_away() -> None:
    stored = {"benchmark": "table.csv"}
    assert resolve_settings(SearchSettings, stored, {}, "search").benchmark == "table.csv"
    assert resolve_settings(SearchSettings, stored, {"benchmark": "none"}, "search").benchmark is None


# The real table


@pytest.mark.skipif(not REAL.is_file(), reason="the real table of NAS-Bench-201 is not on this machine")
def test_the_real_table() -> None:
    table = pq.read_table(REAL).to_pydict()
    genotypes = table["architecture"]
    cells = [SPACE.read(genotype) for genotype in genotypes]
    assert len(set(cells)) == 15_625 and [SPACE.write(cell) for cell in cells] == genotypes
    pairs = zip(genotypes, table["params_millions"], strict=True)
    gaps = [abs(counted(genotype) - 1e6 * millions) for genotype, millions in pairs]
    other = [gap for gap in gaps if gap > 0.5]
    assert len(other) == 204  # of which the table has a mean of two or three runs, one with other operations
    operations = [count * size for count in (1, 2) for size in (28_000, 243_040)]  # of a 1x1 and of a 3x3 convolution
    assert all(min(abs(runs * gap - size) for runs in (2, 3) for size in operations) < 1 for gap in other)

    benchmark = SPACE.benchmark(REAL)
    known = [benchmark(cell)["cifar10_test_accuracy"] for cell in cells]
    assert known == pytest.approx([value / 100 for value in table["cifar10_test_accuracy"]], abs=1e-12)
    assert list(benchmark(cells[0])) == [
        *("cifar10_test_accuracy", "cifar10_validation_accuracy", "cifar10_validation_accuracy_12_epochs"),
        *("cifar10_test_accuracy_12_epochs", "cifar100_validation_accuracy_one_seed"),
        "imagenet16_validation_accuracy_one_seed",
    ]
    assert max(known) == pytest.approx(0.9437, abs=5e-5)  # the published optimum


@pytest.mark.skipif(not REAL.is_file(), reason="the real table of NAS-Bench-201 is not on this machine")
def test_the_collapse_of_darts_is_its_published_figure() -> None:
    """arXiv:2001.00326, table 5: DARTS ends at 54.30 on CIFAR-10, validation 39.77."""
    known = SPACE.benchmark(REAL)(SPACE.read(everywhere("skip_connect")))
    assert 100 * known["cifar10_test_accuracy"] == pytest.approx(54.30, abs=0.1)
    assert 100 * known["cifar10_validation_accuracy"] == pytest.approx(39.77, abs=0.1)
