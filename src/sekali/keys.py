"""API keys: what they may do, and how the key that a request brings is recognised. No I/O, no clock, no randomness.

A key is ``id.secret``. Of the secret, 256 random bits, only the SHA-256 is kept: a hash that is slow on purpose is for
passwords, which can be guessed, and would cost every request what it costs who guesses.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import msgspec

from sekali.topics import compile_pattern, covers, pattern_fault

LIVE_KEYS_MAX = 2  # of one name: the one in use, and the one that follows it
SECRET_CHARS_MIN = 32
CREDENTIALS_BYTES_MAX = 1024  # of an Authorization header; a longer one holds no key of ours
SCOPES_MAX = 100
ANONYMOUS = "anonymous"
BOOTSTRAP = "bootstrap"
EVERYTHING = "**"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,63}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SECRET = re.compile(r"[!-~]+", re.ASCII)
_KINDS = ("publish", "read")

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key as it is kept. ``name`` is whose it is. ``sha256`` is that of the secret, in hexadecimal digits."""

    id: Annotated[str, msgspec.Meta(pattern=f"^{_ID.pattern}$")]
    name: Annotated[str, msgspec.Meta(pattern=f"^{_NAME.pattern}$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=SCOPES_MAX)]
    created_at: Moment
    expires_at: Moment | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or now < self.expires_at


def scope_fault(scope: str) -> str | None:
    """Say what is wrong with a scope, or None: ``publish:<pattern>``, ``read:<pattern>`` and ``admin`` are good."""
    if scope == "admin":
        return None
    kind, colon, pattern = scope.partition(":")
    if kind not in _KINDS or not colon:
        return "not a scope: write publish:<topic or pattern>, read:<topic or pattern> or admin"
    fault = pattern_fault(pattern)
    return None if fault is None else f"not a scope: its pattern is {fault}"


def name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a key, or None for a good one."""
    if _NAME.fullmatch(name) is None:
        return "not a name: 1 to 64 letters, digits and ._~:@-, the first a letter or digit"
    return "taken by the server itself" if name in {ANONYMOUS, BOOTSTRAP} else None


def secret_hash(secret: bytes) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()


def bootstrap_key(text: str, created_at: datetime) -> Key:
    """Return the key that is given to the server as a setting; it may do everything.

    Raises:
        ValueError: it is no ``id.secret``, or too short.

    """
    key_id, _, secret = text.partition(".")
    if _ID.fullmatch(key_id) is None or _SECRET.fullmatch(secret) is None or len(secret) < SECRET_CHARS_MIN:
        raise ValueError(
            f"not a key: it has the form id.secret, the secret being at least {SECRET_CHARS_MIN} random characters "
            "without blanks; make one with: sekali keys bootstrap"
        )
    return Key(key_id, BOOTSTRAP, secret_hash(secret.encode()), ("admin",), created_at)


class Grant:
    """What the sender of a request may do. ``name`` is who it is; ``key`` is None where no key was asked for.

    ``readable`` are the topics and patterns that it may read, for a query; None: everything.
    """

    __slots__ = (
        "_publish",
        "_read",
        "expires_at_s",
        "is_admin",
        "key",
        "name",
        "publishes",
        "publishes_all",
        "readable",
    )

    def __init__(self, name: str, scopes: Collection[str], key: Key | None = None) -> None:
        self.name = name
        self.key = key
        self.expires_at_s = None if key is None or key.expires_at is None else key.expires_at.timestamp()
        self.is_admin = "admin" in scopes
        publish, read = (_patterns(scopes, kind) for kind in _KINDS)
        self.publishes = bool(publish)
        self.publishes_all = EVERYTHING in publish
        self.readable = None if EVERYTHING in read else read
        # Kept here, because strangers' patterns may push them out of the cache of those compiled.
        self._publish, self._read = ([compile_pattern(one).fullmatch for one in found] for found in (publish, read))

    def may_publish(self, topic: str) -> bool:
        """Whether a valid topic may be published to."""
        return self.publishes_all or any(match("/" + topic) for match in self._publish)

    def may_read(self, topic: str) -> bool:
        """Whether a valid topic may be read."""
        return self.readable is None or any(match("/" + topic) for match in self._read)

    def may_read_all_of(self, pattern: str) -> bool:
        """Whether every topic that a valid pattern matches may be read."""
        return self.readable is None or covers(self.readable, pattern)


def _patterns(scopes: Iterable[str], wanted: str) -> tuple[str, ...]:
    if "admin" in scopes:
        return (EVERYTHING,)
    split = [scope.partition(":") for scope in scopes]
    return tuple(pattern for kind, _, pattern in split if kind == wanted)


ANYBODY = Grant(ANONYMOUS, ["admin"])


class Keyring:
    """Keys at one moment, found by the credentials of a request. Of two with the same id the last counts."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._grants = {key.id.encode(): (bytes.fromhex(key.sha256), Grant(key.name, key.scopes, key)) for key in keys}

    def __len__(self) -> int:
        return len(self._grants)

    def grant(self, authorization: bytes) -> Grant | None:
        """Return what the key in an ``Authorization`` header may do, expired or not; None if it holds no key of ours.

        An id that is not known costs what a wrong secret does.
        """
        key_id, secret = _credentials(authorization)
        digest, grant = self._grants.get(key_id, _NOBODY)
        return grant if hmac.compare_digest(hashlib.sha256(secret).digest(), digest) else None

    def holds(self, grant: Grant) -> bool:
        """Whether a grant that was given before would be given again."""
        if grant.key is None:
            return False
        _, now = self._grants.get(grant.key.id.encode(), _NOBODY)
        return now is not None and now.key == grant.key


_NOBODY: tuple[bytes, Grant | None] = (bytes(32), None)  # no secret has this hash that anybody could find


def _credentials(authorization: bytes) -> tuple[bytes, bytes]:
    """Return id and secret: ``Bearer id.secret``, or ``Basic`` with the id as user and the secret as password."""
    scheme, _, text = authorization.partition(b" ")
    scheme = scheme.lower()
    if len(authorization) <= CREDENTIALS_BYTES_MAX:
        if scheme == b"bearer":
            key_id, _, secret = text.strip(b" ").partition(b".")
            return key_id, secret
        if scheme == b"basic":
            with suppress(binascii.Error):
                key_id, _, secret = base64.b64decode(text.strip(b" "), validate=True).partition(b":")
                return key_id, secret
    return b"", b""
