"""Keys to generators: every random draw of ldmkit is a function of (seed, purpose, position).

One generator a row, drawn on the CPU, so that a sample depends on its own key alone: never on its batch, the data workers,
the device or the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor


def key(seed: int, purpose: str, position: int) -> int:
    """A 63-bit seed that is the same in every process and for every version of Python."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, position: int) -> Generator:
    """The CPU generator of one draw; equal keys give equal draws."""
    return torch.Generator().manual_seed(key(seed, purpose, position))


def generators(seed: int, purpose: str, positions: Iterable[int]) -> list[Generator]:
    """One generator a row."""
    return [generator(seed, purpose, int(position)) for position in positions]


def sample_generators(seed: int, count: int, purpose: str = "sample") -> list[Generator]:
    """The generators of `sample(seed=s)`: row i has the seed s + i, whatever the batch it is drawn in."""
    return [generator(seed + row, purpose, 0) for row in range(count)]


def normal(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (b, *shape), float32 on the CPU; row i is drawn from `generators[i]` alone."""
    out = torch.empty((len(generators), *shape))
    for row, source in zip(out, generators, strict=True):
        row.normal_(generator=source)
    return out


def uniform(generators: Sequence[Generator], shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in [0, 1) of shape (b, *shape), float32 on the CPU; row i is drawn from `generators[i]` alone."""
    out = torch.empty((len(generators), *shape))
    for index, source in enumerate(generators):
        out[index] = torch.rand(tuple(shape), generator=source)
    return out
