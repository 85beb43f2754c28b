"""The keys of a store, in a file beside it: ``<db_path>.keys``, a JSON array that only its owner may read.

Not in the store itself, because there only the server's writer writes; keys can be made before the server first starts
and while it runs. Writers take turns by a lock, and each replaces the file as a whole.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec

from sekali.errors import SekaliError, StartupError
from sekali.keys import LIVE_KEYS_MAX, SCOPES_MAX, Key, name_fault, scope_fault, secret_hash

FILE_BYTES_MAX = 4 * 1024 * 1024
ID_BYTES = 4
SECRET_BYTES = 32
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class KeyFileFault(StartupError):
    """The file of keys cannot be read or written."""


class KeyRefused(SekaliError):
    """A key that was asked for is not made, or one that is to go is not there."""


def new_key_text() -> str:
    """Return a new ``id.secret``."""
    return f"{secrets.token_hex(ID_BYTES)}.{secrets.token_urlsafe(SECRET_BYTES)}"


class KeyFile:
    """The file of keys that belongs to the store at ``db_path``."""

    def __init__(self, db_path: Path) -> None:
        db_path = db_path.resolve()  # through a link it is the same store, with the same keys
        self.path = db_path.with_name(db_path.name + ".keys")
        self._lock_path = db_path.with_name(db_path.name + ".keys.lock")

    def read(self) -> list[Key] | None:
        """Return the keys, expired ones included; None where there is no file, which is not the same as no key.

        Raises:
            KeyFileFault: it cannot be read, or is not what it should be; the message says what to do.

        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault(f"cannot be read: {error.strerror}; give it to the user who runs the server") from None
        try:
            with os.fdopen(descriptor, "rb") as file:
                if os.fstat(descriptor).st_mode & _OTHERS_MAY_WRITE:
                    raise self._fault(f"may be written by others, who could let themselves in: chmod 600 {self.path}")
                text = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise self._fault(f"cannot be read: {error.strerror}") from None
        return self._parse(text)

    def _parse(self, text: bytes) -> list[Key]:
        if len(text) > FILE_BYTES_MAX:
            raise self._fault(f"is over {FILE_BYTES_MAX} bytes, which is no file of keys")
        try:
            keys = _decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._fault(f"is damaged: {error}; restore it, or move it away and make new keys") from None
        for key in keys:
            for scope in key.scopes:
                if fault := scope_fault(scope):
                    raise self._fault(f"is damaged: key {key.id}: {scope!r} is {fault}")
        if len({key.id for key in keys}) < len(keys):
            raise self._fault("is damaged: two keys have the same id")
        return keys

    def state(self) -> tuple[int, ...] | None:
        """Return what differs after every change, None where there is no file.

        Raises:
            KeyFileFault: it cannot be looked at.

        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault(f"cannot be read: {error.strerror}") from None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def create(
        self, name: str, scopes: Sequence[str], now: datetime, expires_at: datetime | None = None
    ) -> tuple[Key, str]:
        """Make a key and return it with its text, which is kept nowhere. Without scopes it gets those of the live one.

        Raises:
            KeyRefused: a name or scope is not one, or the name has its keys already.
            KeyFileFault: the file cannot be read or written.

        """
        if fault := name_fault(name):
            raise KeyRefused(f"{name!r} is {fault}")
        for scope in scopes:
            if fault := scope_fault(scope):
                raise KeyRefused(f"{scope!r} is {fault}")
        if len(scopes) > SCOPES_MAX:
            raise KeyRefused(f"{len(scopes)} scopes, at most {SCOPES_MAX} are allowed: use patterns")
        with self._changing() as keys:
            live = [key for key in keys if key.name == name and key.is_live(now)]
            if len(live) >= LIVE_KEYS_MAX:
                ids = " and ".join(key.id for key in live)
                raise KeyRefused(
                    f"{name} has {LIVE_KEYS_MAX} live keys, {ids}: move everybody to one, then revoke the other"
                )
            if not scopes and not live:
                raise KeyRefused(
                    f"{name} has no live key to take scopes from: say what the new one may do, as in --scope 'read:**'"
                )
            text = new_key_text()
            while any(key.id == text.partition(".")[0] for key in keys):
                text = new_key_text()
            key_id, _, secret = text.partition(".")
            wanted = tuple(dict.fromkeys(scopes or live[0].scopes))
            key = Key(key_id, name, secret_hash(secret.encode()), wanted, now, expires_at)
            keys.append(key)
        return key, text

    def revoke(self, key_id: str) -> Key:
        """Remove a key and return it.

        Raises:
            KeyRefused: there is none with this id.
            KeyFileFault: the file cannot be read or written.

        """
        with self._changing() as keys:
            found = [key for key in keys if key.id == key_id]
            if not found:
                raise KeyRefused(f"there is no key with the id {key_id!r}; see: sekali keys list")
            keys.remove(found[0])
        return found[0]

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """Give the keys to change, alone, and write them at the end; not where the body raises."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._fault(f"cannot be changed: {self._lock_path}: {error.strerror}") from None
        try:
            self._give_to_owner(lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.read() or []
            yield keys
            try:
                self._write(keys)
            except OSError as error:
                raise self._fault(f"cannot be written: {error.strerror}") from None
        finally:
            os.close(lock)

    def _write(self, keys: list[Key]) -> None:
        """Replace the file so that after a crash it is the old one or the new one."""
        text = b"[\n" + b",\n".join(map(_encode, keys)) + b"\n]\n"
        temporary = self.path.with_name(self.path.name + ".new")
        with suppress(FileNotFoundError):
            temporary.unlink()  # of a writer that was killed; the lock is ours
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            self._give_to_owner(descriptor)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _give_to_owner(self, descriptor: int) -> None:
        """What root makes must stay readable for the server, which should not be root: its folder says who it is."""
        if os.geteuid() == 0:
            folder = self.path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)

    def _fault(self, what: str) -> KeyFileFault:
        return KeyFileFault(f"the keys file {self.path} {what}")


class KeyWatch:
    """Reads a file of keys, and notices its changes.

    Raises:
        KeyFileFault: it cannot be read.

    """

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._state = file.state()  # before it is read: a change in between is noticed by the next look
        self._told = ""
        self.keys = file.read()
        """The keys when it was last read; None where there was no file."""

    def look(self, on_change: Callable[[list[Key]], None], on_fault: Callable[[str], None]) -> None:
        """Look once: a call to the system, and reading only what has changed.

        ``on_change`` gets the keys, none where the file has gone. A file that cannot be read changes nothing:
        ``on_fault`` is told why, once.
        """
        try:
            state = self._file.state()
            if state == self._state:
                return
            keys = self._file.read()
        except KeyFileFault as fault:
            if str(fault) != self._told:
                self._told = str(fault)
                on_fault(self._told)
            return
        self._state, self._told, self.keys = state, "", keys
        on_change(keys or [])


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Key]).decode
