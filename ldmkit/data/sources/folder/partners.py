"""Other images that belong to a row (`source_file_name`): looked at before training, so that it is known how they lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ldmkit.data.sources.folder.image_files import look_at_all
from ldmkit.data.sources.folder.row_fields import Column
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.files import BadSampleError, Limits, Look, printable

DEPTHS = (8, 10, 12, 14, 16)  # bits that the numbers of a 16-bit file have in practice


def bits_of(looks: Sequence[Look]) -> int | None:
    """How many bits the numbers of 16-bit files have: the fewest of `DEPTHS` that hold the largest. None: no such file."""
    peaks = [look.peak for look in looks if look.peak is not None]
    return next(bits for bits in DEPTHS if max(peaks) < 2**bits) if peaks else None


def range_of(looks: Sequence[Look]) -> tuple[float, float] | None:
    """Black and white of 16-bit files whose numbers have fewer bits; None where they have all 16, or there are none."""
    bits = bits_of(looks)
    return None if bits in (None, 16) else (0.0, float(2**bits - 1))


@dataclass(frozen=True)
class Partners:
    """The looked-at images of one column: what the field is, what to say of it."""

    field: Field
    note: str
    limits: Limits


def examine(
    name: str,
    column: Column,
    images: Sequence[Look],
    root: str,
    limits: Limits,
    *,
    aligned: Sequence[str] | None,
    decode: bool,
) -> Partners:
    """How the images of a column lie with those of their rows. Where all have their size, or `aligned` names the column, they are
    cropped, mirrored and resized with them.

    Raises `DataError` for an image that cannot be read, or one of another size in a column that `aligned` names.
    """
    paths = list(dict.fromkeys(path for path in column.values if path is not None))
    looks: dict[str, Look] = {}
    for path, (full, found) in zip(
        paths,
        look_at_all([os.path.join(root, p) for p in paths], replace(limits, smallest=1), decode=decode),
        strict=True,
    ):
        if isinstance(found, BadSampleError):
            raise DataError(f"the {name} cannot be used: {found.reason}", where=printable(full))
        looks[path] = found
    field = Field(
        "image",
        channels=1 if looks and all(look.grey for look in looks.values()) else 3,
        range=limits.value_range or range_of(list(looks.values())),
        background=limits.background,
    )
    other = _other_size(column, images, looks)
    if aligned is not None and name in aligned and other is not None:
        image, partner, path = other
        raise DataError(
            f"{name} is aligned, and its image is {partner[0]} x {partner[1]} pixels (h x w) where the row's is "
            f"{image[0]} x {image[1]}",
            hint="save both at one size, or leave it out of data.aligned",
            where=printable(os.path.join(root, path)),
        )
    lies = other is None if aligned is None else name in aligned
    return Partners(
        replace(field, aligned=lies), _note(name, field, other is None, lies), replace(limits, value_range=field.range)
    )


def _other_size(
    column: Column, images: Sequence[Look], looks: Mapping[str, Look]
) -> tuple[tuple[int, int], tuple[int, int], str] | None:
    """The first row whose two images differ in size: (h, w) of both, and the path of the partner."""
    for path, image in zip(column.values, images, strict=True):
        if path is not None and looks[path].size != image.size:
            return image.size, looks[path].size, path
    return None


def _note(name: str, field: Field, same: bool, aligned: bool) -> str:
    colour = "grey" if field.channels == 1 else "colour"
    if aligned:
        return (
            f"{name}: {colour} images of the size of theirs, aligned: cropped, mirrored and resized together "
            "(data.aligned: [] leaves each as it is)"
        )
    why = (
        "data.aligned leaves it out"
        if same
        else f"other sizes than theirs; data.aligned: [{name}] would need equal ones"
    )
    return f"{name}: {colour} images, not aligned: each as it is, whatever the crop ({why})"
