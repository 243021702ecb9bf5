"""Tar shards of samples (the WebDataset convention), indexed, so that any sample is one read at a known place.

The `webdataset` library reads a shard from its beginning and shuffles in a buffer: neither gives the place of a sample, so a run
could not go on where it stopped. The index comes from the headers alone; no file is decoded for it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldmkit.data.sample import Problem
from ldmkit.errors import DataError
from ldmkit.images.files import BadSampleError, printable

BRACES = re.compile(r"\{([^{}]*)\}")
REMOTE = re.compile(r"[a-z0-9+]{2,}:", re.IGNORECASE)  # two letters: not a drive of Windows


@dataclass(frozen=True)
class Shard:
    """One tar file: its samples' keys, and where their files lie. Sample i has the files [firsts[i], firsts[i + 1])."""

    path: str
    keys: tuple[str, ...]
    firsts: NDArray[np.int64]
    extensions: tuple[str, ...]
    places: NDArray[np.int64]  # (files, 2): offset and length

    def __len__(self) -> int:
        return len(self.keys)

    def files(self, sample: int) -> dict[str, tuple[int, int]]:
        """extension -> (offset, length) of a sample's files."""
        own = range(int(self.firsts[sample]), int(self.firsts[sample + 1]))
        return {self.extensions[i]: (int(self.places[i, 0]), int(self.places[i, 1])) for i in own}

    def digest(self) -> str:
        """Changes with the samples, their files, and the length of each."""
        names = "\n".join([*self.keys, *self.extensions])
        about = hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=12)
        about.update(self.places.tobytes())
        return about.hexdigest()

    def read(self, place: tuple[int, int], most: int | None = None) -> bytes:
        """The bytes of a file, at most `most` of them. Raises `BadSampleError` where the shard is gone or cut short."""
        offset, length = place
        length = length if most is None else min(length, most)
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                content = file.read(length)
        except OSError as error:
            raise BadSampleError(self.path, error.strerror or str(error)) from error
        if len(content) < length:
            raise BadSampleError(self.path, f"ends before byte {offset + length}")
        return content


def find(patterns: tuple[str, ...]) -> list[str]:
    """Paths of local shards, in the order written; braces and wildcards expanded, a folder standing for the shards in it.

    Raises `DataError` for a shard that is not there.
    """
    found: list[str] = []
    for pattern in patterns:
        if REMOTE.match(pattern):
            raise DataError(
                f"{pattern} is no local path; exact positions need shards on a disk",
                hint="copy the shards here first, or use data.type huggingface with streaming: true",
            )
        for path in expanded(os.path.expanduser(pattern)):
            here = os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path
            matches = sorted(glob.glob(here), key=os.fsencode) if glob.has_magic(here) else [here]
            found += matches or [path]
    if missing := [path for path in found if not os.path.isfile(path)]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"there are no such shards: {', '.join(map(printable, missing[:3]))}{more}",
            hint='data.path is one .tar, a folder of them, or a pattern such as "shards/train-{000..127}.tar"',
        )
    return list(dict.fromkeys(found))


def expanded(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `{x,y}` -> x, y. Nested ones may give a path twice."""
    match = next((m for m in BRACES.finditer(pattern) if ".." in m[1] or "," in m[1]), None)
    if match is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers is not None:
        width, first, last = len(numbers[1]), int(numbers[1]), int(numbers[2])
        words = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        words = match[1].split(",")
    for word in words:
        yield from expanded(pattern[: match.start()] + word + pattern[match.end() :])


def index(path: str) -> tuple[Shard, list[Problem]]:
    """The samples of a shard, and what is wrong with it. Neighbouring files that share a key are a sample.

    Raises `DataError` for a compressed shard.
    """
    keys, firsts, extensions, places = list[str](), list[int](), list[str](), list[tuple[int, int]]()
    problems: list[Problem] = []
    try:
        for name, offset, length in _members(path):
            folder, slash, file = name.rpartition("/")
            stem, _, extension = file.partition(".")
            if not stem or not extension:
                continue
            key, extension = folder + slash + stem, extension.lower()
            if not keys or keys[-1] != key:
                keys.append(key)
                firsts.append(len(extensions))
            elif extension in extensions[firsts[-1] :]:
                problems.append(Problem(f"{path}/{name}", "is there twice; the first one is taken"))
                continue
            extensions.append(extension)
            places.append((offset, length))
    except tarfile.TarError as error:
        problems.append(Problem(path, f"is damaged after {len(keys)} samples: {error}", skipped=not keys))
    except OSError as error:
        problems.append(Problem(path, error.strerror or str(error)))
    starts = np.array([*firsts, len(extensions)], dtype=np.int64)
    return Shard(path, tuple(keys), starts, tuple(extensions), np.array(places, np.int64).reshape(-1, 2)), problems


def _members(path: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, length) of each regular file."""
    with open(path, "rb") as file:
        head = file.read(6)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise DataError(
            "is compressed, and a place in it can only be reached by reading all before",
            hint="unpack it (gunzip): pictures hardly compress anyway",
            where=printable(path),
        )
    end = os.path.getsize(path)
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep a big object for each file
            if not member.isreg() or os.path.basename(member.name).startswith("__"):
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"{member.name} is cut short")
            yield member.name, member.offset_data, member.size
