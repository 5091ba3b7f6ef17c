from __future__ import annotations

import dataclasses
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasengine.errors import ExportError, MissingExtraError
from nasengine.formats import Writers, check_packages
from nasengine.registry import SPACES
from nasengine.task import Shapes
from nasengine.trained import Trained
from tests.nasengine.exports import interface_of, unsettled

ROWS = Shapes((6,), 2)


def trained(network: nn.Module) -> Trained:
    space = SPACES["darts"]()
    architecture = space.smallest(space.choices(Shapes((3, 8, 8), 2)))
    record = {"config": {"space": {}}, "facts": {"task": "rows"}, "result": {"test_accuracy": 0.5}}
    return Trained(Path(), record, space, architecture, interface_of(ROWS), unsettled(network))


class _ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, 6)


@pytest.mark.parametrize("network", [_ByValue(), _OneSize()])
@pytest.mark.parametrize("name", ["pt2", "onnx"])
def test_a_network_that_cannot_be_traced_is_told(name: str, network: nn.Module, tmp_path: Path) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
    with pytest.raises(ExportError) as error:
        Writers(trained(network)).write(name, tmp_path)
    said = str(error.value)
    assert said.startswith("A network must run without knowing the values of its inputs, and in batches of any size, ")
    assert said.endswith("; give --format py,safetensors, or mend its forward.") and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_an_operation_that_onnx_has_not_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnx")

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(
        ExportError,
        match=r"A network must be of operations that ONNX has .*; leave onnx out of the formats \(--format\)\.$",
    ):
        Writers(trained(Own())).write("onnx", tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_missing_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, package, None)
    check_packages(["pt2", "py", "safetensors"])
    with pytest.raises(MissingExtraError) as error:
        check_packages(["pt2", "onnx"])
    assert str(error.value) == (
        f"The format onnx needs {package}, but this Python has not; install it with `pip install 'nasengine[export]'`, "
        "or leave onnx out of the formats (--format)."
    )


def test_files_say_what_the_network_takes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    one = trained(nn.Sequential(nn.Linear(6, 2)))
    for name in ("pt2", "onnx", "py"):
        Writers(one).write(name, tmp_path)
    words = {"preprocessing": one.interface.preprocessing, "postprocessing": one.interface.postprocessing}
    expected = one.interface.plain() | words
    model = onnx.load(tmp_path / "network.onnx")
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props}.items() >= expected.items()
    assert model.graph.input[0].name == "input" and model.graph.output[0].name == "output"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    with zipfile.ZipFile(tmp_path / "network.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("interface.json"))
        assert json.loads(archive.read(name)) == expected
    head = " ".join((tmp_path / "model.py").read_text().split())
    assert "A network of the space darts for rows with 14 parameters, whose accuracy on the test set was 0.5;" in head


def test_weights_in_another_memory_format_are_written_as_all_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    image = dataclasses.replace(
        trained(nn.Identity()), network=nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    )  # type: ignore[call-overload]
    Writers(image).write("safetensors", tmp_path)
    assert torch.equal(load_file(tmp_path / "network.safetensors")["weight"], image.network.get_parameter("weight"))
