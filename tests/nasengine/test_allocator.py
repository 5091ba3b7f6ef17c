"""Memory that stays with the process: a freed tensor's pages are there for the next one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nasengine import allocator

FAULTS = """
import resource, sys, torch
from nasengine.allocator import keep_pages

if sys.argv[1] == "keep":
    assert keep_pages()
for _ in range(3):
    [torch.ones(2**18) for _ in range(40)]  # as the activations of a step, all freed at its end
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    [torch.ones(2**18) for _ in range(40)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    # by default glibc moves this threshold as it goes, so that what lies on the heap by chance decides
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    words = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(not allocator.keep_pages(), reason="needs mallopt of glibc")
def test_pages_are_kept() -> None:
    assert faults("keep") < 1000 < faults("leave")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_pages.__wrapped__() is False
