"""The sixteen autoencoders of the paper by name, and the way from a recipe's `type` to a class."""

from __future__ import annotations

from typing import Any

from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.identity import IdentityAutoencoder
from ldmkit.autoencoder.kl import KLAutoencoder
from ldmkit.autoencoder.vq import VQAutoencoder
from ldmkit.errors import UsageError
from ldmkit.messages import nearest

TYPES: dict[str, type[Autoencoder]] = {"vq": VQAutoencoder, "kl": KLAutoencoder, "identity": IdentityAutoencoder}


def make(type: str, **options: Any) -> Autoencoder:
    """The autoencoder of a recipe: `make("vq", downsample=4, codebook=8192)`.

    Raises:
        UsageError: an unknown type, an unknown option or one out of range.
    """
    if type not in TYPES:
        raise UsageError(f"autoencoder type is {type!r}; allowed are {', '.join(TYPES)}")
    try:
        return TYPES[type](**options)
    except TypeError as error:
        raise UsageError(f"the {type} autoencoder does not take these options: {error}") from error


def _released(type: str, downsample: int, channels: int, **options: Any) -> dict[str, Any]:
    swapped = {"swapped": True} if type == "vq" else {}
    return {
        "type": type,
        "downsample": downsample,
        "latent_channels": channels,
        "middle_attention": True,
        **swapped,
        **options,
    }


# Options of the autoencoders in table 8 of the paper, for `make(**PAPER[name])`. Nine were released; of the other seven the table
# gives factor, codebook and width alone. Four are built like the released one of their factor; that the three of factor 2 have
# the multipliers 1 and 2 is assumed. docs/reference/autoencoders.md says so for each.
_VQ_F8: dict[str, Any] = {"multipliers": (1, 2, 2, 4), "attention": (32,)}
PAPER: dict[str, dict[str, Any]] = {
    "kl-f4": _released("kl", 4, 3),
    "kl-f8": _released("kl", 8, 4),
    "kl-f16": _released("kl", 16, 16, attention=(16,)),
    "kl-f32": _released("kl", 32, 64, attention=(16, 8)),
    "vq-f4": _released("vq", 4, 3, codebook=8192),
    "vq-f4-noattn": {**_released("vq", 4, 3, codebook=8192), "middle_attention": False},
    "vq-f8": _released("vq", 8, 4, codebook=16384, **_VQ_F8),
    "vq-f8-n256": _released("vq", 8, 4, codebook=256, **_VQ_F8),
    "vq-f16": _released("vq", 16, 8, codebook=16384, attention=(16,)),
    "vq-f2": _released("vq", 2, 2, codebook=2048),
    "vq-f2-n64": _released("vq", 2, 2, codebook=64),
    "kl-f2": _released("kl", 2, 2),
    "vq-f4-n256": _released("vq", 4, 3, codebook=256),
    "vq-f32": _released("vq", 32, 16, codebook=16384, attention=(16, 8)),
    "kl-f32-c16": _released("kl", 32, 16, attention=(16, 8)),
    "kl-f16-c8": _released("kl", 16, 8, attention=(16,)),
}


def paper(name: str) -> Autoencoder:
    """One of the paper's autoencoders with fresh weights: `paper("vq-f4")`.

    Raises:
        UsageError: an unknown name.
    """
    if name not in PAPER:
        near = nearest(name, PAPER)
        raise UsageError(
            f"no autoencoder {name!r} in the paper; there are {', '.join(PAPER)}",
            hint=f"did you mean {near}?" if near else None,
        )
    return make(**PAPER[name])
