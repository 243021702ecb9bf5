"""What a person's folder holds: usable images, what is known about each, what was passed over and why."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ldmkit.data.sample import Problem
from ldmkit.data.source import Part
from ldmkit.data.sources.folder.image_files import Tree
from ldmkit.data.sources.folder.metadata import Row
from ldmkit.data.sources.folder.partners import bits_of
from ldmkit.data.sources.folder.row_fields import Column
from ldmkit.images.files import Limits, Look, printable

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".zst")


@dataclass(frozen=True)
class Entry:
    """A usable picture (path below the root) and its row of metadata."""

    picture: str
    look: Look
    row: Row | None = None


@dataclass
class FolderIndex:
    """Entries sorted by the bytes of their paths; `columns` and `parts` go along with them."""

    root: str
    entries: list[Entry]
    columns: dict[str, Column] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    maps: dict[str, str] = field(default_factory=dict)  # image -> its label map beside it, both below the root
    range: tuple[float, float] | None = None  # black and white of 16-bit files that hold fewer bits
    partner_limits: dict[str, Limits] = field(default_factory=dict)  # field -> how its images are read

    def path(self, picture: str) -> str:
        """Where a picture lies."""
        return os.path.join(self.root, picture)


@dataclass(frozen=True)
class Asked:
    """What a recipe says of the folder, besides the limits; see `FolderSource`."""

    maps: str | None = None
    classes: Sequence[str] | None = None
    validation: float = 0.1
    encoding: str = "utf-8"
    decode: bool = True
    split: Mapping[str, str | Sequence[str]] | None = None
    aligned: Sequence[str] | None = None


def describe(index: FolderIndex, tree: Tree, described: bool) -> None:
    """Adds to the notes what a person should know of the folder as a whole; `described`: there is metadata."""
    looks = [entry.look for entry in index.entries]
    skipped = sum(problem.skipped for problem in index.problems)
    counts = {
        "pictures that can be used": len({entry.picture for entry in index.entries}),
        "left out (see the list of problems)": skipped,
        "grey": sum(look.grey for look in looks),
        "with several frames, of which the first is taken": sum(look.frames > 1 for look in looks),
        "without a row of metadata": sum(entry.row is None for entry in index.entries) if described else 0,
    }
    index.notes[:0] = [f"{count} {what}" for what, count in counts.items() if count]
    index.notes[1:1] = [f"{n} {remark}" for remark, n in Counter(filter(None, (look.remark for look in looks))).items()]
    deep, bits = sum(look.deep for look in looks), bits_of(looks)
    if deep and bits is not None:
        white = f"black is 0, white {2**bits - 1} (data.value_range says another)"
        index.notes.append(f"{deep} images of 16 bits hold numbers of {bits} bits: {white}")
    sides = [min(look.size) for look in looks]
    index.notes.append(f"shorter sides from {min(sides)} to {max(sides)} pixels")
    if tree.others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(tree.others.items()))
        index.notes.append(f"{sum(tree.others.values())} files of other types ignored: {kinds}")
        if archives := [suffix for suffix in tree.others if suffix in ARCHIVES]:
            index.notes.append(
                f"archives ({', '.join(archives)}) are not looked into: unpack them; data.type: webdataset reads .tar"
            )
        if heic := sum(tree.others[suffix] for suffix in (".heic", ".heif")):
            index.notes.append(f"{heic} HEIC files (of phones) are not read: save them as JPEG or PNG")
    label = index.columns.get("label")
    if label is not None and label.field.names:
        tally = Counter(label.values)
        index.notes.append(
            "classes: " + ", ".join(f"{i} {name} ({tally[i]})" for i, name in enumerate(label.field.names))
        )
    _report_twins(index)


def _report_twins(index: FolderIndex) -> None:
    """Files of equal content on both sides of the split, and names that differ only in suffix or in their Unicode form."""
    trained = {e.look.digest for e, part in zip(index.entries, index.parts, strict=True) if part == "train"} - {None}
    stems: dict[str, str] = {}
    for entry, part in zip(index.entries, index.parts, strict=True):
        path = index.path(entry.picture)
        if part == "validation" and entry.look.digest in trained:
            index.problems.append(
                Problem(path, "held out, but its content is also among the training pictures", skipped=False)
            )
        stem = unicodedata.normalize("NFC", posixpath.splitext(entry.picture)[0])
        if stems.setdefault(stem, entry.picture) != entry.picture:
            index.problems.append(Problem(path, f"has the same name as {printable(stems[stem])}", skipped=False))
