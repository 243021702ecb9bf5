"""A folder's image files: found, and looked at all at once."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ldmkit.data.sample import Problem
from ldmkit.images.files import SUFFIXES, BadSampleError, Limits, Look, look

TEXTS = (".txt", ".caption")
TABLES = (".jsonl", ".json1", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass
class Tree:
    """What a folder holds: paths below it with "/", sorted by their bytes, so that every machine has the same order."""

    pictures: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # by suffix
    folders: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # files that may be captions
    tables: list[str] = field(default_factory=list)  # files that may be metadata under another name
    problems: list[Problem] = field(default_factory=list)

    def used(self, suffixes: tuple[str, ...], pictures: list[str]) -> None:
        """Takes the text files that stand beside `pictures` out of the count of other files."""
        stems = {os.path.splitext(picture)[0] for picture in pictures} | set(pictures)
        for suffix in suffixes:
            self.others[suffix] -= sum(
                t.lower().endswith(suffix) and os.path.splitext(t)[0] in stems for t in self.texts
            )
        self.others = +self.others


def walk(root: str, *, without: str | None = None, metadata: Iterable[str] = ()) -> Tree:
    """Every picture below `root`, through links but no folder twice; hidden files and the folder `without` are left out."""
    tree, seen = Tree(), set[tuple[int, int]]()

    def complain(error: OSError) -> None:
        tree.problems.append(Problem(str(error.filename), error.strerror or str(error)))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=complain):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            tree.problems.append(Problem(folder, "a link to a folder that is read already"))
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        keep = [f for f in folders if not f.startswith(".") and not _same(os.path.join(folder, f), without)]
        folders[:] = sorted(keep, key=os.fsencode)
        relative = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        tree.folders += [relative + name for name in folders]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if name in metadata:
                tree.metadata.append(relative + name)
            elif suffix in SUFFIXES:
                tree.pictures.append(relative + name)
            else:
                tree.others[suffix or "no suffix"] += 1
                if suffix in TEXTS:
                    tree.texts.append(relative + name)
                elif suffix in TABLES:
                    tree.tables.append(relative + name)
        for name in folders:  # a folder that is called like a picture is one all the same
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                tree.problems.append(Problem(os.path.join(folder, name), "a folder, whatever its name"))
    tree.pictures.sort(key=os.fsencode)
    for files in (tree.metadata, tree.texts, tree.tables):
        files.sort(key=os.fsencode)
    return tree


def _same(path: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


def look_at_all(paths: list[str], limits: Limits, *, decode: bool) -> Iterator[tuple[str, Look | BadSampleError]]:
    """(path, what it is or why it cannot be used) in the order given."""

    def one(path: str) -> Look | BadSampleError:
        try:
            return look(path, limits, decode=decode)
        except BadSampleError as error:
            return error

    # One filter around the threads: each one's own would fight over the process's list of filters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            yield from zip(paths, pool.map(one, paths), strict=True)
