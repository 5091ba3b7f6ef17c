"""Seconds and memory of many cells of NAS-Bench-101 as arrays for predictors and as tables.

python benchmarks/nasbench101_encoding.py
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np

from nasengine.task import Shapes
from search_spaces.nasbench101 import NASBench101

SPACE, SHAPES = NASBench101(), Shapes((3, 32, 32), 10)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(what: str, count: int) -> tuple[float, float]:
    """Seconds, and MiB at most beyond those of the cells; in a process of its own, where nothing was used before."""
    import pandas  # noqa: F401

    cells = SPACE.everything(SHAPES)
    cells = cells[np.random.default_rng(0).permutation(len(cells))[:count]]
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: SPACE.encode(cells, SHAPES),
        "to_table": lambda: SPACE.to_table(cells, SHAPES),
    }
    if what == "encode a list":
        made = list(cells)
        calls[what] = lambda: SPACE.encode(made, SHAPES)
    elif what == "from_table":
        table = SPACE.to_table(cells, SHAPES)
        calls[what] = lambda: SPACE.from_table(table)
    before, start = peak(), time.perf_counter()
    calls[what]()
    return time.perf_counter() - start, peak() - before


def main() -> None:
    SPACE.everything(SHAPES)
    for what in ("encode", "encode a list", "to_table", "from_table"):
        for count in (1, 4_000, 40_000, 400_000):
            if what != "encode a list" or count < 400_000:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, memory = pool.apply(measure, (what, count))
                print(f"{what} of {count:,} cells: {seconds:.3f} s, {memory:,.0f} MiB more at most", flush=True)


if __name__ == "__main__":
    main()
