"""How well measured latencies repeat, and how well the table of operations predicts them.

    python benchmarks/latency.py                      # on one thread, some three minutes
    python benchmarks/latency.py onnxruntime          # exports every network first

Three networks of three spaces are measured ten times, alternating; the spread is that of the ten medians. Then the
latencies of random networks that the table was not fitted to are predicted.
"""

from __future__ import annotations

import statistics
import sys

from nasengine.config import LatencySettings, resolve_space
from nasengine.profiling import profile
from nasengine.runtimes import Bench
from nasengine.seeding import generator
from nasengine.task import Shapes

DIGITS, CIFAR = Shapes((1, 8, 8), 10), Shapes((3, 32, 32), 10)
SPACES = {
    "darts": ({"channels": "8", "layers": "3"}, DIGITS),
    "ofa": ({}, DIGITS),
    "transformer": ({}, CIFAR),
}
REPEATS = 10


def main(runtime: str) -> None:
    settings = [f"latency.runtime={runtime}", "latency.device=cpu"]
    medians: dict[str, list[float]] = {name: [] for name in SPACES}
    benches = {
        name: Bench(LatencySettings(runtime=runtime, device="cpu"), shapes) for name, (_, shapes) in SPACES.items()
    }  # type: ignore[arg-type]
    networks = {}
    for name, (changes, shapes) in SPACES.items():
        space = resolve_space(name, {}, changes)
        networks[name] = space.build(space.sample(space.choices(shapes), generator(0)), shapes)
    for _ in range(REPEATS):
        for name, network in networks.items():
            medians[name].append(benches[name].networks([network])[0].seconds)
    print(f"{REPEATS} medians, alternating, on {benches['darts'].machine()['device']}, {runtime}, 1 thread")
    for name, found in medians.items():
        middle = statistics.median(found)
        spread = (max(found) - min(found)) / middle
        worst = max(abs(value / middle - 1) for value in found)
        print(
            f"{name:12} {1000 * middle:8.3f} ms  largest less smallest {spread:6.1%}  farthest from the middle "
            f"{worst:6.1%}"
        )
    print("the table, on 8 networks that it was not fitted to")
    for name, (changes, shapes) in SPACES.items():
        more = [f"space.{key}={value}" for key, value in changes.items()]
        found_ = profile(space=name, task=shapes, settings=[*settings, *more]).calibration
        assert found_ is not None
        print(
            f"{name:12} median error {found_.median_error:6.1%}  worst {found_.worst_error:6.1%}  "
            f"Kendall tau {found_.kendall_tau:.3f}"
        )


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["torch"]))
