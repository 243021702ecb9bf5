"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"  # how the names of files and directories begin that are being written


def aside(path: Path) -> Path:
    """A name beside `path` that nobody else has: in containers every process has the same number."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end that file takes the place of `path`, in one motion.

    Whoever reads `path`, at any moment, sees the old file or the new one. Where writing fails, the old one stays and
    nothing lies about. The content is on the disk before the name is: a machine that loses power keeps one of the two.

    Raises:
        OSError: it cannot be written.
    """
    temporary = aside(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Replaces the content of `path` by `text`, as UTF-8, in one motion (see `replacing`); `errors` is that of `open`.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)
