"""The linear code that an autoencoder with a shortcut starts as: the strongest cosines of the pixels under each latent."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

COLOUR = 0.25  # how much weaker differences between channels are than their mean
DECAY = 1.3  # of a cosine's strength with its frequency


def cosine_code(channels: int, factor: int, latent_channels: int) -> Tensor:
    """Rows (latent_channels, channels * factor^2) of the orthonormal cosine transform over channel, row and column of a patch.

    Those that are strongest in photographs come first: means before differences of colour, low frequencies before high ones.
    Pixels are in the order of `pixel_unshuffle`. For photographs that is nearly the best linear code of its length (Ahmed,
    Natarajan and Rao 1974). Rows beyond the number of pixels are zero.
    """
    across, along = _cosines(channels), _cosines(factor)
    places = sorted(product(range(channels), range(factor), range(factor)), key=_strength, reverse=True)
    rows = [torch.einsum("c,y,x->cyx", across[c], along[v], along[u]).flatten() for c, v, u in places[:latent_channels]]
    code = torch.zeros(latent_channels, channels * factor**2, dtype=torch.float64)
    code[: len(rows)] = torch.stack(rows)
    return code.float()


def _strength(place: tuple[int, int, int]) -> float:
    channel, vertical, horizontal = place
    frequency = math.hypot(vertical, horizontal)
    return (COLOUR if channel else 1.0) * (10.0 if frequency == 0 else frequency**-DECAY)


def _cosines(length: int) -> Tensor:
    """The orthonormal DCT-II (length, length), float64: row k is the k-th cosine."""
    place = torch.arange(length, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi / length * torch.outer(torch.arange(length, dtype=torch.float64), place))
    rows *= math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows
