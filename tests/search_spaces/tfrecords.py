"""The official file format of NAS-Bench-101, written in the plainest way: nothing here is shared with the reader."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces._nasbench101 import OPERATIONS, Cell

CONV3, CONV1, POOL = OPERATIONS


def chain(*operations: str) -> Cell:
    count = len(operations) + 2
    matrix = [[int(y == x + 1) for y in range(count)] for x in range(count)]
    return Cell(matrix, ["input", *operations, "output"])


CELLS = (
    chain(),
    chain(CONV3),
    chain(POOL, CONV1),
    Cell([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], ["input", CONV1, POOL, "output"]),
    chain(CONV3, CONV3, POOL, CONV1, CONV3),
)


def crc32c(data: bytes) -> int:
    """Bit by bit, as in RFC 3720, B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_shifted(value) for value in range(256)]


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def double(number: int, value: float) -> bytes:
    return varint(8 * number + 1) + struct.pack("<d", value)


def content(number: int, data: bytes) -> bytes:
    return varint(8 * number + 2) + varint(len(data)) + data


def evaluation(values: Sequence[float], more: bytes = b"") -> bytes:
    return b"".join(double(number, value) for number, value in enumerate(values, start=1)) + more


def metrics(evaluations: Iterable[bytes], parameters: int, total_time: float, more: bytes = b"") -> bytes:
    parts = [content(1, message) for message in evaluations]
    return b"".join(parts) + varint(16) + varint(parameters) + double(3, total_time) + more


@dataclass(frozen=True)
class Row:
    """One training; `halfway` and `final` are seconds and three shares."""

    cell: Cell
    epochs: int = 108
    parameters: int = 6_315_018
    halfway: tuple[float, ...] = (500.5, 0.75, 0.7, 0.65)
    final: tuple[float, ...] = (1000.25, 1.0, 0.9, 0.85)
    total_time: float = 1100.125
    changes: dict[int, Any] = field(default_factory=dict)  # of entries in the JSON list
    payload: bytes = b""  # in place of the usual metrics

    def data(self) -> bytes:
        start = (0.0, 0.0, 0.1, 0.1, 0.1)
        evaluations = [start, (self.epochs / 2, *self.halfway), (self.epochs, *self.final)]
        payload = self.payload or metrics(map(evaluation, evaluations), self.parameters, self.total_time)
        listed = [
            self.cell.module_hash,
            self.epochs,
            "".join(str(entry) for row in self.cell.matrix for entry in row),
            ",".join(self.cell.operations),
            base64.b64encode(payload).decode(),
        ]
        for place, value in self.changes.items():
            listed[place] = value
        return json.dumps(listed).encode()

    @property
    def measured(self) -> list[float]:
        return [*self.halfway, *self.final, self.total_time]


def trainings(cells: Sequence[Cell] = CELLS, budgets: Sequence[int] = (108,), repeats: int = 3) -> list[Row]:
    """All of some cells, every number another one."""
    rows = []
    for cell in cells:
        for epochs in budgets:
            for _ in range(repeats):
                shift = len(rows) / 1000
                halfway, final = (
                    (500.5 + shift, 0.5, 0.45 + shift / 2, 0.4),
                    (900 + shift, 0.9, 0.8 + shift, 0.7 + shift),
                )
                parameters = 10 ** (1 + 2 * (cells.index(cell) % 5))
                rows.append(Row(cell, epochs, parameters, halfway, final, 1000 + shift))
    return rows


def write(path: Path, rows: Iterable[Row | bytes]) -> Path:
    """A file of rows, or of data as they are."""
    path.write_bytes(b"".join(frame(row if isinstance(row, bytes) else row.data()) for row in rows))
    return path


def plain_records(path: Path) -> list[tuple[list[Any], list[float], int]]:
    """The JSON lists of a file, the 16 doubles and the parameters, by the fixed places that the official file has."""
    data, start, found = path.read_bytes(), 0, []
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        listed = json.loads(data[start + 12 : start + 12 + length])
        payload = base64.b64decode(listed[4])
        places = [47 * part + 3 + 9 * number for part in range(3) for number in range(5)]
        doubles = [struct.unpack_from("<d", payload, place)[0] for place in [*places, len(payload) - 8]]
        parameters = sum((byte & 0x7F) << 7 * shift for shift, byte in enumerate(payload[142:-9]))
        found.append((listed, doubles, parameters))
        start += 16 + length
    return found
