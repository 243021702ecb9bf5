"""Which images of a folder are trained on and which are held out, as its folders say."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ldmkit.data.source import Part
from ldmkit.errors import DataError
from ldmkit.images.files import printable

TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "test", "testing", "eval")


@dataclass(frozen=True)
class Splits:
    """Folder at the top -> its part, None: left out; nothing where no folder says it. `notes` tell what was done."""

    folders: Mapping[str, Part | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> bool:
        """Whether the folders say what is held out, so that no share is drawn."""
        return "validation" in self.folders.values()

    def part(self, picture: str) -> Part | None:
        """The part of an image; None: it belongs to none and is left out."""
        return self.folders.get(picture.split("/", 1)[0]) if "/" in picture else None

    def below(self, picture: str) -> list[str]:
        """The folders around an image, the one of its part not among them."""
        return picture.split("/")[1 if self.folders else 0 : -1]


def splits(pictures: Sequence[str], given: Mapping[str, str | Sequence[str]] | None, root: str) -> Splits:
    """What the folders at the top say; `given` (part -> folders) goes first. Raises `DataError` for what is not clear."""
    top = {picture.split("/", 1)[0]: 0 for picture in pictures if "/" in picture}
    for picture in pictures:
        if "/" in picture:
            top[picture.split("/", 1)[0]] += 1
    loose = sum("/" not in picture for picture in pictures)
    if given is not None:
        return _given(given, top, loose, root)
    train = [name for name in top if name.lower() in TRAIN]
    held = [name for name in top if name.lower() in HELD_OUT]
    others = [name for name in top if name not in train and name not in held]
    if train and not held and (others or loose):
        line = (
            f"data.split: {{train: {printable(train[0])}, validation: {printable(others[0] if others else 'FOLDER')}}}"
        )
        beside = ", ".join(map(printable, others)) or f"{loose} images"
        raise DataError(
            f"there is a folder {printable(train[0])} and beside it {beside}: splits, or classes?",
            hint=f"say what is held out: {line}; or give data.path the folder {printable(posixpath.join(root, train[0]))}",
            where=printable(root),
        )
    if train and not held:
        return Splits(dict.fromkeys(train, "train"))
    if not train or not held:
        named = f"{', '.join(map(printable, held))}: taken for classes, as there is no folder train" if held else ""
        return Splits(notes=(named,) if named else ())
    found: dict[str, Part | None] = {**dict.fromkeys(train, "train"), **dict.fromkeys(held, "validation")}
    return Splits(found, _notes(found, top, loose))


def _given(given: Mapping[str, str | Sequence[str]], top: Mapping[str, int], loose: int, root: str) -> Splits:
    named: dict[str, Part | None] = {}
    for part, folders in given.items():
        if part not in ("train", "validation"):
            raise DataError(f"split names the part {part!r}; the parts are train and validation")
        for folder in [folders] if isinstance(folders, str) else folders:
            if folder.strip("/") not in top:
                raise DataError(
                    f"split names the folder {folder!r}, and there are {', '.join(map(printable, top)) or 'none'} with images",
                    where=printable(root),
                )
            named[folder.strip("/")] = "train" if part == "train" else "validation"
    return Splits(named, _notes(named, top, loose))


def _notes(found: Mapping[str, Part | None], top: Mapping[str, int], loose: int) -> tuple[str, ...]:
    parts = [
        f"{'trained on' if part == 'train' else 'held out'}: the {top[name]} images in {printable(name)}"
        for name, part in found.items()
    ]
    left = [f"{printable(name)} ({count})" for name, count in top.items() if name not in found]
    left += [f"{loose} at the top"] if loose else []
    return (*parts, f"left out, as they are in no split: {', '.join(left)}") if left else tuple(parts)
