"""What can go wrong, as one tree.

    NasengineError
    ├── UnknownNameError   (LookupError)      a name that no plug-in, scheme or setting has
    ├── SettingError       (ValueError)       a setting of the wrong type or range
    │   └── TooManyError                      architectures that are too many to be enumerated
    ├── LimitError         (ValueError)       a limit on cost that no architecture keeps
    ├── ArchitectureError  (ValueError)       an architecture, genotype or space that breaks its rules
    ├── DataError          (ValueError)       data that are missing, damaged or not what they claim
    │   └── NoOrderError                      labels that are too few or too much alike to order anything by
    ├── RunError           (RuntimeError)     a run directory or checkpoint that cannot be used
    ├── ExportError        (RuntimeError)     a network that a format cannot hold, or a file that differs
    ├── DeviceError        (RuntimeError)     a device that is not there
    │   └── DeviceMemoryError                 work that its memory cannot hold
    ├── ParallelError      (RuntimeError)     processes that train together and do not meet, differ, or lose one
    ├── MissingExtraError  (ImportError)      an optional dependency that is not installed
    ├── DivergedError      (ArithmeticError)  a loss or weight that is no longer a finite number
    └── InterruptedRun     (RuntimeError)     a run that was asked to stop, saved, and can go on

Every message is one sentence: what must hold, what came, what to do.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PLUGIN_FILE: Final = "nasengine_plugin_"
"""Begins the names of the modules of users' files."""


class NasengineError(Exception):
    """Base of all errors that a user can mend; the command line prints it and exits with `exit_code`.

    Attributes:
        shared: all processes that train together raise it, and the first of them tells.
    """

    exit_code = 2
    shared = False


class UnknownNameError(NasengineError, LookupError):
    """A name that nothing has; the message carries the nearest one and the list."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        listed = f"(known: {', '.join(known) or 'none'})"
        super().__init__(
            f"Unknown {kind} {name!r}{f': did you mean {near[0]!r}' if near else ''} {listed}{'?' if near else '.'}"
        )


class SettingError(NasengineError, ValueError):
    """A setting of the wrong type or out of range."""


class TooManyError(SettingError):
    """A space with too many architectures to be enumerated."""


class LimitError(NasengineError, ValueError):
    """A limit on cost that no architecture keeps."""


class ArchitectureError(NasengineError, ValueError):
    """An architecture, a genotype text or a space that breaks its rules."""


class DataError(NasengineError, ValueError):
    """Data that are missing, damaged, or not what they claim to be."""


class NoOrderError(DataError):
    """Labels that are too few, or too much alike, for anything to be ordered by them."""


class RunError(NasengineError, RuntimeError):
    """A run directory, lock or checkpoint that cannot be used."""


class ExportError(NasengineError, RuntimeError):
    """A network that a format cannot hold, or a written file that computes something else."""


class DeviceError(NasengineError, RuntimeError):
    """A device that this machine does not have."""


class DeviceMemoryError(DeviceError):
    """Work that the memory of the device cannot hold; the last good state is on disk."""


class ParallelError(NasengineError, RuntimeError):
    """Processes that train together and do not meet, are not alike, or lose one of them."""


class MissingExtraError(NasengineError, ImportError):
    """An optional dependency that is not installed; the message carries the command that installs it."""


class DivergedError(NasengineError, ArithmeticError):
    """A loss or a weight became NaN or infinite; the last good state is on disk."""

    shared = True


class InterruptedRun(NasengineError, RuntimeError):
    """The run was asked to stop; it saved its state and can go on."""

    exit_code = 130
    shared = True


def reason(error: BaseException) -> str:
    """A stranger's error as a part of a sentence: its type, what it says on one line, the line of a user's file."""
    said = re.sub(r"[.!?] (?=[A-Z])", "; ", " ".join(str(error).split()))
    frames = traceback.walk_tb(error.__traceback__)
    lines = [(f, line) for f, line in frames if f.f_globals.get("__name__", "").startswith(PLUGIN_FILE)]
    place = [f" ({Path(frame.f_code.co_filename).name}, line {line})" for frame, line in lines[-1:]]
    return f"{type(error).__name__}: {said}".rstrip(".: ") + "".join(place)
