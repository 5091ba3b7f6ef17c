"""`nasengine show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: nasengine show results/digits/darts/rarts/seed-0 --out cell.png"


def show(
    run: Annotated[
        Path | None, typer.Argument(help="The directory of a search or training.", metavar="RUN", show_default=False)
    ] = None,
    genotype: Annotated[
        str | None,
        typer.Option(help="In place of RUN: Genotype(normal=[...], ...).", metavar="TEXT", show_default=False),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="The space of the text.  [default: darts]", metavar="NAME", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the cells into a .svg or .png file.", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Draw the cells of a run, and print the genotype."""
    from nasengine import listing
    from nasengine._cli.progress import print_run
    from nasengine.drawing import text

    shown = listing.show(run, genotype=genotype, space=space, out=out)
    if run is not None:
        print_run(run)
    else:
        typer.echo(f"{text(shown.graphs)}\n\n{shown.text}")
    for file in shown.files:
        typer.echo(f"drawn: {file}")
