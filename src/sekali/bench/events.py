"""The events of the load: event n is a pure function of (seed, n), written by numpy at millions a second.

All events have the same width, so a batch is a matrix of bytes and costs no Python per event. About 190 bytes each.
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

TOPICS = ("kano1", "kano2", "kano3", "kano4")
SOURCE = "bench-1"
EVENT_SPACING_US = 5  # event time between event n and n + 1

_TEMPLATE = (
    b'{"topic":"kano#","event_id":"########-####-####-####-############","timestamp":"2026-11-23T##:##:##.######Z",'
    b'"source":"bench-1","payload":{"level":"####","status":###,"ms":###,"order":#######}}'
)
EVENT_BYTES = len(_TEMPLATE)
_DAY_NS = 1_795_392_000_000_000_000  # 2026-11-23T00:00:00Z
_START_OF_DAY_US = (10 * 3600 + 15 * 60 + 30) * 1_000_000
_LEVELS = (b"info", b"info", b"warn", b"fail")
_STATUSES = (b"200", b"201", b"204", b"404")


class IdKind(StrEnum):
    """How event ids look: in time order, or random."""

    UUID7 = "uuid7"
    UUID4 = "uuid4"


class Columns(NamedTuple):
    """Events as columns, for what appends them without HTTP."""

    topic_numbers: list[int]  # 0 to len(TOPICS) - 1
    event_ids: list[str]
    timestamps_ns: list[int]
    payloads: list[bytes]


def _table(texts: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), -1)


# Two bytes to four hexadecimal digits, as one number: numpy takes scalars from a table faster than rows.
_HEX = _table([b"%04x" % word for word in range(65_536)]).view(np.uint32).reshape(-1)
_TWO_DIGITS = _table([b"%02d" % number for number in range(100)])
_THREE_DIGITS = _table([b"%03d" % number for number in range(1000)])
_TOPIC_DIGITS = np.frombuffer("".join(topic[-1] for topic in TOPICS).encode(), np.uint8)
_LEVEL_TABLE, _STATUS_TABLE = _table(list(_LEVELS)), _table(list(_STATUSES))

_TOPIC_AT = _TEMPLATE.index(b"kano#") + 4
_ID_AT = _TEMPLATE.index(b"########-")
_TIME_AT = _TEMPLATE.index(b"##:##:##")
_LEVEL_AT = _TEMPLATE.index(b"####", _TIME_AT + 20)
_STATUS_AT = _TEMPLATE.index(b"###", _LEVEL_AT + 5)
_DURATION_AT = _TEMPLATE.index(b"###", _STATUS_AT + 4)
_ORDER_AT = _TEMPLATE.index(b"#######", _DURATION_AT + 4)
_PAYLOAD = slice(_TEMPLATE.index(b'{"level"'), EVENT_BYTES - 1)
_ID_PARTS = ((0, 8), (9, 13), (14, 18), (19, 23), (24, 36))


class EventMaker:
    """Writes events. ``seed`` sets ids and payloads; event times are the same for every seed."""

    def __init__(self, seed: int, id_kind: IdKind) -> None:
        self._streams = [mix(np.array([2 * seed + part], np.uint64))[0] for part in range(3)]
        self._id_kind = id_kind
        self._row = np.frombuffer(_TEMPLATE, np.uint8)

    def write(self, numbers: Numbers, out: Bytes) -> None:
        """Write the events ``numbers`` [...] as JSON into ``out`` [..., EVENT_BYTES]."""
        out[:] = self._row
        random = self._random(numbers, 2).view(np.int64)
        since_day_us = self._since_day_us(numbers)
        out[..., _TOPIC_AT] = _TOPIC_DIGITS.take(_topic_numbers(random))
        self._write_ids(numbers, since_day_us, out)
        self._write_times(since_day_us, out)
        out[..., _LEVEL_AT : _LEVEL_AT + 4] = _LEVEL_TABLE.take((random >> 2) & 3, axis=0)
        out[..., _STATUS_AT : _STATUS_AT + 3] = _STATUS_TABLE.take((random >> 4) & 3, axis=0)
        # Numbers in JSON have no leading zeros: the first digit is never one.
        out[..., _DURATION_AT : _DURATION_AT + 3] = _THREE_DIGITS.take(100 + ((random >> 8) & 0x1FF), axis=0)
        out[..., _ORDER_AT] = ord("1") + ((random >> 20) & 7)
        for at in (1, 4):
            digits = _THREE_DIGITS.take((random >> (20 + 5 * at)) & 0x1FF, axis=0)
            out[..., _ORDER_AT + at : _ORDER_AT + at + 3] = digits

    def columns(self, numbers: Numbers) -> Columns:
        """Return the events ``numbers`` [n] as the values that a store keeps."""
        out = np.empty((len(numbers), EVENT_BYTES), np.uint8)
        self.write(numbers, out)
        ids = out[..., _ID_AT : _ID_AT + 36].tobytes().decode()
        payloads = out[..., _PAYLOAD].tobytes()
        width = _PAYLOAD.stop - _PAYLOAD.start
        return Columns(
            _topic_numbers(self._random(numbers, 2).view(np.int64)).tolist(),
            [ids[at : at + 36] for at in range(0, len(ids), 36)],
            (_DAY_NS + 1000 * self._since_day_us(numbers)).tolist(),
            [payloads[at : at + width] for at in range(0, len(payloads), width)],
        )

    def identities(self, numbers: Numbers) -> list[tuple[str, str]]:
        """Return topic and event id of the events ``numbers`` [n]."""
        columns = self.columns(numbers)
        return [(TOPICS[topic], one) for topic, one in zip(columns.topic_numbers, columns.event_ids, strict=True)]

    def _write_ids(self, numbers: Numbers, since_day_us: Numbers, out: Bytes) -> None:
        words = np.empty((*numbers.shape, 2), np.uint64)
        words[..., 0], words[..., 1] = self._random(numbers, 0), self._random(numbers, 1)
        version = 4
        if self._id_kind is IdKind.UUID7:
            version = 7
            time_ms = (_DAY_NS // 1_000_000 + since_day_us // 1000).astype(np.uint64)
            words[..., 0] = (time_ms << np.uint64(16)) | (words[..., 0] & np.uint64(0xFFFF))
        raw = words.astype(">u8").view(np.uint8)
        raw[..., 6] = (raw[..., 6] & 0x0F) | (version << 4)
        raw[..., 8] = (raw[..., 8] & 0x3F) | 0x80
        digits = _HEX.take(raw.view(">u2")).view(np.uint8)
        for dashes, (start, end) in enumerate(_ID_PARTS):
            out[..., _ID_AT + start : _ID_AT + end] = digits[..., start - dashes : end - dashes]

    def _write_times(self, since_day_us: Numbers, out: Bytes) -> None:
        # Not divmod: numpy divides by a constant several times faster without the remainder.
        seconds = since_day_us // 1_000_000
        minutes, hours = seconds // 60, seconds // 3600
        us = since_day_us - seconds * 1_000_000
        thousands_us = us // 1000
        for part, at in ((hours, 0), (minutes - hours * 60, 3), (seconds - minutes * 60, 6)):
            out[..., _TIME_AT + at : _TIME_AT + at + 2] = _TWO_DIGITS.take(part, axis=0)
        for part, at in ((thousands_us, 9), (us - thousands_us * 1000, 12)):
            out[..., _TIME_AT + at : _TIME_AT + at + 3] = _THREE_DIGITS.take(part, axis=0)

    def _since_day_us(self, numbers: Numbers) -> Numbers:
        return numbers * EVENT_SPACING_US + _START_OF_DAY_US

    def _random(self, numbers: Numbers, stream: int) -> NDArray[np.uint64]:
        return mix(numbers.astype(np.uint64) + self._streams[stream])


def _topic_numbers(random: Numbers) -> Numbers:
    return random & (len(TOPICS) - 1)


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64 of each number: distinct for distinct numbers. https://prng.di.unimi.it/splitmix64.c."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
