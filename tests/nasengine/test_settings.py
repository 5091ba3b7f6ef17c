from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from nasengine.errors import SettingError, UnknownNameError
from nasengine.settings import (
    BYTES,
    SECONDS,
    Setting,
    from_plain,
    group,
    in_seconds,
    override,
    plain,
    setting,
    table,
    validate,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = setting(0.1, "how fast", above=0, high=1)

    def __post_init__(self) -> None:
        validate(self, "top.inner")


@dataclass(frozen=True, kw_only=True)
class Top:
    count: int = setting(3, "how many", low=1)
    share: float = setting(0.5, "which part")
    flag: bool = setting(False, "whether")
    kind: Literal["plain", "fancy"] = setting("plain", "which")
    limit: int | None = setting(None, "how many at most", low=0)
    label: str = setting("", "what to call it")
    inner: Inner = group(Inner, "the rest")

    def __post_init__(self) -> None:
        validate(self, "top")


@dataclass(frozen=True, kw_only=True)
class Listed:
    sizes: tuple[int, ...] = setting((1, 2), "sizes", low=1)
    more: Literal["auto"] | tuple[int, ...] = setting("auto", "more sizes")

    def __post_init__(self) -> None:
        validate(self, "listed")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "top.count must be at least 1, but got 0"),
        ({"count": 1.0}, "top.count must be a whole number, but got 1.0"),
        ({"count": True}, "top.count must be a whole number, but got True"),
        ({"share": "0.5"}, "top.share must be a number, but got '0.5'"),
        ({"share": float("nan")}, "top.share must be a finite number, but got nan"),
        ({"share": float("inf")}, "top.share must be a finite number, but got inf"),
        ({"flag": 1}, "top.flag must be true or false, but got 1"),
        ({"kind": "odd"}, "top.kind must be plain or fancy, but got 'odd'"),
        ({"limit": -1}, "top.limit must be at least 0, but got -1"),
        ({"limit": "x"}, "top.limit must be a whole number or none, but got 'x'"),
        ({"label": 3}, "top.label must be a text, but got 3"),
        ({"inner": 3}, "top.inner must be Inner, but got 3"),
    ],
)
def test_values_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Top(**values)


@pytest.mark.parametrize("rate", [0, 0.0, 1.5, float("nan")])
def test_ranges_name_both_ends(rate: float) -> None:
    with pytest.raises(SettingError, match=f"top.inner.rate must be more than 0 and at most 1, but got {rate}"):
        Inner(rate=rate)


def test_plain_form_comes_back() -> None:
    top = Top(count=5, limit=7, kind="fancy", label="a b", inner=Inner(rate=0.25))
    data = json.loads(json.dumps(plain(top)))
    assert data["inner"] == {"rate": 0.25}
    assert from_plain(Top, data, "top") == top
    assert from_plain(Top, {}, "top") == Top()


def test_json_types_are_mended() -> None:
    for listed in (Listed(), Listed(sizes=(3,), more=(1, 2)), Listed(sizes=(), more=())):
        assert from_plain(Listed, json.loads(json.dumps(plain(listed))), "listed") == listed
    share = from_plain(Top, {"share": 1}, "top").share
    assert (type(share), share) == (float, 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cuont": 3}, r"Unknown setting 'top.cuont': did you mean 'top.count' .known: top.count, top.flag"),
        ({"inner": {"rat": 1.0}}, r"Unknown setting 'top.inner.rat': did you mean 'top.inner.rate'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        from_plain(Top, data, "top")


def test_wrong_types_in_plain_data() -> None:
    with pytest.raises(SettingError, match=r"top\.count must be a whole number, but got '3'"):
        from_plain(Top, {"count": "3"}, "top")


def test_texts_are_read_by_the_type_of_the_field() -> None:
    texts = {
        "count": "4",
        "share": "1e-3",
        "flag": "True",
        "kind": "fancy",
        "limit": "9",
        "label": "9",
        "inner.rate": "1",
    }
    expected = Top(count=4, share=1e-3, flag=True, kind="fancy", limit=9, label="9", inner=Inner(rate=1.0))
    before = plain(Top())
    data = override(before, Top, texts, "top")
    assert from_plain(Top, data, "top") == expected
    assert before == plain(Top())
    assert from_plain(
        Top, override(data, Top, {"limit": "none", "flag": "false"}, "top"), "top"
    ) == dataclasses.replace(expected, limit=None, flag=False)
    assert override({}, Top, {"inner.rate": "0.5"}, "top") == {"inner": {"rate": 0.5}}


def test_whole_numbers_are_read_from_a_text_with_commas() -> None:
    for text, numbers in {"3,5,7": (3, 5, 7), "4": (4,), "": ()}.items():
        data = override({}, Listed, {"sizes": text, "more": text}, "listed")
        assert from_plain(Listed, data, "listed") == Listed(sizes=numbers, more=numbers)
    assert override({}, Listed, {"more": "auto"}, "listed") == {"more": "auto"}
    assert [row.kind for row in table(Listed, "listed")] == [
        "whole numbers such as 3,5,7",
        "auto or whole numbers such as 3,5,7",
    ]


@pytest.mark.parametrize("text", ["3,x", "3,,5", "3;5", "(3, 5)", "1.5", " ", ","])
def test_other_texts_are_no_whole_numbers(text: str) -> None:
    with pytest.raises(SettingError, match=r"listed\.sizes must be whole numbers such as 3,5,7, but got '"):
        override({}, Listed, {"sizes": text}, "listed")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": (3, 0)}, "listed.sizes must be at least 1, but got 0"),
        ({"sizes": (3, 1.5)}, r"listed.sizes must be whole numbers such as 3,5,7, but got \(3, 1.5\)"),
        ({"sizes": (True,)}, r"listed.sizes must be whole numbers such as 3,5,7, but got \(True,\)"),
        ({"sizes": [3]}, r"listed.sizes must be whole numbers such as 3,5,7, but got \[3\]"),
        ({"more": "other"}, "listed.more must be auto or whole numbers such as 3,5,7, but got 'other'"),
    ],
)
def test_whole_numbers_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Listed(**values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "4.5", "top.count must be a whole number, but got '4.5'"),
        ("count", "none", "top.count must be a whole number, but got 'none'"),
        ("share", "x", "top.share must be a number, but got 'x'"),
        ("flag", "1", "top.flag must be true or false, but got '1'"),
        ("kind", "odd", "top.kind must be plain or fancy, but got 'odd'"),
        ("limit", "x", "top.limit must be a whole number or none, but got 'x'"),
        ("inner", "3", "top.inner is a group of settings; set one of top.inner.rate"),
        ("count.more", "3", "top.count is a single setting and has no 'more'"),
        ("conut", "3", "Unknown setting 'top.conut': did you mean 'top.count'"),
        ("inner.rat", "3", "Unknown setting 'top.inner.rat': did you mean 'top.inner.rate'"),
    ],
)
def test_other_texts_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises((SettingError, UnknownNameError), match=message):
        override(plain(Top()), Top, {name: text}, "top")


def test_table_lists_every_setting() -> None:
    rows = list(table(Top, "top"))
    assert rows[0] == Setting("top.count", "a whole number", 3, "how many")
    assert rows[3].kind == "plain or fancy"
    assert rows[4] == Setting("top.limit", "a whole number or none", None, "how many at most")
    assert rows[-1] == Setting("top.inner.rate", "a number", 0.1, "how fast")
    assert len(rows) == 7


@dataclass(frozen=True, kw_only=True)
class Amounts:
    time: float | None = setting(None, "seconds", above=0, units=SECONDS)
    size: int | None = setting(None, "bytes", low=1, units=BYTES)

    def __post_init__(self) -> None:
        validate(self, "amounts")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("time", "5ms", 0.005),
        ("time", "0.005s", 0.005),
        ("time", "1e-3 s", 0.001),
        ("time", " 300 us ", 0.0003),
        ("time", "2S", 2.0),
        ("time", "none", None),
        ("size", "2MB", 2_000_000),
        ("size", "2m", 2_000_000),
        ("size", "1.5K", 1500),
        ("size", "512KiB", 524_288),
        ("size", "1GiB", 2**30),
        ("size", "12b", 12),
        ("size", "12.6", 13),
        ("size", "None", None),
    ],
)
def test_amounts_have_units(name: str, text: str, value: float | None) -> None:
    found = override(plain(Amounts()), Amounts, {name: text}, "amounts")[name]
    assert found == (value if value is None else pytest.approx(value)) and isinstance(found, int) == (
        name == "size" and value is not None
    )
    from_plain(Amounts, {name: found}, "amounts")


@pytest.mark.parametrize("text", ["", "ms", "5 m", "1.2.3ms", "5ms or so", "infs", "1e999s"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(SettingError) as error:
        override(plain(Amounts()), Amounts, {"time": text}, "amounts")
    assert str(error.value) == (
        "amounts.time must be a time with a unit such as 5ms, 300us or 0.005s (units: us, ms, s), or none, but got "
        f"{text!r}."
    )


@pytest.mark.parametrize("text", ["5", "0.005", "-1e-3", "0"])
def test_a_time_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(SettingError) as error:
        override(plain(Amounts()), Amounts, {"time": text}, "amounts")
    assert str(error.value) == (
        f"amounts.time must be a time with a unit such as 5ms, 300us or 0.005s, but got {text!r}; give a unit, such as "
        "5ms."
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00321, "3.21ms"),
        (0.0032101, "3.22ms"),
        (2.5, "2.5s"),
        (0.1, "100ms"),
        (4.56e-6, "4.56us"),
        (1.23e-8, "0.0123us"),
    ],
)
def test_seconds_as_a_limit_that_is_kept(seconds: float, text: str) -> None:
    assert in_seconds(seconds) == text
    assert override(plain(Amounts()), Amounts, {"time": text}, "amounts")["time"] >= seconds * (1 - 1e-9)
