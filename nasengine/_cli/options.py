"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str | None,
    typer.Option(
        help=(
            "digits, sklearn:NAME, cifar10:PATH, cifar100:PATH, imagefolder:PATH, npz:PATH, or your own as "
            "FILE.py:NAME or MODULE:NAME.  [default: digits, or that of RUN]"
        ),
        metavar="SPEC",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting, such as data.train_size=500; may come often. 'nasengine list' names all.",
        metavar="NAME=VALUE",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="A run.json, or a run directory: take its configuration.", metavar="PATH", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="The run directory.", metavar="DIR", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, bit for bit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]
# Numbers are texts here: the settings check them, so that a flag and --set answer alike.
TrainPortion = Annotated[
    str | None,
    typer.Option(
        help="Part of the training data for the weights; the rest is for the architecture.  [default: 0.5]",
        metavar="FLOAT",
        show_default=False,
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(
        help="A table of the space's known accuracies: look up every epoch's cell.", metavar="PATH", show_default=False
    ),
]
MaxParams = Annotated[
    str | None,
    typer.Option(help="Most parameters of the network to train.", metavar="INTEGER", show_default=False),
]
MaxFlops = Annotated[
    str | None,
    typer.Option(help="Most multiply-adds of the network to train.", metavar="INTEGER", show_default=False),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        help="Most time of a forward pass of it, such as 5ms; on what is a setting, such as search.latency.threads.",
        metavar="TIME",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Most bytes of its weights and activations for one input, such as 2MB.",
        metavar="SIZE",
        show_default=False,
    ),
]
StepMemory = Annotated[
    str | None,
    typer.Option(
        help="Most bytes of a step of the search beyond its weights, such as 500MB: batches are divided.",
        metavar="SIZE",
        show_default=False,
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        help="How many at a time: a number of processes, ray, or ray://HOST:PORT for a Ray cluster.", metavar="WORKERS"
    ),
]
Seed = Annotated[
    str | None, typer.Option(help="Of all random numbers.  [default: 0]", metavar="INTEGER", show_default=False)
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps or auto.  [default: auto]", metavar="NAME", show_default=False),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of convolutions and matrix products; weights stay float32.  [default: float32]",
        metavar="float32|bfloat16",
        show_default=False,
    ),
]


def epochs(default: int) -> Any:
    """The option of a verb whose setting has this default."""
    said = f"Passes over the training data.  [default: {default}]"
    return typer.Option(help=said, metavar="INTEGER", show_default=False)


def batch_size(default: int) -> Any:
    """The option of a verb whose setting has this default."""
    said = f"Examples a batch.  [default: {default}]"
    return typer.Option("--batch-size", "--batch_size", help=said, metavar="INTEGER", show_default=False)


def assignments(texts: list[str] | None, flags: dict[str, str | None]) -> list[str]:
    """The --set texts, then the flags that were given, as texts of the same form."""
    return [*(texts or []), *(f"{name}={value}" for name, value in flags.items() if value is not None)]
