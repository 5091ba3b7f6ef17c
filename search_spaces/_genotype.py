"""The text form in which DARTS tools exchange cells, read without evaluating it."""

from __future__ import annotations

import ast
from typing import NamedTuple

from nasengine.errors import ArchitectureError

Pairs = list[tuple[str, int]]

_LONGEST = 100


class Genotype(NamedTuple):
    """Two cells: (operation, input state) pairs, two a node, and the states that the output joins."""

    normal: Pairs
    normal_concat: list[int]
    reduce: Pairs
    reduce_concat: list[int]


def write_genotype(genotype: Genotype) -> str:
    """The text form: Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, ...], reduce=..., ...)."""
    return f"Genotype({', '.join(f'{name}={value!r}' for name, value in genotype._asdict().items())})"


def read_genotype(text: str) -> Genotype:
    """Reads the text form; `range(2, 6)` is understood, anything else that is not a literal is refused.

    Raises:
        ArchitectureError: the text is not a genotype.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Genotype" or call.args:
            raise ValueError("it is not Genotype(name=...)")
        fields = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
        if sorted(str(keyword.arg) for keyword in call.keywords) != sorted(Genotype._fields):
            raise ValueError(f"it names {', '.join(fields)}")
        normal, reduce = ([_pair(entry) for entry in fields[name]] for name in ("normal", "reduce"))
        concat, reduce_concat = ([_state(entry) for entry in fields[f"{name}_concat"]] for name in ("normal", "reduce"))
        return Genotype(normal, concat, reduce, reduce_concat)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: too deep
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deeply"
        raise ArchitectureError(
            "A genotype must be Genotype(normal=[(operation, input), ...], normal_concat=[...], reduce=[...], "
            f"reduce_concat=[...]), but {reason}."
        ) from None


def _literal(node: ast.expr) -> list[object]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range" and not node.keywords:
        states = range(*[int(ast.literal_eval(argument)) for argument in node.args])
        if len(states[:_LONGEST]) == _LONGEST:
            raise ValueError(f"{ast.unparse(node)} is too long")
        return list(states)
    try:
        return list(ast.literal_eval(node))
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not a list of plain values") from None


def _pair(entry: object) -> tuple[str, int]:
    if isinstance(entry, (tuple, list)) and len(entry) == 2:
        operation, source = entry
        if isinstance(operation, str) and type(source) is int:
            return operation, source
    raise ValueError(f"{entry!r} is not a pair (operation, input)")


def _state(entry: object) -> int:
    if type(entry) is int:
        return entry
    raise ValueError(f"{entry!r} is not the number of a state")
