"""A person's folder, looked at once."""

from __future__ import annotations

import hashlib
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldmkit.data.sample import Problem
from ldmkit.data.source import Part
from ldmkit.data.sources.folder import captions, keypoints, label_maps, metadata, row_fields, splits
from ldmkit.data.sources.folder.image_files import Tree, look_at_all, walk
from ldmkit.data.sources.folder.index import Asked, Entry, FolderIndex, describe
from ldmkit.data.sources.folder.metadata import Row
from ldmkit.data.sources.folder.partners import examine, range_of
from ldmkit.data.sources.folder.row_fields import Column
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.files import SUFFIXES, BadSampleError, Limits, Look, printable
from ldmkit.messages import nearest

MAP = "map"  # the field of label maps


def scan(path: str, limits: Limits, asked: Asked) -> FolderIndex:
    """Looks at everything below `path`; an image that cannot be used becomes a problem, none at all a `DataError`."""
    root = _root(path)
    tree = walk(root, without=asked.maps, metadata=metadata.NAMES)
    notes = _other_tables(root, tree, asked.encoding)
    rows = _rows(root, tree, asked, notes)
    maps = label_maps.beside(tree.pictures) if asked.maps is None else {}
    if maps:
        notes.append(
            f"label maps: {len(maps)} files such as {printable(next(iter(maps.values())))} are the maps of their images"
        )
        tree.pictures = [picture for picture in tree.pictures if picture not in set(maps.values())]
    found = splits.splits(tree.pictures, asked.split, root)
    if found.folders:
        tree.pictures = [picture for picture in tree.pictures if found.part(picture) is not None]
    entries = []
    for entry, bad in _looked_at(root, tree, rows, limits, asked.decode):
        if isinstance(bad, BadSampleError):
            tree.problems.append(Problem(bad.path, bad.reason))
        else:
            entries += [replace(entry, look=bad, row=row) for row in rows.get(entry.picture, [None])]
    if not entries:
        raise _nothing(root, tree)
    index = FolderIndex(root, entries, problems=tree.problems, notes=[*notes, *found.notes], maps=maps)
    index.range = limits.value_range or range_of([entry.look for entry in entries])
    _describe(index, tree, found, asked)
    if found.said:
        index.parts = [found.part(entry.picture) or "train" for entry in entries]
    else:
        index.parts = [_drawn(entry.picture, asked.validation) for entry in entries]
        if asked.validation > 0:
            _fill_validation(index)
    _examine_partners(index, limits, asked)
    describe(index, tree, bool(tree.metadata))
    return index


def _describe(index: FolderIndex, tree: Tree, found: splits.Splits, asked: Asked) -> None:
    """The fields that rows, files beside the images and folders give."""
    entries = index.entries
    index.columns = row_fields.columns([entry.row for entry in entries], asked.classes)
    column, notes = captions.beside(index.root, [entry.picture for entry in entries], tree.texts)
    index.notes += notes
    if column is not None and "caption" not in index.columns:
        index.columns["caption"] = column
        tree.used(captions.SUFFIXES, [entry.picture for entry in entries])
    elif column is not None:
        index.notes[-len(notes) :] = [
            "captions: those of the metadata are read; the text files beside the images are not"
        ]
    if (other := row_fields.stand_in(index.columns)) is not None:
        index.columns["caption"] = index.columns[other]
        index.notes.append(f"captions: the column {other}, which is read as caption too")
    if "label" not in index.columns:
        index.columns |= _folder_labels(entries, found, asked.classes)
        levels = [found.below(entry.picture) for entry in entries]
        if "label" not in index.columns and any(levels) and not all(levels):
            loose = sum(not level for level in levels)
            index.notes.append(
                f"{loose} images at the top and {len(levels) - loose} in folders: the folders are no classes"
            )
    if "boxes" in index.columns:
        _relative_boxes(index)
    if keypoints.NAME in index.columns:
        keypoints.relate(index)
    if (empty := _empty_captions(index)) is not None:
        index.notes.append(empty)


def _empty_captions(index: FolderIndex) -> str | None:
    if "caption" not in index.columns:
        return None
    cells = index.columns["caption"].values
    empty = sum(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)
    return f"captions: {empty} of {len(cells)} are empty" if empty else None


def _examine_partners(index: FolderIndex, limits: Limits, asked: Asked) -> None:
    """Looks at the other images that rows name, except those that are label maps."""
    own = [name for name, column in index.columns.items() if column.field.kind == "image"]
    if unknown := [name for name in asked.aligned or () if name not in own]:
        raise DataError(
            f"aligned names {', '.join(unknown)}; the fields with images are {', '.join(own) or 'none besides image'}",
            hint="a column source_file_name of the metadata is the field source",
        )
    looks = [entry.look for entry in index.entries]
    for name in own:
        column = index.columns[name]
        if name in (MAP, asked.maps):
            files = zip([entry.picture for entry in index.entries], column.values, strict=True)
            index.maps |= {picture: path for picture, path in files if path is not None}
            del index.columns[name]
            continue
        found = examine(name, column, looks, index.root, limits, aligned=asked.aligned, decode=asked.decode)
        index.columns[name] = replace(column, field=found.field)
        index.partner_limits[name] = found.limits
        index.notes.append(found.note)


def _root(path: str) -> str:
    root = os.path.expanduser(path)
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        raise DataError("the path is a file; a folder of pictures is needed", where=printable(root))
    parent = os.path.dirname(os.path.abspath(root))
    beside = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    near = nearest(os.path.basename(root), beside)
    hint = (
        f"did you mean {printable(os.path.join(parent, near))}?"
        if near
        else "give data.path the folder of your pictures"
    )
    raise DataError("there is no such folder", hint=hint, where=printable(root))


def _other_tables(root: str, tree: Tree, encoding: str) -> list[str]:
    """Where no file is called metadata, the one table that names the images all the same is read, and said so."""
    if tree.metadata:
        return []
    stems = {posixpath.splitext(picture)[0]: picture for picture in tree.pictures}
    found = [t for t in tree.tables if metadata.names_images(os.path.join(root, t), stems, encoding)]
    by_folder = Counter(posixpath.dirname(table) for table in found)
    if twice := [table for table in found if by_folder[posixpath.dirname(table)] > 1]:
        raise DataError(
            f"{' and '.join(map(printable, twice))} both name the images of the folder",
            hint="call the one that is to be read metadata.csv (or .jsonl, .json, .parquet)",
            where=printable(root),
        )
    tree.metadata = found
    return [f"metadata: read from {printable(table)}, which names the images" for table in found]


def _rows(root: str, tree: Tree, asked: Asked, notes: list[str]) -> dict[str, list[Row]]:
    """Image -> its rows. Images that a row names as something else (`mask_file_name`) are no samples of their own."""
    known = {unicodedata.normalize("NFC", path): path for path in tree.pictures} | {p: p for p in tree.pictures}
    stems: dict[str, list[str]] = {}
    for path in tree.pictures:
        stems.setdefault(posixpath.splitext(path)[0], []).append(path)
    rows: dict[str, list[Row]] = {}
    partners, by_stem = set[str](), 0
    for file in tree.metadata:
        for row in metadata.read_rows(root, file, encoding=asked.encoding):
            picture = known.get(row.picture) or known.get(unicodedata.normalize("NFC", row.picture), row.picture)
            twins = stems.get(posixpath.splitext(picture)[0], stems.get(picture, []))
            if picture not in known and not os.path.lexists(os.path.join(root, picture)) and len(twins) == 1:
                picture, by_stem = twins[0], by_stem + 1
            own = _partners(root, row, tree)
            partners.update(path for path in own.values() if path is not None)
            rows.setdefault(picture, []).append(replace(row, picture=picture, values={**row.values, **own}))
    if by_stem:
        notes.append(
            f"metadata: {by_stem} rows name files with another ending than they have; matched by the name before it"
        )
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
        if not name.endswith(row_fields.PARTNER) or not isinstance(value, str):
            continue
        path = metadata.relative_path(root, row.folder, value, row.where)
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


def _drawn(picture: str, validation: float) -> Part:
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


def _folder_labels(entries: Sequence[Entry], found: splits.Splits, classes: Sequence[str] | None) -> dict[str, Column]:
    """Sub-folders as classes, where every image lies in one and there are two or more."""
    levels = [found.below(entry.picture) for entry in entries]
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
    ordered = tuple(classes) if classes is not None else tuple(sorted(map(printable, names), key=row_fields.natural))
    ids = {name: number for number, name in enumerate(ordered)}
    return {"label": Column(Field("label", len(ordered), ordered), [ids[printable(level[0])] for level in levels])}


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
