"""Settings: frozen dataclasses whose fields are the configuration, read from plain data and from `name=value` texts."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from nasengine.errors import SettingError, UnknownNameError

T = TypeVar("T")

_GIVEN = "given"

SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES: Final = {
    "b": 1.0,
    **{f"{letter}{end}": 1000.0**power for power, letter in enumerate("kmg", start=1) for end in ("", "b")},
    **{f"{letter}ib": 1024.0**power for power, letter in enumerate("kmg", start=1)},
}
"""Units and what they are in the plain one, in small letters."""

_QUANTITIES: Final = {
    id(SECONDS): "a time with a unit such as 5ms, 300us or 0.005s",
    id(BYTES): "a number of bytes such as 2000000, 2MB or 512KiB",
}


def setting(
    default: T,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    units: Mapping[str, float] | None = None,
) -> T:
    """A dataclass field with a help text and a range: `low <= value`, `above < value`, `value <= high`.

    The range is that of a number, or of every number of a tuple. With `units` a text
    may end in one; with SECONDS it must, for a bare 5 can be meant in seconds and in milliseconds.
    """
    metadata = {"help": help, "low": low, "above": above, "high": high, "units": units}
    return dataclasses.field(default=default, metadata=metadata)


def given(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is no setting: it is passed in Python, not configured."""
    return dataclasses.field(default=default, metadata={_GIVEN: True})


def group(kind: type[T], help: str) -> T:
    """A dataclass field that holds further settings, with their defaults."""
    return dataclasses.field(default_factory=kind, metadata={"help": help})


class Setting(NamedTuple):
    """One line of a settings table: dotted name, type as text, default, help."""

    name: str
    kind: str
    default: Any
    help: str


def validate(settings: object, prefix: str) -> None:
    """Checks types and ranges of all fields; called by `__post_init__`. Raises SettingError naming `prefix.field`."""
    hints = typing.get_type_hints(type(settings))
    for field in _configured(cast(Any, settings)):
        name, value = f"{prefix}.{field.name}", getattr(settings, field.name)
        _check_type(name, hints[field.name], value)
        _check_range(name, field.metadata, value)


def plain(settings: object) -> dict[str, Any]:
    """The settings as nested dictionaries of plain values, ready for JSON."""
    names = {field.name for field in _configured(cast(Any, settings))}
    return {name: value for name, value in dataclasses.asdict(cast(Any, settings)).items() if name in names}


def from_plain(
    kind: type[T], data: Mapping[str, Any], prefix: str, given: Mapping[str, Any] = types.MappingProxyType({})
) -> T:
    """Builds `kind` from what `plain` gave, and the fields that are no settings.

    An unknown name or a wrong type raises with the dotted name.
    """
    hints, values = typing.get_type_hints(kind), {}
    for name, value in data.items():
        _require_field(kind, name, prefix)
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = from_plain(cast(type, hint), value, f"{prefix}.{name}")
        elif isinstance(value, list) and any(typing.get_origin(part) is tuple for part in _parts(hint)):
            value = tuple(value)
        elif hint is float and type(value) is int:
            value = float(value)
        values[name] = value
    return kind(**values, **given)


def override(data: Mapping[str, Any], kind: type, assignments: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """`data` with texts such as {"weights.lr": "0.1"} put in, parsed with the type of the field of `kind`."""
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in data.items()}
    for dotted, text in assignments.items():
        head, _, rest = dotted.partition(".")
        _require_field(kind, head, prefix)
        hint = typing.get_type_hints(kind)[head]
        if dataclasses.is_dataclass(hint):
            if not rest:
                names = ", ".join(f"{prefix}.{head}.{field.name}" for field in dataclasses.fields(hint))
                raise SettingError(f"{prefix}.{head} is a group of settings; set one of {names}.")
            result[head] = override(result.get(head, {}), cast(type, hint), {rest: text}, f"{prefix}.{head}")
        elif rest:
            raise SettingError(f"{prefix}.{head} is a single setting and has no {rest!r}.")
        else:
            units = next(field.metadata.get("units") for field in _configured(kind) if field.name == head)
            result[head] = _parse(f"{prefix}.{head}", hint, text, units)
    return result


def table(kind: type, prefix: str) -> Iterator[Setting]:
    """All settings of a class with their defaults, groups expanded."""
    hints = typing.get_type_hints(kind)
    for field in _configured(kind):
        name, hint = f"{prefix}.{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from table(cast(type, hint), name)
        else:
            yield Setting(name, _describe(hint), field.default, field.metadata.get("help", ""))


def _configured(settings: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(settings) if _GIVEN not in field.metadata]


def _require_field(kind: type, name: str, prefix: str) -> None:
    known = [field.name for field in _configured(kind)]
    if name not in known:
        raise UnknownNameError("setting", f"{prefix}.{name}", [f"{prefix}.{field}" for field in known])


def _parts(hint: Any) -> tuple[Any, ...]:
    """The parts of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(option) for option in typing.get_args(hint))
    if len(_parts(hint)) > 1:
        return " or ".join(_describe(part) for part in _parts(hint))
    if hint is type(None):
        return "none"
    if hint == tuple[int, ...]:
        return "whole numbers such as 3,5,7"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _matches(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if len(_parts(hint)) > 1:
        return any(_matches(part, value) for part in _parts(hint))
    if hint == tuple[int, ...]:
        return isinstance(value, tuple) and all(_matches(int, item) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else origin or hint)


def _check_type(name: str, hint: Any, value: Any) -> None:
    if not _matches(hint, value):
        raise SettingError(f"{name} must be {_describe(hint)}, but got {value!r}.")


def _check_range(name: str, metadata: Mapping[str, Any], value: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(name, metadata, item)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, above, high = metadata.get("low"), metadata.get("above"), metadata.get("high")
    bad = not math.isfinite(value) or (low is not None and value < low) or (above is not None and value <= above)
    if bad or (high is not None and value > high):
        bounds = [f"at least {low}"] if low is not None else [f"more than {above}"] if above is not None else []
        bounds += [f"at most {high}"] if high is not None else []
        raise SettingError(f"{name} must be {' and '.join(bounds) or 'a finite number'}, but got {value}.")


def _parse(name: str, hint: Any, text: str, units: Mapping[str, float] | None = None) -> Any:
    if units is not None and not (type(None) in _parts(hint) and text.lower() == "none"):
        return _quantity(name, int in _parts(hint), text, units)
    for part in _parts(hint):
        if part is type(None) and text.lower() == "none":
            return None
        if part is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if typing.get_origin(part) is Literal and text in map(str, typing.get_args(part)):
            return next(option for option in typing.get_args(part) if str(option) == text)
        if part is str:
            return text
        if part in (int, float) or part == tuple[int, ...]:
            try:
                return part(text) if part in (int, float) else tuple(map(int, text.split(","))) if text else ()
            except ValueError:
                continue
    raise SettingError(f"{name} must be {_describe(hint)}, but got {text!r}.")


def _quantity(name: str, whole: bool, text: str, units: Mapping[str, float]) -> float:
    """A number in the plain unit, rounded if it is a whole one."""
    found = re.fullmatch(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    try:
        number = float(found[1]) * (units[found[2]] if found[2] else 1.0) if found else None
    except (LookupError, ValueError):
        number = None
    if found and not found[2] and units is SECONDS:
        raise SettingError(f"{name} must be {_QUANTITIES[id(units)]}, but got {text!r}; give a unit, such as 5ms.")
    if number is None or not math.isfinite(number):
        known = ", ".join(unit.upper() if units is BYTES else unit for unit in units)
        raise SettingError(f"{name} must be {_QUANTITIES[id(units)]} (units: {known}), or none, but got {text!r}.")
    return round(number) if whole else number


def in_seconds(value: float) -> str:
    """Seconds as a text that a setting takes: 3.21ms; rounded up, so that a limit of that is kept."""
    unit, size = next((u, s) for u, s in reversed(SECONDS.items()) if value >= s or s == SECONDS["us"])
    scale = 10.0 ** (2 - math.floor(math.log10(value / size))) if value > 0 else 1.0
    return f"{math.ceil(value / size * scale - 1e-9) / scale:.10g}{unit}"
