"""Seconds and memory of all 423,624 cells of NAS-Bench-101 with their hashes: from nothing, and from the cache.

python benchmarks/nasbench101_enumeration.py
"""

from __future__ import annotations

import os
import resource
import tempfile
import time

from search_spaces._nasbench101_cells import load_cells


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for what in ("from nothing", "from the cache"):
            start = time.perf_counter()
            cells = load_cells()
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{len(cells):,} cells {what}: {seconds:.2f} s, {peak:,.0f} MiB at most")


if __name__ == "__main__":
    main()
