"""Aspect-ratio buckets: pictures of like shape are trained on together, each at a size near its own shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldmkit.errors import DataError
from ldmkit.images.view import Size


def nearest(picture: Size, buckets: Sequence[Size]) -> int:
    """The bucket whose log aspect ratio is nearest to the picture's (h, w).

    Of several with the same aspect ratio, the largest that the picture fills; where it fills none, the smallest.
    """
    aspect = math.log(max(picture[0], 1) / max(picture[1], 1))
    apart = [abs(aspect - math.log(height / width)) for height, width in buckets]
    near = [index for index, distance in enumerate(apart) if distance <= min(apart) + 1e-9]
    filled = [i for i in near if buckets[i][0] <= picture[0] and buckets[i][1] <= picture[1]]

    def area(index: int) -> int:
        return buckets[index][0] * buckets[index][1]

    return max(filled, key=area) if filled else min(near, key=area)


def assign(pictures: Sequence[Size], buckets: Sequence[Size]) -> NDArray[np.int64]:
    """(n,) the number of the bucket of each of n pictures (h, w)."""
    known: dict[Size, int] = {}
    for picture in pictures:
        if picture not in known:
            known[picture] = nearest(picture, buckets)
    return np.array([known[picture] for picture in pictures], dtype=np.int64)


def check(buckets: Sequence[Size]) -> tuple[Size, ...]:
    """The buckets as pairs (h, w). Raises `DataError` for none, a side below 1, or the same one twice."""
    found = tuple((int(height), int(width)) for height, width in buckets)
    if not found or min(min(size) for size in found) < 1 or len(set(found)) < len(found):
        raise DataError(
            f"buckets is {[list(size) for size in found]}; it is a list of different [h, w], each at least 1 pixel"
        )
    return found
