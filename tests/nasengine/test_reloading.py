from __future__ import annotations

from pathlib import Path

import torch

from nasengine.reloading import answer, reload

MODEL = """
import torch
{imports}
def load():
    return torch.nn.ReLU()
"""


def test_code_is_run_where_nothing_but_torch_can_be_imported(tmp_path: Path) -> None:
    inputs = [torch.randn(size, 2) for size in (1, 3)]
    (tmp_path / "model.py").write_text(MODEL.format(imports="import json, torch.nn.functional"))
    found = reload({"py": tmp_path / "model.py"}, inputs)["py"]
    assert not isinstance(found, str) and all(map(torch.equal, found, [part.relu() for part in inputs]))
    (tmp_path / "model.py").write_text(MODEL.format(imports="import nasengine"))
    assert reload({"py": tmp_path / "model.py"}, inputs)["py"] == (
        "ImportError: nasengine is neither of torch nor of Python"
    )


def test_each_file_that_cannot_be_loaded_is_answered_by_its_reason(tmp_path: Path) -> None:
    torch.save([torch.zeros(1, 2)], tmp_path / "inputs.pt")
    files = {"pt2": str(tmp_path / "none.pt2"), "safetensors": str(tmp_path / "none.safetensors")}
    answer(str(tmp_path), files)
    answers = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert set(answers) == set(files) and all(isinstance(text, str) for text in answers.values())
    assert "must hold a trained network, but is missing" in answers["safetensors"]
