"""`nasengine`: the verbs, and how errors end."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from nasengine._cli import (
    benchmark,
    collect,
    compare,
    export,
    front,
    profile,
    propose,
    rank,
    report,
    search,
    show,
    train,
)
from nasengine._cli import list as list_
from nasengine._cli import run as run_

_STOPPED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(
    name="nasengine",
    help="Differentiable neural architecture search: search a space, look at the cell, train the network.",
    epilog=(
        "Start with: nasengine search --space darts --algo rarts --epochs 8 --set space.channels=8 "
        "--set space.layers=3 --set algo.alphas.lr=0.01   (handwritten digits, no download, a few minutes)"
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", epilog=run_.EPILOG)(run_.run)
app.command("search", epilog=search.EPILOG)(search.search)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("propose", epilog=propose.EPILOG)(propose.propose)
app.command("collect", epilog=collect.EPILOG)(collect.collect)
app.command("rank", epilog=rank.EPILOG)(rank.rank)
app.command("front", epilog=front.EPILOG)(front.front)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("export", epilog=export.EPILOG)(export.export)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("profile", epilog=profile.EPILOG)(profile.profile)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("list", epilog=list_.EPILOG)(list_.list)
app.add_typer(benchmark.app, name="benchmark")


def _version(wanted: bool) -> None:
    if wanted:
        from nasengine import __version__

        typer.echo(f"nasengine {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand != "search" and "WORLD_SIZE" in os.environ:
        from nasengine.parallel import require_one_process

        require_one_process(f"nasengine {context.invoked_subcommand}")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and gives the exit code: 0, 2 for bad input, 130 when interrupted."""
    from nasengine.errors import NasengineError

    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given or ["--help"], prog_name="nasengine", standalone_mode=False)
    except NasengineError as error:
        if not (error.shared and _follows()):
            typer.echo(f"nasengine: {error}", err=True)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = _STOPPED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if _follows():
            return int(getattr(error, "exit_code", 2))
        said = error.format_message().rstrip(".").replace(". Did you mean", ": did you mean")
        typer.echo(f"nasengine: {said}{'' if said.endswith('?') else '.'}", err=True)
        return int(getattr(error, "exit_code", 2))
    if code == _STOPPED and not _follows():
        typer.echo(
            "nasengine: Stopped: give the same command again, with --resume if it has that and its directory is there.",
            err=True,
        )
    return int(code or 0)


def _follows() -> bool:
    """Whether another process of torchrun tells what all of them have to say."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def run() -> None:
    """The console script."""
    sys.exit(main())
