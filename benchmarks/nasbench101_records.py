"""The official file format of NAS-Bench-101: records/s of reading and of converting, and of opening what comes out.

python benchmarks/nasbench101_records.py [--records 300000] [--budgets 108]

The file is synthetic: enumerated cells, three trainings of every budget, random accuracies. Each part is measured in a
process of its own, with the most memory that it had, and also with a quarter of the records, to see what grows.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import google_crc32c
import numpy as np

from search_spaces._nasbench101_cells import load_cells
from search_spaces._nasbench101_conversion import convert_records
from search_spaces._nasbench101_published import read_table
from search_spaces._nasbench101_records import read_records

REPEATS = 3


def _frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checks = (google_crc32c.value(part) for part in (length, data))
    head, foot = (struct.pack("<I", ((c >> 15 | c << 17) + 0xA282EAD8) & 0xFFFFFFFF) for c in checks)
    return length + head + data + foot


def _metrics(epochs: int, parameters: int, rng: np.random.Generator) -> bytes:
    """A ModelMetrics with accuracies k / 9984 and times in float32, as published."""
    shares = rng.integers(998, 9985, (3, 3)) / 9984
    seconds = float(np.float32(10 * epochs * rng.uniform(0.5, 2)))
    content = b""
    for part in range(3):
        values = (epochs * part / 2, seconds * part / 2, *shares[part])
        fields = (struct.pack("<Bd", 8 * number + 1, value) for number, value in enumerate(values, start=1))
        message = b"".join(fields)
        content += bytes([0x0A, len(message)]) + message
    digits = [parameters >> 7 * place & 0x7F | 0x80 for place in range(4)]
    digits[-1] &= 0x7F
    return content + bytes([0x10, *digits]) + struct.pack("<Bd", 0x19, seconds)


def write_records(path: Path, records: int, budgets: list[int]) -> int:
    """Writes about so many records and gives how many."""
    cells, rng = load_cells(), np.random.default_rng(0)
    count = min(len(cells), records // (REPEATS * len(budgets)))
    rows = sorted(rng.choice(len(cells), count, replace=False), key=lambda row: cells.hashes[row].tobytes())
    with path.open("wb") as file:
        for row in rows:
            cell, parameters = cells.cell(int(row)), int(rng.integers(2**21, 2**25))
            matrix = "".join(str(entry) for line in cell.matrix for entry in line)
            start = [cells.hashes[row].tobytes().hex()]
            for epochs in np.repeat(budgets, REPEATS).tolist():
                metrics = base64.b64encode(_metrics(epochs, parameters, rng)).decode()
                listed = [*start, epochs, matrix, ",".join(cell.operations), metrics]
                file.write(_frame(json.dumps(listed).encode()))
    return count * REPEATS * len(budgets)


def _measured(part: str, source: Path, table: Path) -> None:
    """One part, and what it took."""
    before, start, processor, done = _peak(), time.perf_counter(), time.process_time(), 0
    if part == "read":
        done = sum(map(len, read_records(source)))
    elif part == "convert":
        convert_records(source, table)
    elif part == "open":
        done = len(read_table(table))
    else:
        opened = read_table(table)
        start, processor = time.perf_counter(), time.process_time()
        for row in np.random.default_rng(0).integers(len(opened), size=10_000):
            opened.query(opened.hash(int(row)))
            done += 1
    seconds = time.perf_counter() - start
    processor = time.process_time() - processor
    print(f"{part} {seconds:.6f} {processor:.6f} {done} {before:.0f} {_peak():.0f}")


def _peak() -> float:
    """The most MiB of memory that this process had, without its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Writes the file, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[108])
    parser.add_argument("--measure", nargs=3, metavar=("PART", "SOURCE", "TABLE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        part, source, table = arguments.measure
        _measured(part, Path(source), Path(table))
        return
    for records in (arguments.records // 4, arguments.records):
        with tempfile.TemporaryDirectory() as folder:
            _measure_all(Path(folder), records, arguments.budgets)


def _measure_all(folder: Path, records: int, budgets: list[int]) -> None:
    source, table = folder / "synthetic.tfrecord", folder / "synthetic.parquet"
    count = write_records(source, records, budgets)
    print(f"{count:,} records of {budgets} epochs, {source.stat().st_size / 1e6:,.1f} MB")
    for part in ("read", "convert", "open", "query"):
        command = [sys.executable, __file__, "--measure", part, str(source), str(table)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds, processor, done = float(answer[1]), float(answer[2]), int(answer[3]) or count
        rates = f"{done / seconds:,.0f} a second, {done / processor:,.0f} a second of the processor"
        spent = f"{seconds:.3f} s, {rates if part != 'open' else f'{done:,} cells'}"
        print(f"  {part}: {spent}; at most {answer[5]} MiB, {answer[4]} MiB before")
    size = table.stat().st_size
    print(f"  table: {size / 1e6:,.1f} MB, {size / source.stat().st_size:.1%} of the source")


if __name__ == "__main__":
    main()
