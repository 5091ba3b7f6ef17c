from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import nasengine
from nasengine import launch
from nasengine.parallel import ALONE
from tests.nasengine.process_searches import begin, start_processes
from tests.nasengine.processes import computed
from tests.nasengine.runs import SEARCH, TRAIN

launch.compiled()  # runs say so where it takes long, and tests compare what runs say
torch.set_num_threads(1)  # the workers share the cores: more threads than cores are many times slower


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run alike with and without TensorBoard; those of the curves bring their own."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data spec: 40 grey images of 8x8 pixels in 4 classes that can be told apart, 32 of them for training."""
    rng, labels = np.random.default_rng(0), np.arange(40) % 4
    images = rng.integers(60, size=(40, 8, 8), dtype=np.uint8) + (60 * labels[:, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x=images, y=labels)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def _ended(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        nasengine.search(task=small, settings=SEARCH, out=out)
        nasengine.train(out, settings=TRAIN)
    return out


@pytest.fixture(scope="session")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed and searched, see tests.nasengine.process_searches, and one: alone.pt, alone.

    It takes seconds: of the processes of pytest-xdist the first one makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.mkdir()
            processes = start_processes(path)
            torch.save(computed(ALONE), path / "alone.pt")
            begin(path / "alone")
            for process in processes:
                process.join(300)
            codes = [process.exitcode for process in processes]
            said = [(path / f"said-{rank}.txt").read_text() for rank in range(len(processes))]
            (path / "codes.json").write_text(json.dumps([codes, said]))
    return path


@pytest.fixture
def ended(_ended: Path, tmp_path: Path) -> Path:
    """A copy of the directory of a search that is finished, with its finished training in final/."""
    return Path(shutil.copytree(_ended, tmp_path / "ended"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished pipeline, not to be changed."""
    from tests.nasengine.reports import make_pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        return make_pipeline(tmp_path_factory.mktemp("pipelines") / "pipeline")
