"""`nasengine run`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from nasengine._cli.options import (
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
    Workers,
    assignments,
)

EPILOG = (
    "Example: nasengine run --space darts --algo rarts --data digits --epochs 8 --train-epochs 30 --candidates 64 "
    "--train 4 --workers 2 --set space.channels=8 --set space.layers=3 --set algo.alphas.lr=0.01 "
    "--set final.channels=8 --set final.layers=4"
)


_Space = Annotated[str | None, typer.Option(help="The space.  [default: darts]", metavar="NAME", show_default=False)]
_Algorithm = Annotated[
    str | None, typer.Option(help="The algorithm.  [default: rarts]", metavar="NAME", show_default=False)
]
_Score = Annotated[
    str | None,
    typer.Option(
        help="Scored by inherited weights, or by a training of their own.  [default: inherited]",
        metavar="inherited|training",
        show_default=False,
    ),
]
_Predictor = Annotated[
    str | None,
    typer.Option(help="What ranks all of them.  [default: gaussian-process]", metavar="NAME", show_default=False),
]
_Against = Annotated[
    str | None,
    typer.Option(
        help="Search a front against parameters, multiply_adds, latency, memory, or none.  [default: none]",
        metavar="NAMES",
        show_default=False,
    ),
]
_Export = Annotated[
    str | None,
    typer.Option(
        help="Formats of the winner: pt2, onnx, py, safetensors, or none.  [default: pt2,py,safetensors]",
        metavar="FORMATS",
        show_default=False,
    ),
]


def _number(text: str) -> Any:
    return typer.Option(help=text, metavar="INTEGER", show_default=False)


def run(
    space: _Space = None,
    algo: _Algorithm = None,
    data: Data = None,
    epochs: Annotated[str | None, _number("Passes of the search over its data.  [default: 50]")] = None,
    candidates: Annotated[str | None, _number("Candidates taken from the search.  [default: 64]")] = None,
    labels: Annotated[str | None, _number("How many of them are scored.  [default: 24]")] = None,
    score: _Score = None,
    predictor: _Predictor = None,
    train: Annotated[str | None, _number("How many of the best are trained to the end.  [default: 4]")] = None,
    seeds: Annotated[str | None, _number("Final trainings of each.  [default: 1]")] = None,
    train_epochs: Annotated[str | None, _number("Passes of a final training.  [default: 600]")] = None,
    against: _Against = None,
    export: _Export = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
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
    """Go from a question to a tested, exported network.

    Every stage is a verb of its own that writes below --out, and is left alone where its result stands. The winner is
    chosen by validation; the test set is met once, by the winner alone. Settings of the search's network are
    space.NAME, those of the final one final.NAME.
    """
    from nasengine import pipeline
    from nasengine._cli.run_progress import RunProgress, print_pipeline
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun

    flags = {
        "search.epochs": epochs,
        "propose.count": candidates,
        "run.labels": labels,
        "run.score": score,
        "run.train": train,
        "run.seeds": seeds,
        "run.against": against,
        "run.export": export,
        "train.epochs": train_epochs,
        "search.max_params": max_params,
        "search.max_flops": max_flops,
        "search.max_latency": max_latency,
        "search.max_memory": max_memory,
        "search.seed": seed,
        "search.device": device,
        "search.precision": precision,
    }
    settings = assignments(set_, flags)
    stored = read_config(config, "run") if config is not None else None
    if dry_run:
        from nasengine._cli.dry_run import running_cost
        from nasengine.run_plan import plan_run

        plan = plan_run(space=space, algorithm=algo, task=data, predictor=predictor, settings=settings, config=stored)
        running_cost(plan, workers)
        return
    progress = RunProgress()
    more: dict[str, Any] = {"out": out, "resume": resume, "workers": workers, "observer": progress}
    try:
        with progress:
            result = pipeline.run(space, algo, data, predictor=predictor, settings=settings, config=stored, **more)
    except InterruptedRun as error:
        several = "" if workers == "1" else f" --workers {shlex.quote(workers)}"
        again = f"nasengine run --out {shlex.quote(str(progress.path))}{several} --resume"
        raise InterruptedRun(f"{str(error).rstrip('.')}: go on with '{again}'.") from None
    print_pipeline(result.path, result.record)
