"""What a person's folder holds, found out once: usable pictures, what is known about each, what was passed over and why."""

from __future__ import annotations

import difflib
import hashlib
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ldmkit.data.sample import Problem
from ldmkit.data.source import Part
from ldmkit.data.sources.folder import metadata
from ldmkit.data.sources.folder.image_files import Tree, look_at_all, walk
from ldmkit.data.sources.folder.metadata import Column, Row
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.files import SUFFIXES, BadSampleError, Limits, Look, printable

VALIDATION_FOLDERS = ("validation", "valid", "val", "test")  # beside a folder `train`


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

    def path(self, picture: str) -> str:
        """Where a picture lies."""
        return os.path.join(self.root, picture)


def scan(
    path: str,
    limits: Limits,
    *,
    maps: str | None = None,
    classes: Sequence[str] | None = None,
    validation: float = 0.1,
    encoding: str = "utf-8",
    decode: bool = True,
) -> FolderIndex:
    """Looks at everything below `path`; a picture that cannot be used becomes a problem, none at all a `DataError`."""
    root = _root(path)
    tree = walk(root, without=maps, metadata=metadata.NAMES)
    rows = _rows(root, tree, encoding)
    entries = []
    for entry, bad in _looked_at(root, tree, rows, limits, decode):
        if isinstance(bad, BadSampleError):
            tree.problems.append(Problem(bad.path, bad.reason))
        else:
            entries += [replace(entry, look=bad, row=row) for row in rows.get(entry.picture, [None])]
    if not entries:
        raise _nothing(root, tree)
    index = FolderIndex(root, entries, problems=tree.problems)
    prefixes = _part_folders(tree)
    index.columns = metadata.columns([entry.row for entry in entries], classes)
    if "label" not in index.columns:
        index.columns |= _folder_labels(entries, prefixes, classes, tree.folders)
    if "boxes" in index.columns:
        _relative_boxes(index)
    index.parts = [_part(entry.picture, prefixes, validation) for entry in entries]
    if not prefixes and validation > 0:
        _fill_validation(index)
    _note(index, tree, bool(tree.metadata))
    return index


def _root(path: str) -> str:
    root = os.path.expanduser(path)
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        raise DataError("the path is a file; a folder of pictures is needed", where=printable(root))
    parent = os.path.dirname(os.path.abspath(root))
    beside = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    near = difflib.get_close_matches(os.path.basename(root), beside, n=1)
    hint = (
        f"did you mean {printable(os.path.join(parent, near[0]))}?"
        if near
        else "give data.path the folder of your pictures"
    )
    raise DataError("there is no such folder", hint=hint, where=printable(root))


def _rows(root: str, tree: Tree, encoding: str) -> dict[str, list[Row]]:
    """Picture -> its rows. Pictures that a row names as something else (`mask_file_name`) are no samples of their own."""
    known = {unicodedata.normalize("NFC", path): path for path in tree.pictures} | {p: p for p in tree.pictures}
    rows: dict[str, list[Row]] = {}
    partners = set[str]()
    for file in tree.metadata:
        for row in metadata.read_rows(root, file, encoding=encoding):
            picture = known.get(row.picture) or known.get(unicodedata.normalize("NFC", row.picture), row.picture)
            own = _partners(root, row, tree)
            partners.update(path for path in own.values() if path is not None)
            rows.setdefault(picture, []).append(replace(row, picture=picture, values={**row.values, **own}))
    for picture, (first, *_) in rows.items():
        if picture not in known and os.path.lexists(os.path.join(root, picture)):
            tree.pictures.append(picture)  # named by hand, so its suffix does not matter
        elif picture not in known:
            tree.problems.append(Problem(os.path.join(root, picture), f"named in {first.where}, but not there"))
    tree.pictures = sorted((p for p in tree.pictures if p not in partners), key=os.fsencode)
    return rows


def _partners(root: str, row: Row, tree: Tree) -> dict[str, str | None]:
    """The other pictures a row names (`mask_file_name`), relative to the root; None and a problem where one is not there."""
    out: dict[str, str | None] = {}
    for name, value in row.values.items():
        if not name.endswith("_file_name") or not isinstance(value, str):
            continue
        path = metadata.relative_path(row.folder, value, row.where)
        out[name] = path if os.path.exists(os.path.join(root, path)) else None
        if out[name] is None:
            reason = f"named as {name} in {row.where}, but not there"
            tree.problems.append(Problem(os.path.join(root, path), reason, skipped=False))
    return out


def _looked_at(
    root: str, tree: Tree, rows: Mapping[str, list[Row]], limits: Limits, decode: bool
) -> list[tuple[Entry, Look | BadSampleError]]:
    found = look_at_all([os.path.join(root, picture) for picture in tree.pictures], limits, decode=decode)
    nothing = Look((0, 0))
    return [(Entry(picture, nothing), look) for picture, (_, look) in zip(tree.pictures, found, strict=True)]


def _nothing(root: str, tree: Tree) -> DataError:
    seen = len(tree.pictures) + len(tree.problems) + sum(tree.others.values())
    message = f"no picture that can be used; looked for {', '.join(SUFFIXES)} in it and below, and saw {seen} files"
    if tree.others:
        message += " (" + ", ".join(f"{count} {suffix}" for suffix, count in tree.others.most_common(5)) + ")"
    message += "".join(f"\n  {printable(p.path)}: {p.reason}" for p in tree.problems[:5])
    message += f"\n  ... and {len(tree.problems) - 5} more" if len(tree.problems) > 5 else ""
    near = _nearest_with_pictures(root)
    return DataError(message, hint=f"there are pictures in {printable(near)}" if near else None, where=printable(root))


def _nearest_with_pictures(root: str) -> str | None:
    parent = os.path.dirname(os.path.abspath(root))
    try:
        beside = [entry.path for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith(".")]
        for folder in [parent, *sorted(beside, key=os.fsencode)[:50]]:
            if not os.path.samefile(folder, root) and any(n.lower().endswith(SUFFIXES) for n in os.listdir(folder)):
                return folder
    except OSError:  # only a hint
        return None
    return None


# Classes and parts


def _part_folders(tree: Tree) -> dict[str, Part]:
    """``train/`` and ``validation/`` (valid, val, test) at the top say what is held out; else there are none."""
    top = {picture.split("/", 1)[0] for picture in tree.pictures if "/" in picture}
    held_out = top & set(VALIDATION_FOLDERS)
    if "train" not in top or not held_out or len(top) > len(held_out) + 1:
        return {}
    parts: dict[str, Part] = dict.fromkeys(held_out, "validation")
    return {**parts, "train": "train"}


def _part(picture: str, prefixes: Mapping[str, Part], validation: float) -> Part:
    if prefixes:
        return prefixes.get(picture.split("/", 1)[0], "train")
    return "validation" if _share(picture) < validation else "train"


def _share(picture: str) -> float:
    """A number in [0, 1) that depends on the name alone: adding pictures moves no other from one part to the other."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(picture), digest_size=8).digest(), "big") / 2**64


def _fill_validation(index: FolderIndex) -> None:
    """A small folder may have no name below the share, or none above it: then the nearest one changes sides."""
    pictures = sorted({entry.picture for entry in index.entries}, key=_share)
    if len(pictures) > 1 and len(set(index.parts)) == 1:
        lone = pictures[0] if index.parts[0] == "train" else pictures[-1]
        other: Part = "validation" if index.parts[0] == "train" else "train"
        index.parts = [other if e.picture == lone else p for e, p in zip(index.entries, index.parts, strict=True)]


def _folder_labels(
    entries: Sequence[Entry], prefixes: Mapping[str, Part], classes: Sequence[str] | None, folders: Sequence[str]
) -> dict[str, Column]:
    """Sub-folders as classes, where every picture lies in one and there are two or more."""
    levels = [entry.picture.split("/")[1 if prefixes else 0 : -1] for entry in entries]
    names = {level[0] for level in levels if level}
    if classes is None and (len(names) < 2 or not all(levels)):
        return {}
    if classes is not None:
        missing, extra = [c for c in classes if c not in names], sorted(names - set(classes))
        if missing or extra or not all(levels):
            raise DataError(
                f"classes lists {', '.join(classes)}; without pictures: {', '.join(missing) or 'none'}; "
                f"folders not listed: {', '.join(map(printable, extra)) or 'none'}; "
                f"pictures in no folder: {sum(not level for level in levels)}",
                hint="one sub-folder a class, as listed",
            )
    column = metadata.labels([printable(level[0]) for level in levels], [""] * len(levels), classes)
    if column.field.names is None:  # folders that are called 0, 1, ...: still names
        names_ = tuple(sorted({printable(level[0]) for level in levels}))
        ids = [names_.index(printable(level[0])) for level in levels]
        column = Column(Field("label", len(names_), names_), ids)
    return {"label": column}


def _relative_boxes(index: FolderIndex) -> None:
    """(class, x, y, width, height) in pixels -> (class, left, top, right, bottom) in sides of the picture, cut to it."""
    lost, values = 0, list[Any]()
    for entry, boxes in zip(index.entries, index.columns["boxes"].values, strict=True):
        if boxes is None:
            values.append(None)
            continue
        height, width = entry.look.size
        rows = np.array(boxes, dtype=np.float64).reshape(-1, 5)
        rows[:, 3:] += rows[:, 1:3]
        rows[:, 1::2] = np.clip(rows[:, 1::2] / width, 0, 1)
        rows[:, 2::2] = np.clip(rows[:, 2::2] / height, 0, 1)
        keep = (rows[:, 3] > rows[:, 1]) & (rows[:, 4] > rows[:, 2])
        lost += int((~keep).sum())
        values.append(rows[keep].astype(np.float32))
    index.columns["boxes"] = Column(index.columns["boxes"].field, values)
    if lost:
        index.notes.append(f"{lost} boxes outside their picture or without area left out")


# The summary


def _note(index: FolderIndex, tree: Tree, described: bool) -> None:
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
    sides = [min(look.size) for look in looks]
    index.notes.append(f"shorter sides from {min(sides)} to {max(sides)} pixels")
    if tree.others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(tree.others.items()))
        index.notes.append(f"{sum(tree.others.values())} files of other types ignored: {kinds}")
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
