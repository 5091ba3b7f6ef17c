"""`nasengine benchmark convert`, `query` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasengine.wording import counted

if TYPE_CHECKING:
    from nasengine.benchmark import Info

EPILOG = "Example: nasengine benchmark convert nasbench_only108.tfrecord --out nasbench101.parquet"
QUERY_EPILOG = (
    "Example: nasengine benchmark query nasbench101.parquet --genotype '111-01-1 conv3x3-bn-relu,maxpool3x3' --repeat 2"
)
INFO_EPILOG = "Example: nasengine benchmark info nasbench101.parquet"

app = typer.Typer(epilog=EPILOG, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def benchmark(context: typer.Context) -> None:
    """Convert and look up the published results of a space."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


Table = Annotated[Path, typer.Argument(help="What convert wrote.", metavar="TABLE", show_default=False)]
SpaceName = Annotated[str, typer.Option("--space", help="The space of the results.", metavar="NAME")]


@app.command("convert", epilog=EPILOG)
def convert(
    source: Annotated[
        Path, typer.Argument(help="The official file, such as a .tfrecord.", metavar="SOURCE", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The table to write.", metavar="FILE", show_default=False)],
    space: SpaceName = "nasbench101",
) -> None:
    """Make a small table of the official file, once.

    Every record is checked on the way. The table opens at once; it is written whole or not at all.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from nasengine import benchmark
    from nasengine.errors import InterruptedRun

    console = Console()
    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(bar_width=20), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {source.name}", total=None)

        def progress(done: int, total: int) -> None:
            writing = done >= total
            bar.update(task, completed=done, total=total, description=f"writing {out.name}" if writing else None)

        try:
            found = benchmark.convert(source, out, space=space, progress=progress)
        except KeyboardInterrupt:
            raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    _print_info(found)


@app.command("query", epilog=QUERY_EPILOG)
def query(
    table: Table,
    genotype: Annotated[
        str | None,
        typer.Option(help="The architecture, in a text form of its space.", metavar="TEXT", show_default=False),
    ] = None,
    hash: Annotated[
        str | None, typer.Option(help="Or the hash under which it is published.", metavar="HEX", show_default=False)
    ] = None,
    matrix: Annotated[
        str | None,
        typer.Option(help="Or a matrix row by row, with --operations.", metavar="DIGITS", show_default=False),
    ] = None,
    operations: Annotated[
        str | None, typer.Option(help="Those of all vertices: input,...,output.", metavar="LIST", show_default=False)
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="The budget.  [default: the largest one]", metavar="INTEGER", show_default=False),
    ] = None,
    repeat: Annotated[str, typer.Option(help="Which training: 1, 2, ... or mean.", metavar="WHICH")] = "mean",
    space: SpaceName = "nasbench101",
) -> None:
    """Say what is known of an architecture."""
    from nasengine import benchmark
    from nasengine.errors import SettingError

    if (matrix is None) != (operations is None) or (matrix is not None and genotype is not None):
        raise SettingError("A matrix must come with --operations and without --genotype: give both, or none.")
    text = genotype if matrix is None else f"{matrix} {operations}"
    found = benchmark.query(table, space=space, genotype=text, hash=hash, epochs=_whole(epochs), repeat=repeat)
    which = "mean of all trainings" if found.repeat == "mean" else f"training {found.repeat}"
    typer.echo(f"{found.text}\nhash: {found.hash}\nparameters: {found.parameters:,}")
    typer.echo(f"{counted(found.epochs, 'epoch')}, {which}\n")
    names = list(found.evaluations["final"])
    typer.echo(" " * 8 + "".join(f"{name.replace('_', ' '):>21}" for name in names))
    for when, measures in found.evaluations.items():
        typer.echo(f"{when:<8}" + "".join(f"{_value(name, measures[name]):>21}" for name in names))


@app.command("info", epilog=INFO_EPILOG)
def info(table: Table, space: SpaceName = "nasbench101") -> None:
    """Say what a table has."""
    from nasengine import benchmark

    _print_info(benchmark.info(table, space=space))


def _print_info(found: Info) -> None:
    from rich.filesize import decimal

    typer.echo(f"{found.path}: {decimal(found.size)}")
    official = f"the official {found.published}" if found.published else "not one of the official files"
    typer.echo(f"source: {found.source}, {decimal(found.source_size)}, sha256 {found.sha256} ({official})")
    *fewer, most = found.epochs
    budgets = " and ".join([*map(str, fewer), counted(most, "epoch")])
    typer.echo(f"architectures: {found.architectures:,} of {found.of:,}")
    typer.echo(f"trainings: {found.trainings:,}, {found.repeats} of an architecture and budget; {budgets}")
    for name, best in found.best.items():
        where = f"after {counted(max(found.epochs), 'epoch')}: {best.value:.3%}, {best.text} ({best.hash})"
        typer.echo(f"best mean {name.replace('_', ' ')} {where}")


def _whole(text: str | None) -> int | None:
    from nasengine.errors import SettingError

    try:
        return None if text is None else int(text)
    except ValueError:
        raise SettingError(f"The epochs must be a whole number, but got {text!r}.") from None


def _value(name: str, value: float) -> str:
    return f"{value:.3%}" if name.endswith("accuracy") else f"{value:,.1f} s" if name.endswith("time") else f"{value:g}"
