"""Checksums of picture files: a flipped bit in a JPEG decodes without a complaint, and only a checksum tells."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ldmkit.errors import DataError
from ldmkit.images.files import BadSampleError, printable

LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class Checksums:
    """A list as ``sha256sum`` writes it, of files below `root`. Files that are not in it are not checked.

    Raises:
        DataError: the list cannot be read, or a line of it is none of ``sha256sum``.
    """

    def __init__(self, path: str, root: str) -> None:
        place = Path(path).expanduser()
        try:
            lines = place.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DataError(f"checksums cannot be read: {reason}", where=printable(str(place))) from None
        self.known: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            found = LINE.fullmatch(line)
            if found is None:
                raise DataError(
                    f"line {number} of the checksums is {line[:80]!r}",
                    hint="write the list with `sha256sum` in the folder of the pictures: a sum, two blanks, a file name",
                    where=printable(str(place)),
                )
            self.known[os.path.normpath(os.path.join(root, found[2]))] = found[1].lower()

    def check(self, path: str) -> None:
        """Raises `BadSampleError` where the file's content is not what the list says."""
        known = self.known.get(os.path.normpath(path))
        if known is None:
            return
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known:
                raise BadSampleError(path, "its content is not the one in the list of checksums")
