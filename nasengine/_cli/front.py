"""`nasengine front`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasengine._cli.options import Config, MaxFlops, MaxLatency, MaxMemory, MaxParams, Seed, Set, assignments

EPILOG = "Example: nasengine front results/ranked --against parameters,multiply_adds"

_Ranking = Annotated[
    Path | None,
    typer.Argument(
        help="The directory of a ranking or a pipeline, or a saved predictor.", metavar="RANKING", show_default=False
    ),
]
_Against = Annotated[
    str | None,
    typer.Option(
        help="Costs to weigh against the score: parameters, multiply_adds, latency, memory.  [default: parameters]",
        metavar="NAMES",
        show_default=False,
    ),
]
_Population = Annotated[
    str | None,
    typer.Option(help="Architectures a generation.  [default: 100]", metavar="INTEGER", show_default=False),
]
_Generations = Annotated[
    str | None, typer.Option(help="Generations.  [default: 40]", metavar="INTEGER", show_default=False)
]
_OutOfFront = Annotated[
    Path | None,
    typer.Option(help="Where to write.  [default: front/ in RANKING]", metavar="DIR", show_default=False),
]


def front(
    ranking: _Ranking = None,
    against: _Against = None,
    population: _Population = None,
    generations: _Generations = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    seed: Seed = None,
    set_: Set = None,
    config: Config = None,
    out: _OutOfFront = None,
) -> None:
    """Search the best trade-offs between guessed score and cost.

    NSGA-II over the architectures of the space of the predictor. Writes those that no other one beats in both into
    front.csv, the cheapest first, and draws them. Costs are those of the network that is to be trained: that of the
    pipeline, else as 'nasengine train' makes it by default, or with the settings final.NAME.
    """
    from nasengine import pareto
    from nasengine._cli.progress import StageProgress, print_front
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun

    flags = {
        "front.against": against,
        "front.population": population,
        "front.generations": generations,
        "front.max_params": max_params,
        "front.max_flops": max_flops,
        "front.max_latency": max_latency,
        "front.max_memory": max_memory,
        "front.seed": seed,
    }
    stored = read_config(config, "front") if config is not None else None
    try:
        with StageProgress() as progress:
            result = pareto.front(ranking, settings=assignments(set_, flags), config=stored, out=out, progress=progress)
    except KeyboardInterrupt:
        raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    print_front(result)
