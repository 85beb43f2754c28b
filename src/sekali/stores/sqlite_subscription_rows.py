"""The rows that are kept of subscriptions: made with a checksum, and read back only where that fits.

A position that is wrong would skip events or repeat them, and nobody would know: a damaged row is an error, for its
subscription alone, that says how to go on.
"""

from typing import Any, NoReturn

import msgspec
import xxhash

from sekali.delivery import DeadLetter, Definition, LaneState, Open, Pause, Subscription

_decode_definition = msgspec.json.Decoder(Definition).decode
_decode_pause = msgspec.json.Decoder(Pause | None).decode
_decode_opens = msgspec.json.Decoder(tuple[Open, ...]).decode
_encode = msgspec.json.Encoder().encode


def text(value: Any) -> str:
    """Return a value as it is stored."""
    return _encode(value).decode()


def checksum(*columns: str | int) -> int:
    """Return the checksum of a row: 32 bits of the XXH3 (https://xxhash.com) of its columns as a JSON array."""
    return xxhash.xxh3_64_intdigest(_encode(columns)) >> 32


def subscription_of(
    subscription_id: int, name: bytes, definition: bytes, position: int, created_at_ns: int, pause: bytes, kept: int
) -> Subscription:
    """Return a subscription as it was stored; one that is damaged has a ``fault``, a name, and every topic."""
    try:
        columns = (subscription_id, name.decode(), definition.decode(), position, created_at_ns, pause.decode())
        if checksum(*columns) == kept:
            return Subscription(
                name.decode(), _decode_definition(definition), position, created_at_ns, _decode_pause(pause)
            )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    shown = name.decode(errors="backslashreplace")
    fault = f"what is kept of the subscription {shown} is damaged: delete it and make it anew, or restore a backup"
    return Subscription(shown, Definition("**", paused=True), 0, 0, fault=fault)


def lane_of(name: str, topic: str, cursor: int, opened: bytes, kept: int) -> LaneState:
    """Return a lane as it was stored.

    Raises:
        ValueError: it is damaged.

    """
    try:
        if checksum(name, topic, cursor, opened.decode()) == kept:
            return LaneState(topic, cursor, _decode_opens(opened))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    _damaged(name, f"of the topic {topic}", "seek to where it shall go on")


def dead_letter_of(
    name: str, seq: int, topic: str, attempts: int, error: bytes, at_ns: int, number: int, kept: int
) -> DeadLetter:
    """Return a dead letter as it was stored.

    Raises:
        ValueError: it is damaged.

    """
    try:
        if checksum(name, seq, attempts, error.decode(), at_ns) == kept:
            return DeadLetter(seq, topic, attempts, error.decode(), at_ns, number)
    except UnicodeDecodeError:
        pass
    _damaged(name, f"of the dead letter {seq}", "drop all of them, or seek to where it shall go on")


def _damaged(name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"what the subscription {name} keeps {what} is damaged: {remedy}, or restore a backup")
