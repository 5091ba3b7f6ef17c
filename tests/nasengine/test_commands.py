"""Commands are typed as they stand."""

from __future__ import annotations

import shlex

import pytest

from nasengine.commands import quoted, training_command
from search_spaces.darts import DARTS
from tests.nasengine.runs import GENOTYPE


@pytest.mark.parametrize(
    "text", [GENOTYPE, "111-01-1 conv3x3,maxpool3x3", "a'b$c", "it's `x`", "a\"b'c", "plain", "a'\\", "wow!'"]
)
def test_a_shell_reads_the_text(text: str) -> None:
    assert shlex.split(f"train {quoted(text)} --data x") == ["train", text, "--data", "x"]


def test_a_genotype_stands_between_double_quotes() -> None:
    said = training_command({"space": {"name": "darts", **vars(DARTS())}, "data": {"name": "digits"}}, GENOTYPE)
    assert said == f'nasengine train --space darts --genotype "{GENOTYPE}" --data digits'
