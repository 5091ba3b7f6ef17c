"""The converted table of NAS-Bench-101 as the engine sees it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Literal

from nasengine.architecture import Architecture
from nasengine.benchmark import Best, Info, Known
from search_spaces._nasbench101_published import Table

if TYPE_CHECKING:
    from search_spaces.nasbench101 import NASBench101

CELLS: Final = 423_624
PUBLISHED: Final = {
    "3d64db8180fb1b0207212f9032205064312b6907a3bbc81eabea10db2f5c7e9c": "nasbench_full.tfrecord",
    "4c39c3936e36a85269881d659e44e61a245babcb72cb374eacacf75d0e5f4fd1": "nasbench_only108.tfrecord",
}
"""The SHA-256 of the official files, from the README of google-research/nasbench."""

_BEST = ("validation_accuracy", "test_accuracy")


class TableResults:
    """See `nasengine.benchmark.Results`."""

    def __init__(self, space: NASBench101, table: Table) -> None:
        self._space, self.table = space, table

    def find(self, hash: str) -> Architecture:
        return self._space.architecture(self.table.cell(hash))

    def look_up(self, architecture: Architecture, epochs: int | None, repeat: int | Literal["mean"]) -> Known:
        found = self.table.look_up(self._space.cell(architecture), epochs, repeat)
        return Known(
            architecture=architecture,
            text=self._space.write(architecture),
            hash=found.module_hash,
            parameters=found.parameters,
            epochs=found.epochs,
            repeat=found.repeat,
            evaluations={"half-way": asdict(found.halfway), "final": asdict(found.final)},
        )

    def info(self) -> Info:
        facts = self.table.facts
        return Info(
            path=self.table.path,
            size=facts["size"],
            source=facts["source"],
            source_size=facts["bytes"],
            sha256=facts["sha256"],
            published=PUBLISHED.get(facts["sha256"], ""),
            architectures=len(self.table),
            of=CELLS,
            trainings=facts["records"],
            epochs=self.table.epochs,
            repeats=facts["repeats"],
            best={name: self._best(name) for name in _BEST},
        )

    def _best(self, measure: str) -> Best:
        means = self.table.values(f"final_{measure}").mean(axis=1)
        row = int(means.argmax())
        module_hash = self.table.hash(row)
        return Best(float(means[row]), self._space.write(self.find(module_hash)), module_hash)
