"""`nasengine compare`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from nasengine._cli.options import Config, Data, Device, DryRun, Out, Precision, Resume, Seed, Set, Workers, assignments

EPILOG = (
    "Example: nasengine compare --space darts --algo rarts,darts,darts:order=second,random --data digits --seeds 3 "
    "--budget 20m --train-epochs 30 --set space.channels=8 --set space.layers=3 --set final.channels=8 "
    "--set final.layers=4"
)


Space = Annotated[str | None, typer.Option(help="The space.  [default: darts]", metavar="NAME", show_default=False)]
Algorithms = Annotated[
    str | None,
    typer.Option(
        help=(
            "Two or more, with settings behind a colon: darts:order=second:alphas.lr=0.01,rarts.  "
            "[default: darts,rarts,random]"
        ),
        metavar="NAMES",
        show_default=False,
    ),
]
Seeds = Annotated[
    str | None, typer.Option(help="Of each algorithm.  [default: 3]", metavar="INTEGER", show_default=False)
]
Time = Annotated[
    str | None,
    typer.Option(help="Time of one search: 90s, 20m, 1.5h.  [default: 20m]", metavar="DURATION", show_default=False),
]
TrainEpochs = Annotated[
    str | None,
    typer.Option(help="Passes of a final training.  [default: 600]", metavar="INTEGER", show_default=False),
]


def compare(
    space: Space = None,
    algo: Algorithms = None,
    data: Data = None,
    seeds: Seeds = None,
    budget: Time = None,
    train_epochs: TrainEpochs = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    set_: Set = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    workers: Workers = "1",
    dry_run: DryRun = False,
) -> None:
    """Compare algorithms at equal cost, over several seeds.

    Every algorithm gets as many epochs of search as fit the budget, measured on this machine. What they find is trained
    in one way and tested once; all seeds are reported. Settings of the searches' network are space.NAME, those of the
    final one final.NAME.
    """
    from nasengine import comparing
    from nasengine._cli.compare_progress import CompareProgress, print_comparison
    from nasengine.compare_plan import plan_compare
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun
    from nasengine.workers import checked_workers

    flags = {"train.epochs": train_epochs, "search.seed": seed, "search.device": device, "search.precision": precision}
    settings = assignments(set_, flags)
    stored = read_config(config, "compare") if config is not None else None
    number = checked_workers(workers)
    if dry_run:
        from nasengine._cli.dry_run import comparing_cost

        plan = plan_compare(
            space=space, algorithms=algo, task=data, seeds=seeds, budget=budget, settings=settings, config=stored
        )
        comparing_cost(plan, number)
        return
    progress = CompareProgress(alone=number == 1)
    try:
        with progress:
            result = comparing.compare(
                space,
                algo,
                data,
                seeds=seeds,
                budget=budget,
                settings=settings,
                config=stored,
                out=out,
                resume=resume,
                workers=number,
                observer=progress,
            )
    except InterruptedRun as error:
        more = "" if number == 1 else f" --workers {shlex.quote(workers)}"
        again = f"nasengine compare --out {shlex.quote(str(progress.path))}{more} --resume"
        raise InterruptedRun(f"{str(error).rstrip('.')}: go on with '{again}'.") from None
    print_comparison(result)
