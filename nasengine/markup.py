"""HTML from plain values: whatever is not said to be HTML is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LEFT_ALONE = ("<", ">", "&", "\u2028", "\u2029")  # in a script these could end it, or a line of it


class Html(str):
    """A text that is HTML already."""


def markup(value: object) -> Html:
    """A value as HTML: escaped, unless it is HTML already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def joined(parts: Iterable[object]) -> Html:
    """Several values one after the other."""
    return Html("".join(map(markup, parts)))


def element(tag: str, content: object = "", attributes: Mapping[str, object] | None = None) -> Html:
    """`<tag ...>content</tag>`; attributes that are True stand without a value, those that are False do not."""
    given = {name: value for name, value in (attributes or {}).items() if value is not False}
    words = [name if value is True else f'{name}="{html.escape(str(value))}"' for name, value in given.items()]
    return Html(f"<{' '.join([tag, *words])}>{markup(content)}</{tag}>")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table; columns whose entries are all numbers, or texts of numbers, are set to the right."""
    cells = [list(row) for row in rows]
    right = [all(_numeric(row[column]) for row in cells) for column in range(len(headings))]

    def line(tag: str, row: Sequence[object]) -> Html:
        marks: list[dict[str, object]] = [{"class": "number"} if number else {} for number in right]
        scope: dict[str, object] = {"scope": "col"} if tag == "th" else {}
        return element("tr", joined(element(tag, v, {**scope, **m}) for v, m in zip(row, marks, strict=True)))

    head = element("thead", line("th", headings))
    body = element("tbody", joined(line("td", row) for row in cells))
    title = element("caption", caption) if caption else Html("")
    whole = element("table", joined([title, head, body]))
    return element(
        "div", whole, {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": caption or "table"}
    )


def copy_button(text: str, label: str = "copy") -> Html:
    """A button that copies a text."""
    return element("button", label, {"type": "button", "class": "copy", "data-copy": text, "title": text})


def details(summary: object, content: object) -> Html:
    """Something that is unfolded on demand."""
    return element("details", joined([element("summary", summary), markup(content)]))


def json_text(data: Any) -> Html:
    """Plain values as JSON that may stand in a script element. Raises ValueError for numbers that are not finite."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in _LEFT_ALONE:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


def _numeric(value: object) -> bool:
    if isinstance(value, Html):
        return False
    text = str(value).replace(",", "").replace("−", "-")
    return text in ("", "–") or text[:1].isdigit() or text[1:2].isdigit()
