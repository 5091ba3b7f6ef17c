"""The conversion of the official files, and the table that comes of it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nasengine.errors import DataError, NasengineError, SettingError
from search_spaces import _nasbench101_conversion as module
from search_spaces._nasbench101 import Cell
from search_spaces._nasbench101_conversion import columns, convert_records
from search_spaces._nasbench101_published import Spent, Table, Training, read_table
from search_spaces._nasbench101_records import MEASURED
from search_spaces.nasbench101 import NASBench101
from tests.search_spaces.tfrecords import CELLS, CONV3, Row, chain, plain_records, trainings, write

REAL = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101"
SPACE = NASBench101()


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"needs {name} of NAS-Bench-101 beside the repository")
    return REAL / name


def table_of(folder: Path, rows: Sequence[Row]) -> Table:
    convert_records(write(folder / "source.tfrecord", rows), folder / "table.parquet")
    return read_table(folder / "table.parquet")


def flat(found: Training) -> list[float]:
    parts = (found.halfway, found.final)
    values = [[part.training_time, part.train_accuracy, part.validation_accuracy, part.test_accuracy] for part in parts]
    return [*values[0], *values[1], found.total_time]


def sentence_of(caught: pytest.ExceptionInfo[NasengineError]) -> str:
    sentence = str(caught.value)
    assert sentence.endswith(".") and not re.search(r"[.?!] [A-Z]|\n", sentence), sentence
    return sentence


def refused(rows: Sequence[Row], folder: Path) -> str:
    """The sentence with which rows are refused, after which nothing is left."""
    source = write(folder / "source.tfrecord", rows)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError) as caught:
        convert_records(source, folder / "table.parquet")
    assert sorted(folder.iterdir()) == before
    return sentence_of(caught)


# Every number


@pytest.mark.parametrize("budgets", [(108,), (4, 12, 36, 108)])
@pytest.mark.parametrize("group", [1, 2, 2**15])
def test_every_query_is_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budgets: tuple[int, ...], group: int
) -> None:
    monkeypatch.setattr(module, "_ROWS", group)
    rows = trainings(budgets=budgets)
    table = table_of(tmp_path, rows)
    assert len(table) == len(CELLS) and table.epochs == budgets
    assert pq.ParquetFile(table.path).num_row_groups == (len(CELLS) if group == 1 else 3 if group == 2 else 1)
    for place, row in enumerate(rows):
        repeat, at = 1 + place % 3, row.epochs
        found = table.query(row.cell, epochs=at, repeat=repeat)
        assert flat(found) == row.measured
        assert (found.epochs, found.repeat, found.parameters) == (at, repeat, row.parameters)
        assert found == table.query(row.cell.module_hash, epochs=at, repeat=repeat)
        assert found.module_hash == row.cell.module_hash and table.cell(found.module_hash) == row.cell
        three = np.array([other.measured for other in rows[place - repeat + 1 : place - repeat + 4]])
        mean = table.query(row.cell, epochs=at)
        assert mean.repeat == "mean" and flat(mean) == pytest.approx(three.mean(axis=0), abs=1e-12)
        for number, name in enumerate(MEASURED):
            assert table.values(name, at)[table.row(row.cell)].tolist() == three[:, number].tolist()


def test_every_query_of_the_official_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 6)
    source = real("sample.tfrecord")
    convert_records(source, tmp_path / "table.parquet")
    table = read_table(tmp_path / "table.parquet")
    seen: dict[str, int] = {}
    for listed, doubles, parameters in plain_records(source):
        seen[listed[0]] = seen.get(listed[0], 0) + 1
        found = table.query(listed[0], epochs=listed[1], repeat=seen[listed[0]])
        assert flat(found) == [*doubles[6:10], *doubles[11:]] and found.parameters == parameters
        cell = table.cell(listed[0])
        assert "".join(str(entry) for row in cell.matrix for entry in row) == listed[2]
        assert ",".join(cell.operations) == listed[3] and cell.module_hash == listed[0]
    assert seen and set(seen.values()) == {3} and len(table) == len(seen)


def test_means_are_the_published_ones(tmp_path: Path) -> None:
    convert_records(real("sample.tfrecord"), tmp_path / "table.parquet")
    benchmark = SPACE.benchmark(tmp_path / "table.parquet")
    table, agreed = read_table(tmp_path / "table.parquet"), 0
    for row in pq.read_table(real("official_means.parquet")).to_pylist():
        if row["epochs"] == 108 and row["hash"] in {table.hash(place) for place in range(len(table))}:
            known = benchmark(SPACE.architecture(table.cell(row["hash"])))
            assert known["cifar10_validation_accuracy"] == pytest.approx(row["validation_accuracy"], abs=1e-6)
            assert known["cifar10_test_accuracy"] == pytest.approx(row["test_accuracy"], abs=1e-6)
            agreed += 1
    assert agreed > 0


def test_the_order_of_the_records_does_not_matter(tmp_path: Path) -> None:
    rows = trainings(budgets=(4, 108))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = table_of(tmp_path / "a", rows)
    order = sorted(range(len(rows)), key=lambda place: (place % 3, random.Random(place).random()))  # repeats in order
    other = table_of(tmp_path / "b", [rows[place] for place in order])
    read = [pq.read_table(table.path).replace_schema_metadata() for table in (one, other)]
    assert read[0].equals(read[1]) and one.hashes.tolist() == sorted(one.hashes.tolist())
    assert one.facts["sha256"] != other.facts["sha256"] and one.facts["cells"] == other.facts["cells"] == 5


def test_isomorphs_are_one_cell(tmp_path: Path) -> None:
    cell = Cell([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], ["input", CONV3, "maxpool3x3", "output"])
    swapped = cell.renumbered([0, 2, 1, 3])
    table = table_of(tmp_path, [Row(cell), Row(swapped, total_time=7.0), Row(cell)])
    assert len(table) == 1 and table.cell(cell.module_hash) == cell
    assert table.query(swapped, repeat=2).total_time == 7.0 != table.query(cell, repeat=1).total_time


def test_the_file_is_plain_parquet(tmp_path: Path) -> None:
    rows = trainings(CELLS[1:2], (36,))
    table = table_of(tmp_path, rows)
    (found,) = pq.read_table(table.path).to_pylist()
    assert list(found) == ["hash", "adjacency", "operations", "parameters", *columns([36])]
    assert found["hash"].hex() == CELLS[1].module_hash and found["adjacency"] == "010001000"
    assert found["operations"] == "input,conv3x3-bn-relu,output"
    assert found["36_epochs/repeat_2/final_test_accuracy"] == rows[1].final[3]
    assert (table.path.stat().st_mode & 0o777) == (tmp_path / "source.tfrecord").stat().st_mode & 0o777


# What a query costs


def test_queries_count_what_training_would_cost(tmp_path: Path) -> None:
    rows = trainings(CELLS[:2], (4, 108))
    table = table_of(tmp_path, rows)
    assert table.spent == Spent(0.0, 0, 0)
    table.query(CELLS[0], epochs=4, repeat=2)
    assert table.spent == Spent(rows[1].final[0], 4, 1)
    table.query(CELLS[1], repeat=3)
    assert table.spent == Spent(rows[1].final[0] + rows[-1].final[0], 4 + 108, 2)
    table.query(CELLS[1], repeat=3)
    assert table.spent.trainings == 3 and table.spent.epochs == 4 + 2 * 108
    before = table.spent.seconds
    table.query(CELLS[1])
    assert table.spent.trainings == 6 and table.spent.epochs == 4 + 5 * 108
    assert table.spent.seconds == pytest.approx(before + sum(row.final[0] for row in rows[-3:]), abs=1e-9)
    spent = Spent(**vars(table.spent))
    table.look_up(CELLS[1])
    with pytest.raises(SettingError):
        table.query(CELLS[1], epochs=12)
    table.values("total_time")
    assert table.spent == spent


def test_a_repeat_is_drawn_by_a_generator(tmp_path: Path) -> None:
    table = table_of(tmp_path, trainings(CELLS[:1]))

    def drawn(seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        return [table.query(CELLS[0], repeat="random", generator=generator).repeat for _ in range(60)]

    counts = [drawn(0).count(repeat) for repeat in (1, 2, 3)]
    assert min(counts) >= 10 and sum(counts) == 60
    assert drawn(0) == drawn(0) != drawn(1)
    with pytest.raises(SettingError, match=r"must be drawn by a torch.Generator, but got none; give generator=\.$"):
        table.query(CELLS[0], repeat="random")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"epochs": 12}, "The epochs must be a budget of TABLE, 4, 108, but are 12."),
        ({"repeat": 0}, "A repeat must be 1, 2, 3 or mean, but got 0."),
        ({"repeat": 4}, "A repeat must be 1, 2, 3 or mean, but got 4."),
        ({"repeat": "median"}, "A repeat must be 1, 2, 3 or mean, but got 'median'."),
        ({"cell": "abc"}, "A hash must have 32 hexadecimal digits, but got 'abc'; give that of a cell."),
        ({"cell": "x" * 32}, f"A hash must have 32 hexadecimal digits, but got '{'x' * 32}'; give that of a cell."),
        ({"cell": CELLS[2]}, "TABLE must have every cell that is asked for, but none of its 2 has the hash "),
        (
            {"cell": "0" * 32},
            f"TABLE must have every cell that is asked for, but none of its 2 has the hash {'0' * 32}; ",
        ),
        ({"cell": "f" * 32}, "TABLE must have every cell that is asked for, but none of its 2 has the hash ffff"),
    ],
)
def test_what_cannot_be_answered(tmp_path: Path, asked: dict[str, Any], told: str) -> None:
    table = table_of(tmp_path, trainings(CELLS[:2], (4, 108)))
    with pytest.raises(NasengineError) as caught:
        table.query(**{"cell": CELLS[0], **asked})
    assert sentence_of(caught).replace(str(table.path), "TABLE").startswith(told)
    with pytest.raises(
        SettingError, match=r"A measure must be one of halfway_training_time, .*, but got 'accuracy'\.$"
    ):
        table.values("accuracy")


# Files that do not have everything


def test_a_cut_between_records_is_found(tmp_path: Path) -> None:
    rows = trainings(CELLS[:3], (4, 108))
    for count in range(1, len(rows)):
        if count % 6 == 0:
            assert len(table_of(tmp_path, rows[:count])) == count // 6
            (tmp_path / "table.parquet").unlink()
        elif count == 3:  # the file of another benchmark, as far as anyone can know
            assert table_of(tmp_path, rows[:count]).epochs == (4,)
            (tmp_path / "table.parquet").unlink()
        else:
            sentence = refused(rows[:count], tmp_path)
            assert f"Record {count} of " in sentence and CELLS[(count - 1) // 6].module_hash in sentence


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (trainings(CELLS[:2], repeats=2), r"Record \d of .* 3 trainings of 108 epochs each, but it has 2 of 108 \("),
        (
            trainings(CELLS[:1], repeats=4) + trainings(CELLS[1:2], repeats=2),
            r"Record [46] of .* 3 trainings of 108 epochs each, but it has [24] of 108 \(",
        ),
        (trainings(CELLS[:2], repeats=4), r"Record \d of .* 3 trainings of 108 epochs each, but it has 4 of 108 \("),
        (
            trainings(CELLS[:1], (4, 108)) + trainings(CELLS[1:2]),
            "Record 9 of .* of 4 and 108 epochs each, but it has 0 of 4 ",
        ),
        (trainings(CELLS[:1], (4, 108)) + trainings(CELLS[1:2], (4, 4)), "Record 12 of .* but it has 6 of 4 "),
    ],
)
@pytest.mark.parametrize("parts", [1, 64])
def test_cells_without_all_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], told: str, parts: int
) -> None:
    monkeypatch.setattr(module, "_PARTS", parts)
    assert re.match(told, refused(rows, tmp_path))


def test_cells_of_two_sizes(tmp_path: Path) -> None:
    rows = [Row(CELLS[1]), Row(CELLS[1], parameters=8), Row(CELLS[1], parameters=9)]
    told = f"Record 2 of .* must have as many parameters as the others of the cell {CELLS[1].module_hash}, but has 8; "
    assert re.match(told, refused(rows, tmp_path))


# Conversions that do not end


def test_a_stopped_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "source.tfrecord", trainings()), tmp_path / "table.parquet"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_records(source, out, stop)
    assert list(tmp_path.iterdir()) == [source]
    convert_records(source, out)
    before, files = out.read_bytes(), sorted(tmp_path.iterdir())
    for name in ("_table", "_grouped", "_write"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, stop)
            convert_records(source, out)
        assert out.read_bytes() == before and sorted(tmp_path.iterdir()) == files


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "source.tfrecord", trainings()), tmp_path / "table.parquet"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_deal", full)
    with pytest.raises(DataError) as caught:
        convert_records(source, out)
    assert sentence_of(caught).endswith("but there is not: No space left on device; choose another.")
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_not_written(tmp_path: Path) -> None:
    source = write(tmp_path / "source.tfrecord", trainings())
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    labels = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"score": [0.5]}), labels)
    told = {
        source: f"must have another file to write than {source}, but both are one; choose another.",
        tmp_path: f"must have a file to write, but {tmp_path} is a directory; give a name in it.",
        other: f"must not replace files of other kinds, but {other} is one; choose another.",
        labels: f"must not replace files of other kinds, but {labels} is one; choose another.",
        tmp_path / "no" / "a.parquet": "a.parquet, but there is not: No such file or directory; choose another.",
    }
    told[tmp_path / ("x" * 300)] = "but there is not: File name too long; choose another."
    before = sorted(tmp_path.iterdir())
    for out, end in told.items():
        with pytest.raises(DataError) as caught:
            convert_records(source, out)
        assert sentence_of(caught).endswith(end)
    with pytest.raises(DataError, match=r"must be readable, but .*gone is not: No such file or directory\.$"):
        convert_records(tmp_path / "gone", tmp_path / "a.parquet")
    assert sorted(tmp_path.iterdir()) == before and other.read_text() == "notes"


def test_a_damaged_table_is_replaced(tmp_path: Path) -> None:
    table = table_of(tmp_path, trainings()).path
    content = table.read_bytes()
    for damaged in (b"", content[:-100], content):
        table.write_bytes(damaged)
        convert_records(tmp_path / "source.tfrecord", table)
        assert table.read_bytes() == content


# As a benchmark of the space


def test_accuracies_of_an_architecture(tmp_path: Path) -> None:
    rows = trainings(budgets=(12, 36))
    benchmark = SPACE.benchmark(table_of(tmp_path, rows).path)
    idle = Cell([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], ["input", CONV3, CONV3, "output"])
    for cell in (chain(CONV3), idle):
        known = benchmark(SPACE.architecture(cell))
        assert list(known) == [
            *("cifar10_test_accuracy", "cifar10_validation_accuracy"),
            *("cifar10_test_accuracy_12_epochs", "cifar10_validation_accuracy_12_epochs"),
        ]
        first, last = ([row for row in rows if row.cell == chain(CONV3) and row.epochs == e] for e in (12, 36))
        means = [sum(row.final[place] for row in part) / 3 for part in (last, first) for place in (3, 2)]
        assert list(known.values()) == pytest.approx(means, abs=1e-12)
    with pytest.raises(DataError, match="must have every cell that is asked for, but none of its 5 has the hash"):
        benchmark(SPACE.architecture(chain(CONV3, CONV3)))


def test_cells_in_their_published_form() -> None:
    assert SPACE.read("010001000 input,conv3x3-bn-relu,output") == SPACE.architecture(chain(CONV3))
    assert SPACE.read(" 0100 input,output\n") == SPACE.architecture(chain())
    for text, told in {
        "0100 input,conv3x3-bn-relu,output": "The matrix of a cell must be 3 rows of 3 digits 0 and 1 for its 3 oper",
        "0120 input,output": "The matrix of a cell must be 2 rows of 2 digits 0 and 1 for its 2 oper",
        "0100 input": "The matrix of a cell must be 1 rows of 1 digits",
    }.items():
        with pytest.raises(NasengineError) as caught:
            SPACE.read(text)
        assert sentence_of(caught).startswith(told)
