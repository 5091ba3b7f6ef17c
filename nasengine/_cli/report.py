"""`nasengine report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Example: nasengine report results/digits/darts/rarts/seed-0 results/digits/darts/rarts/seed-1 --out seeds.html"
)

_Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Run directories of any verb, finished or not; several searches are compared.",
        metavar="RUN",
        show_default=False,
    ),
]
_File = Annotated[
    Path | None,
    typer.Option(
        help="The file.  [default: report.html in RUN, or here where there are several]",
        metavar="FILE",
        show_default=False,
    ),
]


def report(runs: _Runs = None, out: _File = None) -> None:
    """Make one HTML file of what runs found, to look at and to send.

    It holds all that it shows, works without a network, and begins with what was found. What a run has not got yet is
    left out.
    """
    from nasengine import reporting

    path = reporting.report(runs or [], out=out)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in a browser")
