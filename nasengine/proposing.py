"""The `propose` verb: candidates of a finished search, to be labelled, ranked and trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.candidates import TABLE
from nasengine.config import AnyTask, ProposeSettings, resolve_settings, split_assignments
from nasengine.errors import RunError
from nasengine.profiling import Quantity, costs
from nasengine.run_directory import Run, check_free, read_record
from nasengine.searching import SearchJob, open_search
from nasengine.settings import plain

if TYPE_CHECKING:
    import pandas as pd

ORIGIN: Final = "source"


@dataclass(frozen=True, eq=False)
class ProposeResult:
    """What was proposed.

    Attributes:
        path: the run directory.
        candidates: one row each: its source, the columns of `Space.to_table`, parameters and multiply-adds of the
            derived network in its final form.
        record: all of run.json.
    """

    path: Path
    candidates: pd.DataFrame
    record: dict[str, Any]


def propose(
    run: Path | str,
    *,
    count: int | None = None,
    task: AnyTask | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
) -> ProposeResult:
    """Takes candidates from a search's own distribution: what it derives, samples of it, neighbours, within its limits.

    Of an algorithm that shrinks a supernet they are the front of its evolution.

    Args:
        run: directory of a finished search.
        count: how many; propose.count by default.
        task: the data of the search again, where they were a Task.
        settings: texts such as "propose.count=100".
        config: plain values as `record["config"]` of an earlier proposal has them.
        out: the run directory; RUN/candidates by default.

    Raises:
        NasengineError: see nasengine.errors.
    """
    given = split_assignments([*settings, *([f"propose.count={count}"] if count is not None else [])], ("propose",))
    numbers = resolve_settings(ProposeSettings, (config or {}).get("propose", {}), given["propose"], "propose")
    path, start = Path(out) if out is not None else Path(run) / "candidates", time.perf_counter()
    _check_search(Path(run))
    check_free(path, "propose")
    job = open_search(run, task)
    record = read_record(Path(run))
    resolved = {"propose": plain(numbers), "search": str(Path(run).resolve())}
    resolved |= {name: record["config"][name] for name in ("space", "data")}  # for whoever labels the candidates
    with Run.start(path, "propose", resolved, {"search": record["id"]}) as directory:
        try:
            table = _table(job, numbers.count)
            directory.write_text(TABLE, table.to_csv(index=False, lineterminator="\n"))
            seconds = round(time.perf_counter() - start, 1)
            result = {"candidates": len(table), **table[ORIGIN].value_counts().to_dict(), "seconds": seconds}
            directory.update({"status": "finished", "seconds": seconds, "result": result})
        except BaseException:
            directory.discard([TABLE])
            raise
        return ProposeResult(path, table, directory.record)


def _table(job: SearchJob, count: int) -> pd.DataFrame:
    import pandas as pd

    candidates = job.propose(count)
    architectures = [candidate.architecture for candidate in candidates]
    described = job.space.to_table(architectures, job.task.shapes)
    costs = pd.DataFrame(_costs(job, architectures))
    own = described.drop(columns=[name for name in (ORIGIN, *costs) if name in described])
    origins = pd.Series([candidate.origin for candidate in candidates], name=ORIGIN)
    return pd.concat([origins, own, costs], axis=1)


def _costs(job: SearchJob, architectures: list[Architecture]) -> dict[str, NDArray[np.float64]]:
    """Parameters and multiply-adds, and what else the search limits, of the networks to be trained."""
    what: list[Quantity] = ["parameters", "multiply_adds"]
    what += ["latency"] if job.limits.latency else []
    what += ["memory"] if job.limits.memory else []
    found = costs(job.final, job.task.shapes, architectures, what, job.settings.latency)
    return {name: values if name == "latency" else values.astype(np.int64) for name, values in found.items()}


def _check_search(path: Path) -> None:
    record = read_record(path)
    if record["verb"] != "search" or record["status"] != "finished":
        state = (
            f"one of 'nasengine {record['verb']}'" if record["verb"] != "search" else f"one that is {record['status']}"
        )
        raise RunError(
            f"Candidates must come from a finished search, but {path} holds {state}; go on with the search, or name "
            "another."
        )
