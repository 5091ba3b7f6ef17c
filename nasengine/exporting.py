"""Export: a trained network in formats that other programs read, each loaded again and compared before it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from nasengine import __version__, cost
from nasengine.config import AnyTask
from nasengine.errors import ExportError, RunError, SettingError, UnknownNameError
from nasengine.formats import FILES, PACKAGES, Writers, check_packages
from nasengine.reloading import Answer, reload
from nasengine.run_directory import replace_file, saving
from nasengine.seeding import generator
from nasengine.trained import Trained, open_training

FORMATS: Final = tuple(FILES)
RECORD: Final = "export.json"
TOLERANCE: Final = 1e-4
BATCHES: Final = (1, 3, 8)
"""The sizes of the batches by which files are compared with the network."""

_PARTIAL: Final = ".partial-export-"

Progress = Callable[[str, int, int], object]
"""Is called with a stage, what of it is done and what there is in all."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the directory.
        files: by format, those that were asked for and what they need.
        record: all of export.json; `record["files"]` has sizes, checksums and differences.
    """

    path: Path
    files: dict[str, Path]
    record: dict[str, Any]


def export(
    run: Path | str,
    formats: Sequence[str] | str = FORMATS,
    *,
    out: Path | str | None = None,
    task: AnyTask | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportResult:
    """Writes the trained network of a run as files, in batches of any size, after it has compared them with it.

    Every file is loaded in a fresh process and given random inputs; its outputs must be those of the network up to
    1e-4 of the largest one, or 1e-4 where all are below 1. Files of formats that are not asked for stay as they are,
    unless they are of another training.

    Args:
        run: the directory of a finished training, or of a pipeline, whose winner is taken.
        formats: of pt2, onnx, py, safetensors; py comes with safetensors, from which it loads its weights.
        out: where to; RUN/export by default.
        task: the data of the training, where run.json is too old to say what the network takes.
        progress: sees the stages.

    Raises:
        RunError: there is no finished training, or its network is damaged.
        UnknownNameError: there is no such format.
        MissingExtraError: what a format needs is not installed; nothing is written then.
        ExportError: a format cannot hold the network, or a file differs from it; nothing is written then.
    """
    names = checked_formats(formats)
    progress("opening", 0, 1)
    trained = open_training(run, task)
    progress("opening", 1, 1)
    folder = Path(run) / "export" if out is None else Path(out)
    existed = folder.exists()
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=folder, prefix=_PARTIAL)
    try:
        with work as name:
            written = _written(trained, names, Path(name), progress)
            record = _record(trained, written, _differences(trained, written, progress))
            return _kept(folder, written, record)
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise


def checked_formats(formats: Sequence[str] | str) -> list[str]:
    """The names of formats, each once, in the order in which they are written.

    Raises:
        UnknownNameError: there is no such format.
        MissingExtraError: what a format needs is not installed.
    """
    asked = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    for name in asked:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    if not asked:
        raise SettingError(f"An export must have a format of {', '.join(FORMATS)}, but got none; name one.")
    needed = {*asked, *(["safetensors"] if "py" in asked else [])}
    names = [name for name in FORMATS if name in needed]
    check_packages(names)
    return names


def _written(trained: Trained, names: Sequence[str], folder: Path, progress: Progress) -> dict[str, Path]:
    writers, found = Writers(trained), {}
    for place, name in enumerate(names):
        progress("exporting", place, len(names))
        with saving(folder / FILES[name]):
            found[name] = writers.write(name, folder)
    progress("exporting", len(names), len(names))
    return found


def _differences(trained: Trained, files: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, float]]:
    """How far each file is from the network. Raises ExportError where that is too far."""
    progress("comparing", 0, len(files))
    inputs = [trained.interface.examples(size, generator(0, size)) for size in BATCHES]
    with torch.no_grad():
        expected = [trained.network(batch) for batch in inputs]
    answers = reload(files, inputs)
    found = {name: _difference(name, answers[name], expected) for name in files}
    progress("comparing", len(files), len(files))
    return found


def _difference(name: str, answer: Answer, expected: Sequence[Tensor]) -> dict[str, float]:
    if isinstance(answer, str):
        raise ExportError(
            f"An exported file must load and run in a fresh process, but {FILES[name]} does not: {answer.rstrip('.')}; "
            f"nothing is kept of it, and other formats can be had without {name} in the formats (--format)."
        )
    pairs = list(zip(answer, expected, strict=True))
    if any(got.shape != wanted.shape for got, wanted in pairs):
        shapes = next((tuple(got.shape), tuple(wanted.shape)) for got, wanted in pairs if got.shape != wanted.shape)
        raise ExportError(
            f"An exported file must give outputs of the network's shape, {shapes[1]}, but {FILES[name]} gives "
            f"{shapes[0]}; nothing is kept of it, and other formats can be had without {name} in the formats "
            "(--format)."
        )
    difference = max(float((got - wanted).abs().max()) for got, wanted in pairs)
    scale = max(float(wanted.abs().max()) for wanted in expected)
    if not difference <= TOLERANCE * max(1.0, scale):
        raise ExportError(
            f"An exported file must give what the network gives up to {TOLERANCE:g} of its largest output "
            f"({scale:.3g}), but {FILES[name]} differs by {difference:.3g}; nothing is kept of it, and other formats "
            f"can be had without {name} in the formats (--format)."
        )
    return {"difference": difference, "largest_output": scale}


def _record(
    trained: Trained, files: Mapping[str, Path], differences: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What export.json says, of this export alone."""
    record, interface = trained.record, trained.interface
    packages = [package for name in files for package in PACKAGES.get(name, ())]
    return {
        "run": record["id"],
        "training": str(trained.path),
        "task": record["facts"].get("task", ""),
        "space": record["config"]["space"],
        "architecture": str(trained.architecture),
        "genotype": trained.space.write(trained.architecture),
        "parameters": cost.parameters(trained.network),
        **trained.scores,
        "interface": interface.plain(),
        "preprocessing": interface.preprocessing,
        "postprocessing": interface.postprocessing,
        "tolerance": TOLERANCE,
        "batches": list(BATCHES),
        "versions": {
            "nasengine": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{package: version(package) for package in packages},
        },
        "files": {name: {**_described(path), **differences[name]} for name, path in files.items()},
    }


def _described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _kept(folder: Path, written: Mapping[str, Path], record: dict[str, Any]) -> ExportResult:
    """Puts the files into their places, and export.json, which says what there is, at the end."""
    before = _standing(folder)
    if before.get("run") == record["run"]:
        record["files"] = {**before["files"], **record["files"]}
        record["versions"] = {**before.get("versions", {}), **record["versions"]}
    files = {}
    for name, path in written.items():
        files[name] = folder / path.name
        replace_file(files[name], lambda partial, path=path: os.replace(path, partial))  # type: ignore[misc]
    replace_file(folder / RECORD, lambda partial: partial.write_text(json.dumps(record, indent=2) + "\n"))
    for name in set(before.get("files", {})) - set(record["files"]):
        (folder / FILES[name]).unlink(missing_ok=True)
    return ExportResult(folder, files, record)


def _standing(folder: Path) -> dict[str, Any]:
    """The record of the export that stands in a folder, with the files that are there; empty if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        entries = {name: entry for name, entry in record["files"].items() if name in FILES}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"{folder / RECORD} must be readable, but {error.strerror or error}; remove it.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {**record, "files": {name: entry for name, entry in entries.items() if (folder / FILES[name]).exists()}}
