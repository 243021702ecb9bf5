"""Who holds a directory: a file lock, which goes with its process, or a marker where the file system has none. Loads no torch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from ldmkit.errors import ResourceError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"


class Lock:
    """The lock of `folder`, in its file ``.lock``, which says who has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None
        self._marker: Path | None = None

    def acquire(self) -> None:
        """Makes the folder if it is not there, and takes its lock.

        Raises:
            ResourceError: another process has it, or the place cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.folder / LOCK, "a+b", buffering=0)  # noqa: SIM115 - held until it is released
        except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
            raise unwritable(self.folder, error) from error
        try:
            if not _flock(self._file, self.folder):
                self._marker = _exclusive(self.folder / f"{LOCK}.pid")
        except ResourceError:
            self.release()
            raise
        with contextlib.suppress(OSError):  # on a full disk nobody can read who has it, and it holds all the same
            self._file.truncate(0)
            self._file.write(_myself())

    def release(self) -> None:
        """Lets go of it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
            self._marker = None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def unwritable(folder: Path, error: OSError | ValueError) -> ResourceError:
    """The ResourceError of a directory that takes no files."""
    return ResourceError(
        f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}",
        hint="choose a place that can be written with --out DIR",
    )


def _flock(file: IO[bytes], folder: Path) -> bool:
    """Locks the file; False where the file system has no locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise _in_use(folder, file.read()) from None
    except OSError:  # ENOLCK on some network file systems
        return False
    return True


def _exclusive(marker: Path) -> Path:
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        raise _in_use(marker.parent, marker.read_bytes(), f"; if it is gone, delete {marker}") from None
    except OSError as error:
        raise unwritable(marker.parent, error) from error
    with os.fdopen(descriptor, "wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(_myself())
    print(f"warning: {marker.parent} has no file locks; {marker.name} stands in", file=sys.stderr)
    return marker


def _myself() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()}).encode()


def _in_use(folder: Path, holder: bytes, more: str = "") -> ResourceError:
    try:
        about = json.loads(holder)
        who = f"process {about['pid']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return ResourceError(
        f"{folder} is in use by {who}{more}", hint="wait for it, or give another directory with --out DIR"
    )
