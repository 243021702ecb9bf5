"""Which samples are held out, where nobody said: by a hash of the name, so that more samples move none to the other side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldmkit.data.source import Part
from ldmkit.errors import DataError


def share(name: bytes) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def check_share(validation: float) -> None:
    """Raises `DataError` for a share that is none."""
    if not 0 <= validation < 1:
        raise DataError(f"validation is {validation}; it is the share held out, at least 0 and below 1")


def rows_of(part: Part, names: Sequence[bytes], validation: float) -> NDArray[np.int64]:
    """(n,) the rows of a part, ascending.

    Where a part would have none of several, the name nearest to it changes sides.
    """
    shares = np.array([share(name) for name in names])
    held_out = shares < validation
    if validation > 0 and len(set(names)) > 1:
        if not held_out.any():
            held_out |= shares == shares.min()
        elif held_out.all():
            held_out &= shares != shares.max()
    return np.flatnonzero(held_out == (part == "validation"))
