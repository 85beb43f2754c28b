"""The folder of a store: made or refused, locked against a second server, with room left on its disk."""

import fcntl
import os
import re
from pathlib import Path

from sekali.errors import StartupError, StoreBroken

# SQLite's write-ahead log needs memory that all its processes share, and locks that hold: no network file system has
# both (https://www.sqlite.org/wal.html). A file system that a host shares with a virtual machine is one, too.
_NETWORK_FILE_SYSTEMS = """
9p afs beegfs ceph cifs coda fuse.ceph fuse.gcsfuse fuse.glusterfs fuse.juicefs fuse.rclone fuse.s3fs fuse.sshfs gfs
gfs2 glusterfs lustre ncpfs nfs nfs4 ocfs2 orangefs smb2 smb3 smbfs vboxsf virtiofs
"""
NETWORK_FILE_SYSTEMS = frozenset(_NETWORK_FILE_SYSTEMS.split())
MOUNTS = Path("/proc/self/mounts")


class FolderLock:
    """Holds ``<db_path>.lock`` for the life of a server: two writers on one file would give out the same seqs.

    A file of its own, because closing any descriptor of the database itself would drop SQLite's own locks. The
    path must not be a symbolic link, so that there is one lock for a store.
    """

    def __init__(self, db_path: Path) -> None:
        self.path = db_path.with_name(db_path.name + ".lock")
        self._owner_pid = os.getpid()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartupError(f"cannot open the lock {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise StartupError(
                f"{db_path} is in use by another sekali process; stop it first, or choose another DB_PATH"
            ) from None

    def require_owner(self) -> None:
        """Refuse a process that was forked off the one that holds the lock: SQLite cannot be carried over a fork.

        Raises:
            StoreBroken: it was.

        """
        if os.getpid() != self._owner_pid:
            raise StoreBroken("this process was forked after the store was opened: open the store after the fork")

    def release(self) -> None:
        """Let the next server in. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def index_folder(db_path: Path) -> Path:
    """Return the folder of the dedup index of a store."""
    return db_path.with_name(db_path.name + ".index")


def make_folder(db_path: Path) -> None:
    """Make the folder of the store.

    Raises:
        StartupError: it cannot be made or written to.

    """
    folder = db_path.parent
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_file(path.parent)  # or a power cut could take the folder, with all that was synced in it
    except OSError as error:
        raise StartupError(
            f"cannot make the folder {db_path.parent}: {error.strerror}; choose another DB_PATH"
        ) from None
    if not os.access(db_path.parent, os.W_OK):
        raise StartupError(f"the folder {db_path.parent} cannot be written to; choose another DB_PATH or its owner")


def sync_file(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_network_file_system(folder: Path, mounts: Path = MOUNTS) -> None:
    """Refuse a folder that is not on a disk of this machine. ``mounts`` is in the form of ``/proc/self/mounts``.

    Raises:
        StartupError: it is on a network file system.

    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # no Linux, or no /proc: nothing to tell it by
        return
    place, kind = Path("/"), ""
    for line in lines:
        _, mount_point, found, *_ = line.split(" ")
        path = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount_point))
        # A later line hides an earlier one of the same path.
        if folder.resolve().is_relative_to(path) and len(path.parts) >= len(place.parts):
            place, kind = path, found
    if kind in NETWORK_FILE_SYSTEMS:
        raise StartupError(
            f"{folder} is on a network file system ({kind} at {place}), where SQLite cannot keep what it promises; "
            "choose a DB_PATH on a disk of this machine"
        )


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written to the disk of a folder.

    Raises:
        OSError: the folder cannot be reached.

    """
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
