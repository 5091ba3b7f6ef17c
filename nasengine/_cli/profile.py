"""`nasengine profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasengine._cli.options import Set, assignments
from nasengine.wording import counted

if TYPE_CHECKING:
    from nasengine.profiling import ProfileResult

EPILOG = "Example: nasengine profile --space darts --set space.channels=8 --set space.layers=3 --threads 1"
_SHOWN = 12
_ENDS = ("smallest", "largest")

_Run = Annotated[
    Path | None,
    typer.Argument(help="Directory of a search, a training or a pipeline.", metavar="RUN", show_default=False),
]
_Space = Annotated[
    str | None,
    typer.Option(help="A search space, in place of RUN.  [default: darts]", metavar="NAME", show_default=False),
]
_Architecture = Annotated[
    str | None,
    typer.Option(help="An architecture of the space, or a file with it.", metavar="TEXT|FILE", show_default=False),
]
_Data = Annotated[
    str | None,
    typer.Option(
        help="The data of the network, as in train.  [default: those of RUN, or 32x32 images]",
        metavar="SPEC",
        show_default=False,
    ),
]
_Count = Annotated[
    str | None,
    typer.Option(
        help="Networks of the space, where none is named.  [default: 16]", metavar="INTEGER", show_default=False
    ),
]
_Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps or auto.  [default: auto]", metavar="NAME", show_default=False),
]
_Runtime = Annotated[
    str | None, typer.Option(help="torch or onnxruntime.  [default: torch]", metavar="NAME", show_default=False)
]
_Batch = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        "--batch_size",
        help="Inputs a forward pass.  [default: 1]",
        metavar="INTEGER",
        show_default=False,
    ),
]
_Threads = Annotated[
    str | None, typer.Option(help="Threads on a CPU.  [default: 1]", metavar="INTEGER", show_default=False)
]


def profile(
    run: _Run = None,
    space: _Space = None,
    architecture: _Architecture = None,
    data: _Data = None,
    count: _Count = None,
    device: _Device = None,
    runtime: _Runtime = None,
    batch_size: _Batch = None,
    threads: _Threads = None,
    set_: Set = None,
) -> None:
    """Measure latency and memory of networks on your device.

    Of the network of RUN, of one --architecture, or of a whole space: its smallest, its largest and random networks.
    Those also calibrate the table of operations by which --max-latency of a search is kept, and tell how well it
    predicts.
    """
    from nasengine import profiling
    from nasengine._cli.progress import StageProgress
    from nasengine.errors import InterruptedRun, SettingError

    flags = {
        "latency.device": device,
        "latency.runtime": runtime,
        "latency.batch_size": batch_size,
        "latency.threads": threads,
    }
    if count is not None and not count.isdecimal():
        raise SettingError(f"--count must be a whole number, but got {count!r}.")
    try:
        with StageProgress() as progress:
            result = profiling.profile(
                run,
                space=space,
                architecture=architecture,
                task=data,
                settings=assignments(set_, flags),
                count=16 if count is None else int(count),
                progress=progress,
            )
    except KeyboardInterrupt:
        raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    _print(result)


def _print(result: ProfileResult) -> None:
    from nasengine.latency import TRUSTED

    machine = result.machine
    versions = " ".join(f"{name} {number}" for name, number in machine["versions"].items())
    typer.echo(f"{machine['device']}, {machine['runtime']} ({versions}), threads {machine['threads']}", nl=False)
    typer.echo(f", batch size {machine['batch_size']}")
    if result.form:
        typer.echo(f"the network {result.form} (another form by --set final.NAME=VALUE)")
    typer.echo("latency: the floor, which the fastest passes come to again and again; quartiles: of all passes, with")
    typer.echo("what other programs took of the machine, so that the floor lies below them\n")
    typer.echo(
        f"{'latency':>10} {'quartiles':>23} {'by the table':>13} {'bytes':>14} {'parameters':>12} {'multiply-adds':>15}"
    )
    for row, network in enumerate(result.networks):
        name = network.text if len(result.networks) == 1 else (*_ENDS, *[""] * row)[row]
        timing = network.timing
        spread = f"{_ms(timing.low)} - {_ms(timing.high)}"
        predicted = "" if network.predicted is None else _ms(network.predicted)
        typer.echo(
            f"{_ms(timing.seconds):>10} {spread:>23} {predicted:>13} {network.memory:>14,}"
            f" {network.parameters:>12,} {network.multiply_adds:>15,}  {name}".rstrip()
        )
    if len(result.networks) == 1:
        _print_pieces(result)
    if result.calibration is None:
        return
    found = result.calibration
    typer.echo(
        f"\nthe table of operations, on {counted(len(found.checked), 'network')} that it was not fitted to: "
        f"median error {found.median_error:.1%}, worst {found.worst_error:.1%}, Kendall tau {found.kendall_tau:.3f}"
    )
    if not found.trusted:
        typer.echo(f"That is above {TRUSTED:.0%}: latencies are measured end-to-end in place of the table.")


def _print_pieces(result: ProfileResult) -> None:
    total = sum(count * seconds for _, count, seconds in result.pieces)
    where = "" if result.machine["runtime"] == "torch" else ", in PyTorch"
    typer.echo(f"\nby operation, each alone{where}, {_ms(total)} in all:")
    for name, count, seconds in result.pieces[:_SHOWN]:
        typer.echo(f"{count * seconds / total:>7.1%} {count:>5} x {_ms(seconds):>10}  {name}")
    rest = result.pieces[_SHOWN:]
    if rest:
        typer.echo(f"{sum(c * s for _, c, s in rest) / total:>7.1%} {counted(len(rest), 'other operation')}")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3f} ms"
