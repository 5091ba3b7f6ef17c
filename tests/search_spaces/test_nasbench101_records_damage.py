"""Converted tables that are cut, damaged or of others."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nasengine.errors import DataError
from search_spaces._nasbench101_conversion import sealed
from search_spaces._nasbench101_published import read_table
from tests.search_spaces.test_nasbench101_records_table import flat, table_of
from tests.search_spaces.tfrecords import CELLS, crc32c, trainings


def opened(path: Path) -> str:
    """The sentence with which a file is refused, or an empty text."""
    try:
        read_table(path)
    except DataError as error:
        sentence = str(error)
        assert sentence.endswith(".") and not re.search(r"[.?!] [A-Z]|\n", sentence), sentence
        return sentence.replace(str(path), "PATH")
    return ""


def test_cut_tables(tmp_path: Path) -> None:
    path = table_of(tmp_path, trainings()).path
    data = path.read_bytes()
    for length in {0, 1, 4, 7, 8, 12, len(data) - 1, *range(0, len(data), 97)}:
        path.write_bytes(data[:length])
        assert opened(path) == (
            "A table of NAS-Bench-101 must be a whole parquet file, but PATH is damaged; convert the official file "
            "again by 'nasengine benchmark convert'."
        )


def test_damaged_pages_never_give_other_numbers(tmp_path: Path) -> None:
    rows = trainings(CELLS[:3])
    table = table_of(tmp_path, rows)
    data = table.path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    wanted = {row.cell: [flat(table.look_up(row.cell, repeat=n)) for n in (1, 2, 3)] for row in rows}
    found = 0
    for place in range(4, footer, 23):
        table.path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            other = read_table(table.path)
            for cell, values in wanted.items():
                assert [flat(other.look_up(cell, repeat=n)) for n in (1, 2, 3)] == values
                assert other.cell(cell.module_hash) == cell
        except DataError as error:
            assert "is damaged; convert the official file again" in str(error)
            found += 1
    assert found > 0.4 * (footer / 23)  # the rest are headers of pages, whose sizes alone matter


def test_other_tables(tmp_path: Path) -> None:
    table = table_of(tmp_path, trainings())
    read, path = pq.read_table(table.path), tmp_path / "other.parquet"
    facts = {name: value for name, value in table.facts.items() if name != "size"}

    def told(content: pa.Table, metadata: bytes | None) -> str:
        pq.write_table(content.replace_schema_metadata({} if metadata is None else {b"nasengine": metadata}), path)
        return opened(path)

    foreign = "A table of NAS-Bench-101 must be a converted one, but PATH is another; convert the official file again"
    damaged = "A table of NAS-Bench-101 must be a whole parquet file, but PATH is damaged; convert"
    assert told(read, sealed(facts)) == ""
    assert told(read, None).startswith(foreign) and told(read, b"{}").startswith(foreign)
    assert told(read, sealed(facts).replace(b"5", b"6")).startswith(foreign)
    assert told(read, sealed({**facts, "format": "else"})).startswith(foreign)
    assert told(read, sealed({**facts, "version": 2})).startswith(
        "A table of NAS-Bench-101 must be of version 1, but PATH is of 2; convert"
    )
    assert told(read, sealed({"format": "nasbench101-table"})).startswith(damaged)
    assert told(read, sealed({**facts, "cells": 6})).startswith(damaged)
    assert told(read, sealed({**facts, "epochs": [4]})).startswith(damaged)
    assert told(read.drop_columns(["parameters"]), sealed(facts)).startswith(damaged)
    assert told(read.take([1, 0, 2, 3, 4]), sealed(facts)).startswith(damaged)
    assert told(read.take([0, 0, 2, 3, 4]), sealed(facts)).startswith(damaged)
    (tmp_path / "text").write_text("hash,accuracy\n")
    assert opened(tmp_path / "text").startswith(damaged)
    assert opened(tmp_path / "gone").endswith("must be a readable file, but PATH is not: No such file or directory.")
    assert opened(tmp_path).endswith("must be a readable file, but PATH is not: Is a directory.")
    assert opened(tmp_path / ("x" * 300)).endswith("must be a readable file, but PATH is not: File name too long.")


def test_the_seal_is_the_checksum_of_the_facts() -> None:
    crc, _, text = sealed({"a": 1}).partition(b" ")
    assert text == b'{"a": 1}' and int(crc, 16) == crc32c(text)
