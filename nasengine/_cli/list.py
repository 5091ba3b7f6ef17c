"""`nasengine list`."""

from __future__ import annotations

import typer

EPILOG = "Example: nasengine list   (then: nasengine search --set algo.beta=5)"


def list() -> None:
    """Name spaces, algorithms, data and all settings."""
    from nasengine import listing

    kind = ""
    for entry in listing.list():
        if entry.kind != kind:
            kind = entry.kind
            typer.echo(f"\n{kind.upper()}")
        typer.echo(f"  {entry.name:<12} {entry.summary}")
        for setting in entry.settings:
            default = "" if setting.default in (None, "", ()) else f" = {_plain(setting.default)}"
            typer.echo(f"      {setting.name}{default}".ljust(44) + f"  {setting.help}")


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
