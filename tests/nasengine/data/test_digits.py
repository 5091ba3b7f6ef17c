"""Handwritten digits, read from scikit-learn's file or through scikit-learn."""

from __future__ import annotations

import pytest
import torch

from nasengine.data import digits


def test_the_file_holds_what_scikit_learn_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    read = digits.load()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)  # as where the file has moved
    loaded = digits.load()
    for part in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        assert torch.equal(getattr(read, part), getattr(loaded, part))
    assert len(read.train_inputs) + len(read.test_inputs) == 1797
