"""`nasengine search`."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from typing import Annotated

import typer

from nasengine._cli import options
from nasengine._cli.options import (
    Benchmark,
    Config,
    Data,
    Device,
    DryRun,
    MaxFlops,
    MaxLatency,
    MaxMemory,
    MaxParams,
    Out,
    Precision,
    Resume,
    Seed,
    Set,
    StepMemory,
    TrainPortion,
    assignments,
)

EPILOG = "Example: nasengine search --space darts --algo darts --set algo.order=second --data cifar10:PATH --epochs 50"


def search(
    space: Annotated[
        str | None, typer.Option(help="A search space.  [default: darts]", metavar="NAME", show_default=False)
    ] = None,
    algo: Annotated[
        str | None, typer.Option(help="A search algorithm.  [default: rarts]", metavar="NAME", show_default=False)
    ] = None,
    data: Data = None,
    epochs: Annotated[str | None, options.epochs(50)] = None,
    batch_size: Annotated[str | None, options.batch_size(64)] = None,
    train_portion: TrainPortion = None,
    benchmark: Benchmark = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    step_memory: StepMemory = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    set_: Set = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Search an architecture for your data.

    Writes everything into one directory, results/<data>/<space>/<algo>/seed-<n>, from which the search goes on when it
    was stopped (--resume), the found network is trained (nasengine train) and looked at (nasengine show). A finished
    search finds another network under other limits: --resume --max-flops N. Limits hold for the network that is
    derived; the loss of the search heeds those on parameters and multiply-adds, not those on latency and memory. Under
    torchrun several processes divide every batch: torchrun --nproc-per-node 4 -m nasengine search ...
    """
    from nasengine import searching
    from nasengine._cli.progress import Progress, print_run
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun
    from nasengine.parallel import start
    from nasengine.search_plan import plan_search

    flags = {
        "search.epochs": epochs,
        "search.batch_size": batch_size,
        "search.seed": seed,
        "search.device": device,
        "search.precision": precision,
        "data.train_portion": train_portion,
        "search.benchmark": benchmark,
        "search.max_params": max_params,
        "search.max_flops": max_flops,
        "search.max_latency": max_latency,
        "search.max_memory": max_memory,
        "search.step_memory": step_memory,
    }
    settings = assignments(set_, flags)
    ranks = start()
    stored = read_config(config, "search", ranks) if config is not None else None
    if dry_run:
        if not ranks.first:
            return
        from nasengine._cli.dry_run import search_cost

        search_cost(plan_search(space=space, algorithm=algo, task=data, settings=settings, config=stored))
        return
    progress = Progress()
    try:
        with progress if ranks.first else nullcontext():
            result = searching.search(
                space, algo, data, settings=settings, config=stored, out=out, resume=resume, observer=progress
            )
    except InterruptedRun as error:
        again = f"nasengine search --out {shlex.quote(str(progress.path))} --resume"
        raise InterruptedRun(f"{str(error).rstrip('.')}: go on with '{again}'.") from None
    if not ranks.first:
        return
    print_run(result.path)
    typer.echo(f"\nNext: nasengine train {shlex.quote(str(result.path))}\n  --dry-run says how long that takes")
