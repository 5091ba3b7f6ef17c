"""`nasengine rank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasengine._cli.options import Config, Seed, Set, assignments

EPILOG = "Example: nasengine rank --space nasbench101 --labels labels.csv --top 20 --next 50"

_SpaceOfLabels = Annotated[
    str | None,
    typer.Option(
        help="The space of the labels.  [default: that of the collection]", metavar="NAME", show_default=False
    ),
]
_LabelsFile = Annotated[
    Path | None,
    typer.Option(
        help="Labelled architectures: CSV or parquet, or what 'nasengine collect' wrote.",
        metavar="FILE",
        show_default=False,
    ),
]
_ScoreColumn = Annotated[
    str | None,
    typer.Option(
        help="The column of the scores, higher is better.  [default: score, or the only one with numbers]",
        metavar="COLUMN",
        show_default=False,
    ),
]
_PredictorName = Annotated[
    str | None,
    typer.Option(
        help="What guesses; 'nasengine list' names all.  [default: gaussian-process]",
        metavar="NAME",
        show_default=False,
    ),
]
_Candidates = Annotated[
    Path | None,
    typer.Option(
        help="Rank these architectures: CSV or parquet.  [default: all of the space]",
        metavar="FILE",
        show_default=False,
    ),
]
_Top = Annotated[
    str | None,
    typer.Option(help="How many in ranking.csv, or all.  [default: 20]", metavar="INTEGER", show_default=False),
]
_Next = Annotated[
    str | None,
    typer.Option("--next", help="Propose so many architectures to label next.", metavar="INTEGER", show_default=False),
]
_OutOfRanking = Annotated[
    Path | None,
    typer.Option(help="Where to write.  [default: results/SPACE/rank]", metavar="DIR", show_default=False),
]
_NoEvaluate = Annotated[bool, typer.Option("--no-evaluate", help="Hold no labels out to judge the predictor.")]
_DataOfLabels = Annotated[
    str | None,
    typer.Option(
        help="The data of the labels, as in collect.  [default: those of the collection, or 32x32 images]",
        metavar="SPEC",
        show_default=False,
    ),
]


def rank(
    space: _SpaceOfLabels = None,
    labels: _LabelsFile = None,
    score: _ScoreColumn = None,
    predictor: _PredictorName = None,
    candidates: _Candidates = None,
    top: _Top = None,
    next_: _Next = None,
    no_evaluate: _NoEvaluate = False,
    data: _DataOfLabels = None,
    seed: Seed = None,
    set_: Set = None,
    config: Config = None,
    out: _OutOfRanking = None,
) -> None:
    """Rank a space by a predictor that is fitted to a few labels.

    Writes the best candidates into ranking.csv and all of them into ranking.parquet, with what is guessed of their
    scores, how uncertain that is, and the true score where there is a label. Where there are at least 20 labels, parts
    of them are held out to tell how far the ranking can be trusted, and whether more labels would help.
    """
    from nasengine import ranking
    from nasengine._cli.progress import StageProgress, print_ranking
    from nasengine.config import read_config
    from nasengine.errors import InterruptedRun

    flags = {"rank.top": top, "rank.next": next_, "rank.seed": seed}
    settings = [*assignments(set_, flags), *(["rank.evaluate=false"] if no_evaluate else [])]
    stored = read_config(config, "rank") if config is not None else None
    try:
        with StageProgress() as progress:
            result = ranking.rank(
                space,
                labels,
                predictor=predictor,
                score=score,
                candidates=candidates,
                task=data,
                settings=settings,
                config=stored,
                out=out,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    print_ranking(result)
