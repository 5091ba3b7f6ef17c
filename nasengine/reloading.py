"""What exported files compute when another process loads them, which knows nothing of the one that wrote them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from nasengine.errors import reason

Answer = list[Tensor] | str
"""The outputs by inputs, or what went wrong."""

_INPUTS, _OUTPUTS = "inputs.pt", "outputs.pt"
_PATH: Final = "import json, sys; sys.path[:] = json.loads(sys.argv[1])"

_WITH_NASENGINE: Final = f"""{_PATH}
from nasengine.reloading import answer
answer(sys.argv[2], json.loads(sys.argv[3]))
"""

_WITH_TORCH_ALONE: Final = f"""{_PATH}
import importlib.util
import torch
class Refusing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "torch" and top not in sys.stdlib_module_names:
            raise ImportError(f"{{name}} is neither of torch nor of Python")
sys.meta_path.insert(0, Refusing())
folder, files = sys.argv[2], json.loads(sys.argv[3])
spec = importlib.util.spec_from_file_location("model", files["py"])
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
network = model.load()
with torch.no_grad():
    outputs = [network(inputs) for inputs in torch.load(folder + "/{_INPUTS}", weights_only=True)]
torch.save({{"py": outputs}}, folder + "/{_OUTPUTS}")
"""


def reload(files: Mapping[str, Path], inputs: Sequence[Tensor]) -> dict[str, Answer]:
    """Loads files in fresh processes and runs them.

    Args:
        files: by format; "py" is run where nothing but torch can be imported.
        inputs: (batch, *shape), batches of several sizes.
    """
    rest = {name: path for name, path in files.items() if name != "py"}
    answers = _run(_WITH_NASENGINE, rest, inputs) if rest else {}
    return answers | (_run(_WITH_TORCH_ALONE, {"py": files["py"]}, inputs) if "py" in files else {})


def answer(folder: str, files: Mapping[str, str]) -> None:
    """The other process: outputs for the inputs in a folder, or for each format what went wrong."""
    inputs = torch.load(Path(folder) / _INPUTS, weights_only=True)
    answers: dict[str, Answer] = {}
    for name, path in files.items():
        try:
            with torch.no_grad():
                answers[name] = _LOADERS[name](path, inputs)
        except Exception as error:
            answers[name] = reason(error)
    torch.save(answers, Path(folder) / _OUTPUTS)


def _run(script: str, files: Mapping[str, Path], inputs: Sequence[Tensor]) -> dict[str, Answer]:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(list(inputs), Path(folder) / _INPUTS)
        given = json.dumps({name: str(path.resolve()) for name, path in files.items()})
        command = [sys.executable, "-I", "-W", "ignore", "-c", script, json.dumps(sys.path), folder, given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return dict.fromkeys(files, said)
        return dict(torch.load(Path(folder) / _OUTPUTS, weights_only=True))


def _pt2(path: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    module = torch.export.load(path).module()
    return [module(batch) for batch in inputs]


def _onnx(path: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"input": batch.numpy()})[0]) for batch in inputs]


def _safetensors(path: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    from nasengine.trained import load_network

    network = load_network(path)
    return [network(batch) for batch in inputs]


_LOADERS: Final = {"pt2": _pt2, "onnx": _onnx, "safetensors": _safetensors}
