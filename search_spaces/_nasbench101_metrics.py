"""The protocol buffers in the official files of NAS-Bench-101, many at once.

Proto2, with these field numbers:

    ModelMetrics    evaluation_data = 1 (three EvaluationData), trainable_parameters = 2, total_time = 3
    EvaluationData  current_epoch = 1, training_time = 2, train_accuracy = 3, validation_accuracy = 4, test_accuracy = 5

All are doubles but for the parameters, a varint. The evaluations are those before, half-way and after the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

EVALUATIONS: Final = 3
FIELDS: Final = ("current_epoch", "training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
"""Of an evaluation, in the order of their numbers 1 to 5."""

_VARINT, _DOUBLE, _CONTENT, _SINGLE = 0, 1, 2, 5  # wire types
_SIZES = {_DOUBLE: 8, _SINGLE: 4}
_CONTINUED, _LONGEST_COUNT = 0x80, 5  # bytes of an int32 that is not negative


class MetricsError(ValueError):
    """Metrics of another form; says what they have, and which of many they are, counted from 0."""

    def __init__(self, has: str, place: int = 0) -> None:
        super().__init__(has)
        self.has, self.place = has, place


@dataclass(frozen=True, eq=False)
class Metrics:
    """N trainings.

    Attributes:
        parameters: (N,) int64.
        evaluations: (N, 3, 5) float64: before, half-way, after; FIELDS.
        total_time: (N,) float64, in seconds.
    """

    parameters: NDArray[np.int64]
    evaluations: NDArray[np.float64]
    total_time: NDArray[np.float64]


def parse_metrics(payloads: Sequence[bytes]) -> Metrics:
    """What serialised ModelMetrics have. Raises MetricsError.

    Of those of one layout only the first is read byte by byte: the others are the same but for the bytes of the values.
    """
    count = len(payloads)
    parameters, doubles = np.zeros(count, np.int64), np.zeros((count, EVALUATIONS * len(FIELDS) + 1))
    for left in _by_length(payloads):
        content = np.frombuffer(b"".join(payloads[place] for place in left), np.uint8).reshape(len(left), -1)
        while len(left):
            try:
                layout = read_layout(payloads[left[0]])
            except MetricsError as error:
                raise MetricsError(error.has, int(left[0])) from None
            fits = (((content ^ content[0]) & layout.mask) == 0).all(axis=1)
            rows = content[fits]
            parameters[left[fits]] = _varints(rows[:, layout.parameters])
            doubles[left[fits]] = np.ascontiguousarray(rows[:, layout.doubles]).view("<f8")
            left, content = left[~fits], content[~fits]
    evaluations = doubles[:, :-1].reshape(count, EVALUATIONS, len(FIELDS))
    return Metrics(parameters, evaluations, doubles[:, -1])


def _by_length(payloads: Sequence[bytes]) -> Iterator[NDArray[np.intp]]:
    """The places of the payloads, those of one length together."""
    lengths = np.fromiter(map(len, payloads), np.intp, len(payloads))
    for length in np.unique(lengths):
        yield np.flatnonzero(lengths == length)


def _varints(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers (N,) of varints (N, bytes)."""
    shifts = 7 * np.arange(digits.shape[1])
    numbers: NDArray[np.int64] = ((digits & 0x7F).astype(np.int64) << shifts).sum(axis=1)
    return numbers


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a payload has its values.

    Attributes:
        mask: (bytes,) the bits that say how the payload is to be read; the others are values, or skipped.
        parameters: the bytes of the varint.
        doubles: (128,) the bytes of all doubles: those of the evaluations in turn, then the total time.
    """

    mask: NDArray[np.uint8]
    parameters: slice
    doubles: NDArray[np.intp]


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    start: int
    end: int


def read_layout(payload: bytes) -> Layout:
    """Where one payload has what must be there; unknown fields are skipped. Raises MetricsError."""
    mask = np.full(len(payload), 0xFF, np.uint8)
    fields = list(_fields(payload, 0, len(payload), mask))
    messages = [field for field in fields if (field.number, field.wire) == (1, _CONTENT)]
    if len(messages) != EVALUATIONS:
        raise MetricsError(f"has {len(messages)} evaluations")
    doubles = []
    for message in messages:
        mask[message.start : message.end] = 0xFF
        inner = list(_fields(payload, message.start, message.end, mask))
        doubles += [_last(inner, place, _DOUBLE, name) for place, name in enumerate(FIELDS, start=1)]
    count = _last(fields, 2, _VARINT, "trainable_parameters")
    if count.end - count.start > _LONGEST_COUNT:
        raise MetricsError("has a number of parameters below 0")
    doubles.append(_last(fields, 3, _DOUBLE, "total_time"))
    places = np.concatenate([np.arange(field.start, field.end) for field in doubles])
    return Layout(mask, slice(count.start, count.end), places)


def _last(fields: Sequence[_Field], number: int, wire: int, name: str) -> _Field:
    """Of a field that comes often the last one counts, as the format says."""
    found = [field for field in fields if (field.number, field.wire) == (number, wire)]
    if not found:
        raise MetricsError(f"has no {name}")
    return found[-1]


def _fields(payload: bytes, start: int, end: int, mask: NDArray[np.uint8]) -> Iterator[_Field]:
    """The fields between two places of a payload; takes the bits of their values out of the mask."""
    while start < end:
        tag, start = _varint(payload, start, end)
        number, wire = tag >> 3, tag & 7
        stop = start
        if wire == _VARINT:
            _, stop = _varint(payload, start, end)
        elif wire == _CONTENT:
            size, start = _varint(payload, start, end)
            stop = start + size
        elif wire in _SIZES:
            stop = start + _SIZES[wire]
        if number == 0 or (stop == start and wire != _CONTENT) or stop > end:
            raise MetricsError("is no whole protocol buffer")
        mask[start:stop] = _CONTINUED if wire == _VARINT else 0
        yield _Field(number, wire, start, stop)
        start = stop


def _varint(payload: bytes, start: int, end: int) -> tuple[int, int]:
    """A number, and the place after it."""
    value = 0
    for shift, place in enumerate(range(start, min(end, start + 10))):
        value |= (payload[place] & 0x7F) << 7 * shift
        if not payload[place] & _CONTINUED:
            return value, place + 1
    raise MetricsError("is no whole protocol buffer")
