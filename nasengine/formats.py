"""The files of an export: one function a format, each writes one file."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save

from nasengine import cost
from nasengine.errors import ExportError, MissingExtraError
from nasengine.programs import onnx_program, program, quiet
from nasengine.seeding import generator
from nasengine.source import source
from nasengine.trained import NETWORK, Trained, metadata

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILES: Final[Mapping[str, str]] = {
    "pt2": "network.pt2",
    "onnx": "network.onnx",
    "py": "model.py",
    "safetensors": NETWORK,
}
"""The file of each format."""

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {"onnx": ("onnx", "onnxruntime", "onnxscript")}
"""What a format needs beside torch."""

_EXAMPLES = 3  # torch takes a batch of 1 for a constant
_TOLD = 200


def check_packages(formats: Iterable[str]) -> None:
    """Raises MissingExtraError unless all that the formats need is installed."""
    for name in formats:
        missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            raise MissingExtraError(
                f"The format {name} needs {' and '.join(missing)}, but this Python has not; install it with "
                f"`pip install 'nasengine[export]'`, or leave {name} out of the formats (--format)."
            )


class Writers:
    """Writes one trained network in every format."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def write(self, name: str, folder: Path) -> Path:
        """Writes the file of a format into a folder. Raises ExportError where the network cannot be written so."""
        path = folder / FILES[name]
        writers: dict[str, Callable[[Path], None]] = {
            "pt2": self._pt2,
            "onnx": self._onnx,
            "py": self._py,
            "safetensors": self._safetensors,
        }
        writers[name](path)
        return path

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as a graph of operations, for batches of any size."""
        example = self.trained.interface.examples(_EXAMPLES, generator(0, 0))
        try:
            return program(self.trained.network, example)
        except Exception as error:  # torch raises whatever its parts raise
            raise ExportError(
                "A network must run without knowing the values of its inputs, and in batches of any size, to be "
                f"exported as pt2 or onnx, but {_said(error)}; give --format py,safetensors, or mend its forward."
            ) from error

    def _pt2(self, path: Path) -> None:
        with quiet():
            torch.export.save(self.program, path, extra_files={"interface.json": json.dumps(self._interface())})

    def _onnx(self, path: Path) -> None:
        import onnx

        graph = self.program
        try:
            written = onnx_program(graph)
            written.model.metadata_props.update({k: json.dumps(v) for k, v in self._interface().items()})
            with quiet():
                written.save(str(path), external_data=False)
                onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # torch and onnx raise whatever their parts raise
            raise ExportError(
                f"A network must be of operations that ONNX has to be exported as onnx, but {_said(error)}; leave onnx "
                "out of the formats (--format)."
            ) from error

    def _py(self, path: Path) -> None:
        trained, measure = self.trained, self.trained.interface.measure
        name, score = next(iter(trained.scores.items()), ("", 0.0))
        where = "the test set" if name.startswith("test_") else "what the training held out"
        judged = f", whose {measure.replace('_', ' ')} on {where} was {score:.4g}" if name else ""
        about = (
            f"A network of the space {trained.space.name} for {trained.record['facts'].get('task', 'data of yours')} "
            f"with {cost.parameters(trained.network):,} parameters{judged}; written by nasengine, it needs torch alone."
        )
        text = source(trained.network, trained.interface, about, trained.space.write(trained.architecture))
        path.write_text(text, encoding="utf-8")

    def _safetensors(self, path: Path) -> None:
        weights = self.trained.network.state_dict()
        whole = {name: w.clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
        path.write_bytes(save(whole, metadata(self.trained)))

    def _interface(self) -> dict[str, Any]:
        interface = self.trained.interface
        words = {"preprocessing": interface.preprocessing, "postprocessing": interface.postprocessing}
        return {**interface.plain(), **words}


def _said(error: Exception) -> str:
    """The first line of a long message, as a part of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].split(". ")[0].rstrip(".: ") if lines else "nothing more is known"
    return f"torch says {type(error).__name__}: {first if len(first) <= _TOLD else f'{first[:_TOLD]}...'}"
