"""The rows of a run as curves in TensorBoard."""

from __future__ import annotations

from typing import Any

from nasengine.run_directory import Row, Run, saving
from nasengine.shared_run import ranks_of


class Curves:
    """TensorBoard events of the rows, when TensorBoard is installed."""

    def __init__(self, run: Run, step: int) -> None:
        self._path, self._writer = run.path, None
        if not ranks_of(run).first:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        make: Any = SummaryWriter  # typed in some versions only
        self._writer = make(str(run.path), purge_step=step)

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, row: Row) -> None:
        if self._writer is None:
            return
        with saving(self._path / "events.out.tfevents"):
            for name, value in row.items():
                if not isinstance(value, str) and name != "epoch":
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
