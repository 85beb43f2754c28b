"""What the headers of a publish request say: how its body is written, and what its sender prefers."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from sekali.api.encoding import is_gzip
from sekali.api.problems import Kind, Problem

_JSON_TYPES = {"", "application/json"}
_NDJSON_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl"}


class Preferences(msgspec.Struct, frozen=True):
    """What a ``Prefer`` header asks for (RFC 7240). Preferences that are not known are ignored, as it says."""

    minimal: bool = False
    strict: bool = False
    later: bool = False

    @property
    def applied(self) -> list[tuple[bytes, bytes]]:
        """The header that tells which were followed."""
        names = [
            name
            for name, is_set in (
                (b"return=minimal", self.minimal),
                (b"handling=strict", self.strict),
                (b"respond-async", self.later),
            )
            if is_set
        ]
        return [(b"preference-applied", b", ".join(names))] if names else []


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a request's headers settle. ``length`` is that of the body, None where it comes in chunks."""

    is_ndjson: bool
    is_gzip: bool
    preferences: Preferences
    length: int | None


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> Negotiated:
    """Read the headers; names are in lower case.

    Raises:
        Problem: 415, the body is neither JSON nor NDJSON, or compressed in a way that is not known.

    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in _READ:
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    length = found.get(b"content-length")
    return Negotiated(
        is_ndjson(found.get(b"content-type", "")),
        is_gzip(found.get(b"content-encoding", "")),
        _preferences(found.get(b"prefer", "")),
        None if length is None else int(length),  # the HTTP parser has seen that it is a number
    )


_READ = {b"content-encoding", b"content-type", b"prefer", b"content-length"}


def is_ndjson(content_type: str) -> bool:
    """Tell whether a body is NDJSON rather than JSON, from the value of its ``Content-Type``.

    Raises:
        Problem: 415, it is neither.

    """
    if content_type == "application/json":
        return False
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.lower().replace('"', "").replace(" ", "").partition("charset=")[2].partition(";")[0]
    if charset not in {"", "utf-8", "utf8", "us-ascii"}:
        raise Problem(Kind.MEDIA, f"charset {charset} is not known; send UTF-8")
    if media_type in _NDJSON_TYPES:
        return True
    if media_type in _JSON_TYPES or (media_type.startswith("application/") and media_type.endswith("+json")):
        return False
    raise Problem(
        Kind.MEDIA,
        f"content type {media_type} is not known; send application/json (an event or an array of events) or "
        "application/x-ndjson (an event a line)",
        headers=[(b"accept-post", b"application/json, application/x-ndjson")],
    )


def _preferences(text: str) -> Preferences:
    if not text:
        return Preferences()
    wanted = {part.partition(";")[0].replace('"', "").replace(" ", "").lower() for part in text.split(",")}
    return Preferences("return=minimal" in wanted, "handling=strict" in wanted, "respond-async" in wanted)
