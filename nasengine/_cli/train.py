"""`nasengine train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from nasengine._cli import options
from nasengine._cli.options import Config, Data, Device, DryRun, Out, Precision, Resume, Seed, Set, assignments

EPILOG = (
    "Example: nasengine train results/digits/darts/rarts/seed-0 --epochs 40 --set space.channels=16 "
    "--set space.layers=5"
)


def train(
    run: Annotated[
        Path | None, typer.Argument(help="The directory of a finished search.", metavar="RUN", show_default=False)
    ] = None,
    genotype: Annotated[
        str | None,
        typer.Option(help="In place of RUN: Genotype(normal=[...], ...).", metavar="TEXT", show_default=False),
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="In place of RUN: an architecture.txt.", metavar="FILE", show_default=False)
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="The space of the text.  [default: darts, or that of RUN]", metavar="NAME", show_default=False
        ),
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the search's weights: fine-tune, not from scratch.")
    ] = False,
    data: Data = None,
    epochs: Annotated[str | None, options.epochs(600)] = None,
    batch_size: Annotated[str | None, options.batch_size(96)] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    set_: Set = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train the found network from scratch, and test it once.

    The defaults are the published ones, made for CIFAR-10 and a GPU: 600 epochs, 20 cells, 36 channels. Writes into
    RUN/final.
    """
    from nasengine import training
    from nasengine._cli.progress import Progress, print_result
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun
    from nasengine.train_plan import plan_training

    flags = {
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "train.device": device,
        "train.precision": precision,
    }
    settings = [*assignments(set_, flags), *(["train.inherit=true"] if inherit else [])]
    stored = read_config(config, "train") if config is not None else None
    asked: dict[str, Any] = {"genotype": genotype, "architecture": architecture, "space": space, "task": data}
    asked |= {"settings": settings, "config": stored}
    if dry_run:
        from nasengine._cli.dry_run import training_cost

        training_cost(plan_training(run, **asked))
        return
    progress = Progress()
    try:
        with progress:
            result = training.train(run, **asked, out=out, resume=resume, observer=progress)
    except InterruptedRun as error:
        again = f"nasengine train --out {shlex.quote(str(progress.path))} --resume"
        raise InterruptedRun(f"{str(error).rstrip('.')}: go on with '{again}'.") from None
    print_result(result.path, result.record)
