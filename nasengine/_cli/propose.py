"""`nasengine propose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasengine._cli.options import Set, assignments
from nasengine.wording import counted

EPILOG = "Example: nasengine propose results/digits/darts/rarts/seed-0 --count 64"


def propose(
    run: Annotated[Path, typer.Argument(help="The directory of a finished search.", metavar="RUN")],
    count: Annotated[
        str | None, typer.Option(help="How many.  [default: 64]", metavar="INTEGER", show_default=False)
    ] = None,
    set_: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write.  [default: RUN/candidates]", metavar="DIR", show_default=False),
    ] = None,
) -> None:
    """Take candidates from a finished search.

    They are what it derives, samples of its distribution, and neighbours, within its limits; where a supernet shrinks,
    the front of its evolution. Writes candidates.csv, which 'nasengine collect --architectures' labels and
    'nasengine rank --candidates' ranks.
    """
    from nasengine import proposing
    from nasengine.errors import InterruptedRun

    try:
        result = proposing.propose(run, settings=assignments(set_, {"propose.count": count}), out=out)
    except KeyboardInterrupt:
        raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    counts = ", ".join(f"{number} {name}" for name, number in result.candidates["source"].value_counts().items())
    typer.echo(f"{counted(len(result.candidates), 'candidate')}: {counts}\nin {result.path}: candidates.csv, run.json")
