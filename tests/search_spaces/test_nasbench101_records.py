"""The reader of the official files: what it reads, and that nothing damaged passes."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasengine.errors import DataError
from search_spaces import _nasbench101_records as module
from search_spaces._nasbench101 import EDGES, OPERATIONS, Cell
from search_spaces._nasbench101_cells import Cells, enumerate_cells
from search_spaces._nasbench101_metrics import MetricsError, parse_metrics
from search_spaces._nasbench101_records import RECORD, Records, read_records
from tests.search_spaces.tfrecords import (
    CELLS,
    CONV1,
    CONV3,
    POOL,
    Row,
    chain,
    content,
    crc32c,
    double,
    evaluation,
    frame,
    metrics,
    plain_records,
    trainings,
    varint,
    write,
)

SAMPLE = Path(__file__).resolve().parents[2] / "../shared/data/nasbench101/sample.tfrecord"
START, HALF, END = (0.0, 0.0, 0.1, 0.1, 0.1), (54.0, 500.5, 0.75, 0.7, 0.65), (108.0, 1000.25, 1.0, 0.9, 0.85)


def read(path: Path) -> Records:
    return np.concatenate([np.zeros(0, RECORD), *read_records(path)])


def refused(path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(DataError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.endswith(".") and not re.search(r"[.?!] [A-Z]|\n", sentence), sentence
    return sentence


def number_of(sentence: str) -> int:
    found = re.match(r"Record ([\d,]+) of ", sentence)
    assert found, sentence
    return int(found[1].replace(",", ""))


def cell_of(record: Any) -> Cell:
    count = int(record["vertices"])
    edges = {edge for bit, edge in enumerate(EDGES) if int(record["edges"]) >> bit & 1}
    matrix = [[int((x, y) in edges) for y in range(count)] for x in range(count)]
    return Cell(matrix, ["input", *(OPERATIONS[code] for code in record["operations"][: count - 2]), "output"])


def test_the_writer_of_the_tests_has_the_published_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


# What is read


def test_every_number_of_every_record(tmp_path: Path) -> None:
    rows = trainings(budgets=(4, 108))
    found = read(write(tmp_path / "a.tfrecord", rows))
    assert len(found) == len(rows) == 30
    for number, (record, row) in enumerate(zip(found, rows, strict=True), start=1):
        assert record["number"] == number and record["epochs"] == row.epochs
        assert record["hash"].tobytes().hex() == row.cell.module_hash and cell_of(record) == row.cell
        assert record["parameters"] == row.parameters and record["measured"].tolist() == row.measured
    assert {row.parameters for row in rows} == {10, 1000, 10**5, 10**7, 10**9}  # varints of every length


@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs sample.tfrecord of NAS-Bench-101 beside the repository")
def test_official_records() -> None:
    found = read(SAMPLE)
    assert len(found) == 60
    for record, (listed, doubles, parameters) in zip(found, plain_records(SAMPLE), strict=True):
        assert [record["hash"].tobytes().hex(), record["epochs"]] == listed[:2]
        cell = cell_of(record)
        assert "".join(str(entry) for row in cell.matrix for entry in row) == listed[2]
        assert ",".join(cell.operations) == listed[3]
        assert record["parameters"] == parameters and record["measured"].tolist() == [*doubles[6:10], *doubles[11:]]


@pytest.mark.parametrize("block", [1, 7, 500, 10_000])
def test_blocks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    path = write(tmp_path / "a.tfrecord", trainings(CELLS[:3]))
    whole = read(path)
    monkeypatch.setattr(module, "_BLOCK", block)
    assert np.array_equal(read(path), whole)
    done: list[tuple[int, int]] = []
    seen: list[bytes] = []
    list(read_records(path, lambda *args: done.append(args), seen.append))
    size = path.stat().st_size
    assert b"".join(seen) == path.read_bytes()
    assert done == [(min(size, block * (n + 1)), size) for n in range(-(-size // block))]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**15)
    once = b"".join(frame(row.data()) for row in trainings())
    peaks = []
    for times in (20, 20, 200):
        path = tmp_path / f"{times}.tfrecord"
        path.write_bytes(once * times)
        tracemalloc.start()
        count = sum(map(len, read_records(path)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == 15 * times
    assert peaks[2] < 1.2 * peaks[1] < path.stat().st_size


def test_cells_come_pruned(tmp_path: Path) -> None:
    idle = Cell([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], ["input", POOL, CONV3, "output"])
    wide = [[int(y == x + 1 or (x, y) == (0, 7)) for y in range(9)] for x in range(9)]
    wide[6][7] = 0  # of nine vertices, 1 to 6 lead nowhere
    large = Cell(wide, ["input", *[POOL] * 6, CONV3, "output"])
    first, second = read(write(tmp_path / "a.tfrecord", [Row(idle), Row(large)]))
    assert cell_of(first) == chain(CONV3) == cell_of(second) and first["hash"].tolist() == second["hash"].tolist()


def test_many_hashes_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, calls = enumerate_cells(5), []

    def load() -> Cells:
        calls.append(1)
        return cells

    monkeypatch.setattr(module, "load_cells", load)
    monkeypatch.setattr(module, "_MANY", 3)
    monkeypatch.setattr(module, "_BLOCK", 2500)
    ways = Cell([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], ["input", CONV1, CONV3, "output"])
    swapped = ways.renumbered([0, 2, 1, 3])  # both are in use; one of them is not the published one
    published = [cells.cell(row) for row in range(0, len(cells), 50)]
    rows = [Row(cell) for cell in [*published, ways, swapped, *CELLS]]
    found = read(write(tmp_path / "a.tfrecord", rows))
    assert calls == [1]
    assert [record["hash"].tobytes().hex() for record in found] == [row.cell.module_hash for row in rows]
    for wrong in (published[-1], swapped):
        bad = Row(wrong, changes={0: "f" * 32})
        sentence = refused(write(tmp_path / "b.tfrecord", [*rows, bad]))
        assert f"Record {len(rows) + 1} of " in sentence and wrong.module_hash in sentence


# Protocol buffers


UNKNOWN = b"".join([varint(8 * 9), varint(300), varint(8 * 10 + 5), b"abcd", double(11, 1.0), content(12, b"xyz")])


@pytest.mark.parametrize(
    "payload",
    [
        metrics([evaluation(v, content(6, b"/path")) for v in (START, HALF, END)], 77, 9.5),
        metrics([evaluation(v, content(6, b"p" * 200)) for v in (START, HALF, END)], 77, 9.5),
        metrics([evaluation(START, content(6, b"")), evaluation(HALF), evaluation(END, UNKNOWN)], 77, 9.5),
        metrics(map(evaluation, (START, HALF, END)), 77, 9.5, UNKNOWN),
        UNKNOWN + metrics(map(evaluation, (START, HALF, END)), 77, 9.5),
        double(3, 9.5) + varint(16) + varint(77) + b"".join(content(1, evaluation(v)) for v in (START, HALF, END)),
        metrics(
            [b"".join(double(n, v[n - 1]) for n in (3, 5, 1, 2, 4)) for v in (START, HALF, END)], 77, 9.5
        ),  # other order
        metrics(
            map(evaluation, (START, HALF, END)), 5, 1.0, varint(16) + varint(77) + double(3, 9.5)
        ),  # the last counts
        metrics(map(evaluation, (START, HALF, END)), 77, 9.5, varint(8 * 3) + varint(4)),  # another wire type: unknown
        metrics([evaluation(v, double(2, v[1])) for v in (START, HALF, END)], 77, 9.5),
        metrics(map(evaluation, (START, HALF, END)), 0, 9.5).replace(
            varint(16) + varint(0), varint(16) + b"\xcd\x80\x00"
        ),  # a varint that is longer than it must be
    ],
)
def test_any_layout_is_read(payload: bytes) -> None:
    usual = metrics(map(evaluation, (START, END, HALF)), 1_000_000, 1.5)
    found = parse_metrics([usual, payload, usual, payload])
    assert found.parameters.tolist() == [1_000_000, 77, 1_000_000, 77]
    assert found.evaluations[1].tolist() == found.evaluations[3].tolist() == [[*START], [*HALF], [*END]]
    assert found.evaluations[0].tolist() == found.evaluations[2].tolist() == [[*START], [*END], [*HALF]]
    assert found.total_time.tolist() == [1.5, 9.5, 1.5, 9.5]


def test_layouts_of_one_length_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    payloads, wanted = [], []
    for _ in range(300):
        order = rng.permutation(5)
        values = rng.normal(size=(3, 5))
        values.reshape(-1)[rng.integers(15)] = rng.choice([np.inf, -np.nan, 0.0, 5e-324])
        messages = [b"".join(double(int(n) + 1, row[n]) for n in order) for row in values]
        payloads.append(metrics(messages, int(rng.integers(2**21, 2**28)), 1.0))
        wanted.append(values)
    assert len(set(map(len, payloads))) == 1
    np.testing.assert_array_equal(parse_metrics(payloads).evaluations, wanted)
    single = [parse_metrics([payload]).evaluations[0] for payload in payloads]
    np.testing.assert_array_equal(single, wanted)


def test_numbers_of_other_lengths_are_another_layout() -> None:
    """Both payloads have the tags 0x10, 0x78 and 0x19 at the same places, the second one as values."""
    front = b"".join(content(1, evaluation(values)) for values in (START, HALF, END)) + double(3, 9.5)
    one = front + varint(16) + varint(1000) + b"\x78\x01" + double(3, 1.5)
    other = front + varint(16) + varint(5) + b"\x78\x78" + b"\x70\x19" + 4 * b"\x78\x01"
    assert len(one) == len(other)
    for payloads in ([one, other], [other, one]):
        found = parse_metrics(payloads)
        assert dict(zip(found.parameters.tolist(), found.total_time.tolist(), strict=True)) == {1000: 1.5, 5: 9.5}


@pytest.mark.parametrize(
    ("payload", "has"),
    [
        (b"", "has 0 evaluations"),
        (metrics(map(evaluation, (START, END)), 77, 9.5), "has 2 evaluations"),
        (metrics(map(evaluation, (START, HALF, HALF, END)), 77, 9.5), "has 4 evaluations"),
        (metrics(map(evaluation, (START, HALF[:4], END)), 77, 9.5), "has no test_accuracy"),
        (metrics([evaluation(START), b"", evaluation(END)], 77, 9.5), "has no current_epoch"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5)[:-9], "has no total_time"),
        (b"".join(content(1, evaluation(v)) for v in (START, HALF, END)) + double(3, 1.0), "no trainable_parameters"),
        (metrics(map(evaluation, (START, HALF, END)), 2**64 - 5, 9.5), "has a number of parameters below 0"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5)[:-1], "is no whole protocol buffer"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5) + b"\x0a", "is no whole protocol buffer"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5) + b"\x0a\x05abc", "is no whole protocol buffer"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5) + b"\x0b", "is no whole protocol buffer"),  # a group
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5) + b"\x00\x00", "is no whole protocol buffer"),
        (metrics(map(evaluation, (START, HALF, END)), 77, 9.5) + b"\x78" + b"\xff" * 11, "is no whole protocol buffer"),
    ],
)
def test_what_is_no_metrics(tmp_path: Path, payload: bytes, has: str) -> None:
    usual = metrics(map(evaluation, (START, END, HALF)), 1_000_000, 1.5)
    with pytest.raises(MetricsError, match=has) as caught:
        parse_metrics([usual, usual, payload])
    assert caught.value.place == 2
    if payload:
        path = write(tmp_path / "a.tfrecord", [Row(CELLS[1]), Row(CELLS[1], payload=payload)])
        assert has in (sentence := refused(path)) and number_of(sentence) == 2


# What is refused


@pytest.fixture
def six(tmp_path: Path) -> Path:
    return write(tmp_path / "six.tfrecord", trainings(CELLS[2:4]))


def ends(path: Path) -> list[int]:
    """Where the records end."""
    data, found = path.read_bytes(), [0]
    while found[-1] < len(data):
        found.append(found[-1] + 16 + int.from_bytes(data[found[-1] : found[-1] + 8], "little"))
    return found[1:]


@pytest.mark.parametrize(("mask", "step"), [(0x01, 5), (0x80, 7), (0xFF, 11)])
def test_a_flipped_byte_is_found_in_its_record(six: Path, mask: int, step: int) -> None:
    data, last = six.read_bytes(), ends(six)
    heads = [end + place for end in (0, *last[:-1]) for place in (*range(12), -4, -3, -2, -1)]
    for place in sorted({*range(0, len(data), step), *(place % len(data) for place in heads)}):
        six.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        assert number_of(refused(six)) == 1 + sum(end <= place for end in last), place


def test_a_cut_is_found_in_its_record(six: Path) -> None:
    data, last = six.read_bytes(), ends(six)
    for length in sorted({*range(1, len(data), 5), *last, *(end - 1 for end in last), *(end + 1 for end in last[:-1])}):
        six.write_bytes(data[:length])
        if length in last:
            assert len(read(six)) == last.index(length) + 1
        else:
            sentence = refused(six)
            assert number_of(sentence) == 1 + sum(end <= length for end in last)
            assert "the file is cut " in sentence


def test_the_first_of_two_problems_is_told(tmp_path: Path) -> None:
    rows = [Row(CELLS[1]), Row(CELLS[1], epochs=7), Row(CELLS[1])]
    path = write(tmp_path / "a.tfrecord", rows)
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        assert number_of(refused(path)) == 2


HASH = CELLS[1].module_hash


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"", "be a JSON list of a hash, epochs, a matrix, operations, and metrics in base64, but is ''; get"),
        (b"{}", "be a JSON list"),
        (b"[1, 2, 3, 4, 5]", "be a JSON list"),
        (b"\xff\xfe", "be a JSON list"),
        (b"[" * 100_000, "be a JSON list"),
        (Row(CELLS[1]).data() + b"]", "be a JSON list"),
        (Row(CELLS[1]).data()[:-1] + b', "more"]', "be a JSON list"),
        (Row(CELLS[1], changes={0: HASH.upper()}), "be a JSON list"),
        (Row(CELLS[1], changes={0: HASH[:-1]}), "be a JSON list"),
        (Row(CELLS[1], changes={0: HASH + "\n"}), "be a JSON list"),
        (Row(CELLS[1], changes={0: None}), "be a JSON list"),
        (Row(CELLS[1], changes={1: 108.0}), "be a JSON list"),
        (Row(CELLS[1], changes={1: True}), "be a JSON list"),
        (Row(CELLS[1], changes={1: 10**30}), "have one of the budgets 4, 12, 36, 108, but has 10000000000000000000000"),
        (Row(CELLS[1], changes={1: 107}), "have one of the budgets 4, 12, 36, 108, but has 107 epochs; get"),
        (Row(CELLS[1], changes={2: [[0, 1], [0, 0]]}), "be a JSON list"),
        (Row(CELLS[1], changes={2: "01000100"}), "have a cell, but has none (The matrix of a cell must be 3 rows of 3"),
        (Row(CELLS[1], changes={2: "010001002"}), "have a cell, but has none (The matrix of a cell must be 3 rows of"),
        (Row(CELLS[1], changes={2: "000001000"}), "have a cell, but has none (The output of a cell must be connected"),
        (Row(CELLS[1], changes={2: "010001100"}), "have a cell, but has none (An edge of a cell must lead to a later"),
        (Row(CELLS[1], changes={2: ""}), "have a cell, but has none (The matrix"),
        (Row(CELLS[1], changes={3: ["input"]}), "be a JSON list"),
        (Row(CELLS[1], changes={3: "input,conv5x5,output"}), "have a cell, but has none (The operations between"),
        (Row(CELLS[1], changes={3: "input,output"}), "have a cell, but has none (The matrix of a cell must be 2 rows"),
        (Row(CELLS[1], changes={3: ""}), "have a cell, but has none (The matrix of a cell must be 1 rows"),
        (
            Row(CELLS[1], changes={3: "input,maxpool3x3,output"}),
            f"have the hash of its cell, 53cee4.*, but has {HASH};",
        ),
        (Row(CELLS[1], changes={0: CELLS[0].module_hash}), f"have the hash of its cell, {HASH}, but has "),
        (Row(CELLS[1], changes={4: "Ci0J*AAA"}), "be a JSON list"),
        (Row(CELLS[1], changes={4: "Ci0JAAA"}), "be a JSON list"),
        (Row(CELLS[1], changes={4: 7}), "be a JSON list"),
        (Row(CELLS[1], changes={4: "*" + json.loads(Row(CELLS[1]).data())[4]}), "be a JSON list"),
        (Row(CELLS[1], changes={4: ""}), "have the published metrics, but it has 0 evaluations; get"),
        (Row(CELLS[1], parameters=0), "have a number of parameters from 1 to 2.31 - 1, but has others; get"),
        (Row(CELLS[1], parameters=2**31), "have a number of parameters from 1 to 2.31 - 1, but has others; get"),
        (Row(CELLS[1], final=(1.0, 1.0, 1.001, 0.9)), "have accuracies from 0 to 1, but has others; get"),
        (Row(CELLS[1], halfway=(1.0, 1.0, 0.9, float("nan"))), "have accuracies from 0 to 1, but has others; get"),
        (Row(CELLS[1], final=(-1.0, 1.0, 0.9, 0.9)), "have finite times from 0, but has others; get"),
        (Row(CELLS[1], total_time=float("inf")), "have finite times from 0, but has others; get"),
        (
            Row(CELLS[1], payload=metrics(map(evaluation, (START, END, HALF)), 77, 9.5)),
            "have evaluations of rising epochs from 0, but has others; get",
        ),
    ],
)
def test_records_of_another_form(tmp_path: Path, row: Row | bytes, told: str) -> None:
    path = write(tmp_path / "a.tfrecord", [*trainings(CELLS[:1]), row, Row(CELLS[0])])
    sentence = refused(path)
    assert number_of(sentence) == 4 and sentence.endswith("; get the official file of NAS-Bench-101.")
    assert re.search(re.escape(told).replace(r"\.\*", ".*").replace(r"2\.31", "2.31"), sentence), sentence


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "Record 1 of PATH must be whole, with its two checksums, but the file is empty; get the official"),
        (b"PAR1 and what comes then", "but that of its length differs, or is no TFRecord file; get the official"),
        (b"short", "but the file is cut 5 bytes after its beginning, or is no TFRecord file; get the official"),
        (frame(b"x" * (2**20 + 1)), "but it is far too long, or is no TFRecord file; get the official"),
        (json.dumps([1, 2]).encode() * 9, "but that of its length differs, or is no TFRecord file; get the official"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert told in refused(path).replace(str(path), "PATH")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").endswith("gone is not: No such file or directory.")
    assert refused(tmp_path).endswith("is not: Is a directory.")
