"""`nasengine collect`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nasengine._cli import options
from nasengine._cli.options import (
    Config,
    Data,
    Device,
    DryRun,
    Out,
    Resume,
    Seed,
    Set,
    TrainPortion,
    Workers,
    assignments,
)

EPILOG = (
    "Example: nasengine collect --space nasbench101 --count 20 --epochs 20 --train-portion 0.2 --set space.channels=8 "
    "--set space.cells=1"
)


_Space = Annotated[str | None, typer.Option(help="The space.  [default: darts]", metavar="NAME", show_default=False)]
_Count = Annotated[
    str | None, typer.Option(help="How many architectures.  [default: 100]", metavar="INTEGER", show_default=False)
]
_Architectures = Annotated[
    Path | None,
    typer.Option(
        help=(
            "Label these: CSV or parquet, such as the next.csv of a ranking; space and data are those of its run.  "
            "[default: random ones]"
        ),
        metavar="FILE",
        show_default=False,
    ),
]
_Inherit = Annotated[
    Path | None,
    typer.Option(
        help="Train nothing: judge with the weights that architectures share in this search.",
        metavar="RUN",
        show_default=False,
    ),
]


def collect(
    space: _Space = None,
    data: Data = None,
    count: _Count = None,
    architectures: _Architectures = None,
    inherit: _Inherit = None,
    epochs: Annotated[str | None, options.epochs(20)] = None,
    batch_size: Annotated[str | None, options.batch_size(32)] = None,
    train_portion: TrainPortion = None,
    seed: Seed = None,
    device: Device = None,
    set_: Set = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    workers: Workers = "1",
    dry_run: DryRun = False,
) -> None:
    """Label architectures, to fit predictors to their scores.

    They are random ones, or those of --architectures. Each is trained from scratch on a part of the training data and
    judged on the rest of it: the labels are validation scores, and the test set is not touched. A label is a row of
    labels.csv once it is whole; a training that diverged has the score of chance, and fewer epochs than the others.
    With --resume and a larger --count more labels are added, the same as if all were asked for at once.
    """
    from nasengine import collecting
    from nasengine._cli.progress import LabelProgress, print_labels
    from nasengine._cli.work_progress import WorkProgress
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun
    from nasengine.workers import Event, Work

    flags = {
        "collect.count": count,
        "collect.epochs": epochs,
        "collect.batch_size": batch_size,
        "data.train_portion": train_portion,
        "collect.seed": seed,
        "collect.device": device,
    }
    settings = assignments(set_, flags)
    stored = read_config(config, "collect") if config is not None else None
    if dry_run:
        from nasengine._cli.dry_run import collecting_cost

        collecting_cost(
            collecting.plan_collection(
                space, data, architectures=architectures, inherit=inherit, settings=settings, config=stored
            )
        )
        return
    progress, works = LabelProgress(), WorkProgress("label")

    def watch(work: Work, event: Event, done: int, total: int) -> None:
        progress.stop()
        works(work, event, done, total)

    try:
        with progress:
            result = collecting.collect(
                space,
                data,
                architectures=architectures,
                inherit=inherit,
                settings=settings,
                config=stored,
                out=out,
                resume=resume,
                workers=workers,
                observer=progress,
                watch=watch,
            )
    except InterruptedRun as error:
        more = "" if workers == "1" else f" --workers {shlex.quote(workers)}"
        again = f"nasengine collect --out {shlex.quote(str(progress.path))}{more} --resume"
        raise InterruptedRun(f"{str(error).rstrip('.')}: go on with '{again}'.") from None
    finally:
        works.stop()
    print_labels(result.path, result.record)
