from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nasengine
from nasengine import exporting
from nasengine.errors import DataError, ExportError, NasengineError, RunError
from nasengine.exporting import FORMATS, export
from nasengine.formats import Writers
from nasengine.task import Task
from nasengine.trained import open_training
from tests.nasengine.runs import TRAIN, contents, record
from tests.nasengine.tasks import regression_dataset

FILES = {"pt2": "network.pt2", "onnx": "network.onnx", "py": "model.py", "safetensors": "network.safetensors"}
Answers = Callable[[Mapping[str, Path], list[Tensor]], dict[str, Any]]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Path]]:
    """Files are answered by the network itself, without other processes; gives what was asked."""
    asked: list[dict[str, Path]] = []

    def answers(files: Mapping[str, Path], inputs: list[Tensor]) -> dict[str, Any]:
        asked.append(dict(files))
        network = nasengine.load_network(files["safetensors"])
        with torch.no_grad():
            return {name: [network(batch) for batch in inputs] for name in files}

    monkeypatch.setattr(exporting, "reload", answers)
    return asked


def spoilt(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[list[Tensor]], Any]) -> None:
    """What model.py answers is spoilt."""
    answers = exporting.reload
    monkeypatch.setattr(
        exporting,
        "reload",
        lambda files, inputs: {k: spoil(v) if k == "py" else v for k, v in answers(files, inputs).items()},
    )


def test_all_formats_compute_what_the_network_computes(ended: Path) -> None:
    pytest.importorskip("onnxruntime")
    stages: list[tuple[str, int, int]] = []
    result = export(ended / "final", progress=lambda *stage: stages.append(stage))
    assert result.path == ended / "final" / "export"
    assert {name: path.name for name, path in result.files.items()} == FILES
    assert set(contents(result.path)) == {*FILES.values(), "export.json"}
    assert {stage for stage, done, total in stages if done == total} == {"opening", "exporting", "comparing"}
    written = json.loads((result.path / "export.json").read_text())
    assert written == result.record
    trained = record(ended / "final")
    assert written["run"] == trained["id"] and written["architecture"] == trained["config"]["architecture"]
    assert written["test_accuracy"] == trained["result"]["test_accuracy"]
    assert written["parameters"] == trained["result"]["parameters"]
    assert written["interface"] == trained["interface"] and written["interface"]["input"] == [1, 8, 8]
    assert set(written["versions"]) == {"nasengine", "python", "torch", "onnx", "onnxruntime", "onnxscript"}
    for name, entry in written["files"].items():
        assert entry["file"] == FILES[name] and 0 <= entry["difference"] <= 1e-5 < entry["largest_output"]
        assert entry["bytes"] == (result.path / FILES[name]).stat().st_size and len(entry["sha256"]) == 64
    assert set(written["files"]) == set(FORMATS)


def test_a_loaded_network_is_that_of_the_training(ended: Path, alone: list[dict[str, Path]]) -> None:
    result = export(ended / "final", ["safetensors"], out=ended / "out")
    assert result.path == ended / "out" and set(contents(ended / "out")) == {"network.safetensors", "export.json"}
    state, stored = (
        nasengine.load_network(result.files["safetensors"]).state_dict(),
        load_file(ended / "final" / "network.safetensors"),
    )
    assert set(stored) - set(state) == {name for name in stored if name.startswith("auxiliary.")}
    assert all(torch.equal(state[name], stored[name]) for name in state) and len(state) > 20
    before = torch.get_rng_state()
    network = nasengine.load_network(result.files["safetensors"])
    assert torch.equal(torch.get_rng_state(), before) and not network.training


def test_the_code_comes_with_its_weights(ended: Path, alone: list[dict[str, Path]]) -> None:
    result = export(ended / "final", "py")
    assert set(result.files) == {"py", "safetensors"} and set(alone[0]) == {"py", "safetensors"}


def test_formats_that_are_not_asked_for_stay_unless_they_are_of_another_training(
    ended: Path, alone: list[dict[str, Path]]
) -> None:
    first = export(ended / "final", "pt2,safetensors")
    kept = first.files["pt2"].read_bytes()
    again = export(ended / "final", "py")
    assert set(again.record["files"]) == {"pt2", "py", "safetensors"} and first.files["pt2"].read_bytes() == kept
    text = (ended / "final" / "run.json").read_text()
    (ended / "final" / "run.json").write_text(text.replace(record(ended / "final")["id"], "other"))
    other = export(ended / "final", "safetensors")
    assert set(other.record["files"]) == {"safetensors"}
    assert set(contents(other.path)) == {"network.safetensors", "export.json"}


def test_a_record_that_is_damaged_is_replaced(ended: Path, alone: list[dict[str, Path]]) -> None:
    first = export(ended / "final", "safetensors")
    for text in ("no json", "[1]", '{"files": 3}'):
        (first.path / "export.json").write_text(text)
        assert export(ended / "final", "safetensors").record["files"].keys() == {"safetensors"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda outputs: [part + 0.01 for part in outputs], r"but model.py differs by 0.01; nothing is kept of it"),
        (lambda outputs: [part * float("nan") for part in outputs], "but model.py differs by nan; nothing is kept"),
        (lambda outputs: [part[:, :2] for part in outputs], r"shape, \(1, 4\), but model.py gives \(1, 2\); nothing"),
        (lambda outputs: "ImportError: no such.", "but model.py does not: ImportError: no such; nothing is kept of it"),
    ],
)
def test_a_file_that_differs_is_not_kept(
    spoil: Callable[[list[Tensor]], Any],
    said: str,
    ended: Path,
    alone: list[dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(ended / "final", "safetensors")
    before = contents(ended)
    spoilt(monkeypatch, spoil)
    with pytest.raises(ExportError, match=said):
        export(ended / "final", "py")
    assert contents(ended) == before
    with pytest.raises(ExportError):
        export(ended / "final", "py", out=ended / "new")
    assert not (ended / "new").exists()


def test_differences_count_by_the_largest_output(
    ended: Path, alone: list[dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(ended / "final" / "network.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1000
    save_file(weights, ended / "final" / "network.safetensors")
    spoilt(monkeypatch, lambda outputs: [part + 0.05 for part in outputs])
    assert export(ended / "final", "py").record["files"]["py"]["difference"] == pytest.approx(0.05, rel=0.01)


def test_the_winner_of_a_pipeline(ended: Path, alone: list[dict[str, Path]]) -> None:
    parts = ("propose", "collect", "predictor", "rank", "train", "run")
    config = {**{part: {} for part in parts}, **record(ended)["config"]}
    whole = record(ended) | {"verb": "run", "config": config, "result": {"winner": "final"}}
    (ended / "run.json").write_text(json.dumps(whole))
    result = export(ended, "safetensors")
    assert result.path == ended / "export" and result.record["run"] == record(ended / "final")["id"]
    (ended / "run.json").write_text(json.dumps(whole | {"result": {}}))
    with pytest.raises(RunError, match=r"must name its winner in run.json, but does not; give a training in it"):
        export(ended)
    (ended / "run.json").write_text(json.dumps(whole | {"status": "interrupted"}))
    with pytest.raises(RunError, match=f"is not finished; go on with it by 'nasengine run --out {ended} --resume'"):
        export(ended)
    spaced = ended.rename(ended.with_name("a b"))
    with pytest.raises(RunError, match=f"by 'nasengine run --out '{spaced}' --resume'"):
        export(spaced)


def test_a_training_from_before_its_record_said_what_the_network_takes(
    ended: Path, small: str, alone: list[dict[str, Path]]
) -> None:
    known = record(ended / "final")
    interface = known.pop("interface")
    (ended / "final" / "run.json").write_text(json.dumps(known))
    assert export(ended / "final", "safetensors").record["interface"] == interface
    assert export(ended / "final", "safetensors", task=small).record["interface"] == interface
    with pytest.raises(DataError, match=r"The data must be those of the training in .*; put the old data back"):
        export(ended / "final", "safetensors", task="digits")


def test_data_are_not_needed(ended: Path, small: str, alone: list[dict[str, Path]]) -> None:
    spec = record(ended / "final")["config"]["data"]["name"]
    text = (ended / "final" / "run.json").read_text()
    (ended / "final" / "run.json").write_text(text.replace(spec, "npz:nowhere.npz"))
    assert export(ended / "final", "py").files["py"].exists()


def test_resuming_keeps_what_the_network_takes(ended: Path, small: str) -> None:
    def taken() -> Any:
        return record(ended / "final")["interface"]

    before, known = taken(), record(ended / "final")
    del known["interface"]
    (ended / "final" / "run.json").write_text(json.dumps(known | {"status": "interrupted"}))
    nasengine.train(ended, settings=TRAIN, resume=True)
    assert taken() == before


def test_a_regression_in_python_without_a_name_on_the_command_line(
    tmp_path: Path, alone: list[dict[str, Path]]
) -> None:
    task = Task(dataset=regression_dataset())
    space = str(Path(__file__).parents[2] / "examples" / "tables.py") + ":MLP"
    architecture = "width=8 layer1/activation=relu layer2/activation=relu layer3/activation=relu depth=1"
    settings = ["train.epochs=1", "train.batch_size=16", "train.device=cpu"]
    run = nasengine.train(space=space, architecture=architecture, task=task, settings=settings, out=tmp_path / "run")
    made = export(run.path, "py,pt2")
    assert made.record["interface"]["regression"] is True and "test_negative_mse" in made.record
    assert "(batch, 2): a number a target" in made.files["py"].read_text()


def test_an_auxiliary_head_is_left_out(ended: Path, alone: list[dict[str, Path]]) -> None:
    assert any(name.startswith("auxiliary") for name in load_file(ended / "final" / "network.safetensors"))
    made = export(ended / "final", "py")
    assert not any(name.startswith("auxiliary") for name in load_file(made.files["safetensors"]))
    assert "auxiliary" not in made.files["py"].read_text().partition('"""\n')[2]


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_damage, "must hold a trained network, but is damaged or another file; train the network again."),
        (
            _other,
            "must hold the weights of the network that is described with them, but holds those of another one; train",
        ),
        (Path.unlink, "must hold a trained network, but is missing; train the network again."),
    ],
)
def test_a_network_that_cannot_be_read(change: Callable[[Path], None], said: str, ended: Path) -> None:
    change(ended / "final" / "network.safetensors")
    with pytest.raises(RunError) as error:
        open_training(ended / "final")
    assert str(error.value).startswith(str(ended / "final" / "network.safetensors")) and said in str(error.value)


def test_a_file_that_is_none_of_an_export(ended: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be written by 'nasengine export', but does not say what network it holds"):
        nasengine.load_network(ended / "final" / "network.safetensors")
    with pytest.raises(RunError, match="must hold a trained network, but is missing; export the network again"):
        nasengine.load_network(tmp_path / "none.safetensors")


def test_what_the_network_takes_must_be_whole(ended: Path) -> None:
    whole = record(ended / "final")
    damages: list[Any] = [None, {}, whole["interface"] | {"std": [0.0]}, whole["interface"] | {"classes": ["a"]}]
    damages += [whole["interface"] | {"dtype": "int64"}, whole["interface"] | {"input": [1, 8.5, 8]}]
    for damage in damages:
        (ended / "final" / "run.json").write_text(json.dumps(whole | {"interface": damage}))
        with pytest.raises(RunError, match=r"run.json must say what the network takes and gives .*; train the network"):
            open_training(ended / "final")


def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    ended: Path, alone: list[dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Writers, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writers, "_safetensors", full)
    with pytest.raises(RunError, match="the disk is full"):
        export(ended / "final", "safetensors")
    assert not (ended / "final" / "export").exists()


def test_export_into_a_file_is_refused(ended: Path) -> None:
    with pytest.raises(NasengineError, match="must be writable, but File exists"):
        export(ended / "final", "safetensors", out=ended / "run.json")
    shutil.rmtree(ended / "final")
    with pytest.raises(RunError, match="is missing"):
        export(ended / "final")
