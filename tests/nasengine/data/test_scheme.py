from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nasengine.data import SCHEMES, load_dataset
from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.task import Augment


def test_schemes_are_listed_with_their_summaries() -> None:
    assert list(SCHEMES) == ["digits", "sklearn", "cifar10", "cifar100", "imagefolder", "npz"]
    assert all(scheme.name == name and scheme.summary for name, scheme in SCHEMES.items())
    assert [name for name, scheme in SCHEMES.items() if not scheme.needs_path] == ["digits"]


def test_unknown_scheme() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data scheme 'cifar': did you mean 'cifar1"):
        load_dataset("cifar:somewhere")


@pytest.mark.parametrize("spec", ["npz", "npz:"])
def test_path_is_needed(spec: str) -> None:
    with pytest.raises(DataError, match=rf"npz must come with a path, but got '{spec}'; write npz:PATH"):
        load_dataset(spec)


def test_path_is_superfluous() -> None:
    with pytest.raises(DataError, match="digits must come without a path, but got 'digits:here'; write digits"):
        load_dataset("digits:here")


@pytest.mark.parametrize("scheme", ["cifar10", "cifar100", "imagefolder", "npz"])
def test_path_is_not_there(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_dataset(f"{scheme}:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("scheme", ["cifar10", "cifar100", "imagefolder"])
def test_empty_directory_or_a_file(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} must"):
        load_dataset(f"{scheme}:{tmp_path}")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"must be given a directory, but .*file is none"):
        load_dataset(f"{scheme}:{tmp_path / 'file'}")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.npz"
    file.touch()

    def refuse(self: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"must be readable, but .*secret.npz: Permission denied"):
        load_dataset(f"npz:{file}")


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 4), np.float32), y=np.arange(10) % 2)
    assert load_dataset("npz:~/a.npz").name == "npz-a"


def test_digits() -> None:
    data = load_dataset("digits")
    assert (len(data.train_inputs), len(data.test_inputs)) == (1438, 359)
    images = torch.cat([data.train_inputs, data.test_inputs])
    assert images.shape[1:] == (1, 8, 8) and images.dtype == torch.uint8
    assert (int(images.min()), int(images.max()), len(np.unique(images.numpy()))) == (0, 255, 17)
    assert (data.augment, data.final_cutout) == (Augment(crop=1), 0)
    share = torch.bincount(data.test_targets) / torch.bincount(torch.cat([data.train_targets, data.test_targets]))
    assert share.tolist() == pytest.approx([0.2] * 10, abs=0.005)
    assert torch.equal(load_dataset("digits").test_inputs, data.test_inputs)


def test_image_size_resizes_any_images() -> None:
    small, large = load_dataset("digits", 4), load_dataset("digits", 16)
    assert small.train_inputs.shape == (1438, 1, 4, 4) and large.train_inputs.shape == (1438, 1, 16, 16)
    assert large.augment == Augment(crop=2) and small.augment == Augment(crop=0)
    original = load_dataset("digits").train_inputs.float()
    assert abs(small.train_inputs.float().mean() - original.mean()) < 8
    assert torch.equal(load_dataset("digits", 8).train_inputs, original.to(torch.uint8))


def test_image_size_needs_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 4), np.float32), y=np.arange(10) % 2)
    with pytest.raises(SettingError, match=r"data.image_size must be left out, not 8, because npz-a has no images"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}", 8)
