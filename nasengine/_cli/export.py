"""`nasengine export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nasengine.exporting import ExportResult

EPILOG = "Example: nasengine export results/digits/darts/rarts/seed-0/final --format onnx,py"

_USES = {
    "pt2": ("import torch", "outputs = torch.export.load({path!r}).module()(inputs)"),
    "onnx": (
        "import onnxruntime",
        'outputs = onnxruntime.InferenceSession({path!r}).run(None, {{"input": inputs.numpy()}})',
    ),
    "py": ("from model import load, preprocess  # in {folder}", "outputs = load()(preprocess(inputs))"),
    "safetensors": ("import nasengine", "outputs = nasengine.load_network({path!r})(inputs)"),
}


def export(
    run: Annotated[
        Path,
        typer.Argument(help="The directory of a finished training or pipeline.", metavar="RUN", show_default=False),
    ],
    format_: Annotated[
        str,
        typer.Option("--format", help="Which of pt2, onnx, py, safetensors, separated by commas.", metavar="NAMES"),
    ] = "pt2,onnx,py,safetensors",
    data: Annotated[
        str | None,
        typer.Option(
            help="The data of the training, where run.json is too old to say what the network takes.",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The directory of the files.  [default: RUN/export]", metavar="DIR", show_default=False),
    ] = None,
) -> None:
    """Write the trained network for other programs.

    As PyTorch program (pt2), ONNX, plain Python that needs torch alone (py), and weights (safetensors). Each file is
    loaded in a fresh process and compared with the network before it is kept.
    """
    from nasengine import exporting
    from nasengine._cli.progress import StageProgress
    from nasengine.errors import InterruptedRun

    try:
        with StageProgress() as progress:
            result = exporting.export(run, format_, out=out, task=data, progress=progress)
    except KeyboardInterrupt:
        raise InterruptedRun("Stopped, and nothing is kept of it: give the same command again.") from None
    _print_export(result)


def _print_export(result: ExportResult) -> None:
    """What was written, how far it is from the network, how to load it, and what goes into it."""
    for name, path in result.files.items():
        entry = result.record["files"][name]
        difference = f"largest difference {entry['difference']:.2g} of {entry['largest_output']:.3g}"
        typer.echo(f"\n{path.name}: {_size(entry['bytes'])}, {difference}")
        for line in _USES[name]:
            typer.echo(f"    {line.format(path=str(path), folder=result.path)}")
    interface = result.record["interface"]
    shape = ", ".join(["batch", *map(str, interface["input"])])
    typer.echo(f"\ninputs ({shape}) after preprocessing: {result.record['preprocessing']}")
    typer.echo(f"outputs (batch, {interface['outputs']}), postprocessing: {result.record['postprocessing']}")
    typer.echo(f"parameters: {result.record['parameters']:,}")
    typer.echo(f"in {result.path}: {', '.join([*(path.name for path in result.files.values()), 'export.json'])}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
