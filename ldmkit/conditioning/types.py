"""What flows through the seam: ports, conditioning, the canvas, a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Ports:
    """What a conditioner feeds into the UNet; 0 = not this port; several at once are fine."""

    tokens: int = 0  # width of the cross-attention tokens
    vector: int = 0  # width of the pooled vector
    concat: int = 0  # channels on the latent grid
    length: int = 0  # the most tokens it emits (for `plan`, and for padding under torch.compile)


@dataclass(frozen=True)
class Conditioning:
    """What the UNet reads. Every port may be absent; the batch is the first dimension."""

    tokens: Tensor | None = None  # (b, l, d)
    mask: Tensor | None = None  # (b, l) bool, True = attend, at least one True a row; None = all
    vector: Tensor | None = None  # (b, v)
    concat: Tensor | None = None  # (b, c, *canvas.grid)

    @property
    def rows(self) -> int | None:
        """The batch size, or None where nothing is there."""
        for value in (self.tokens, self.vector, self.concat):
            if value is not None:
                return value.shape[0]
        return None

    def expand(self, rows: int) -> Conditioning:
        """One row on every port, seen as `rows` rows (no copy)."""
        return self.map(lambda value: value.expand(rows, *value.shape[1:]))

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """`function` applied to every tensor (b, ...) that is there."""
        return Conditioning(
            *(
                None if value is None else function(value)
                for value in (self.tokens, self.mask, self.vector, self.concat)
            )
        )

    def ports(self) -> dict[str, Tensor]:
        """Port -> its tensor, of the ports that are there; the mask is none."""
        found = {"tokens": self.tokens, "vector": self.vector, "concat": self.concat}
        return {name: value for name, value in found.items() if value is not None}

    def kwargs(self) -> dict[str, Tensor | None]:
        """The keyword arguments of `UNet.forward`."""
        return {"tokens": self.tokens, "mask": self.mask, "vector": self.vector, "concat": self.concat}


@dataclass(frozen=True)
class LatentSpec:
    """The latent space; a constructor parameter annotated so is filled by `build` and is no recipe key."""

    channels: int
    factor: int
    size: tuple[int, int]  # the training image's (h, w)


@dataclass(frozen=True)
class Canvas:
    """Where a batch is painted; made by the core for every call."""

    size: tuple[int, int]  # pixels (h, w); differs from training's at will
    grid: tuple[int, int]  # latent (h, w)
    device: torch.device
    dtype: torch.dtype
    to_latent: Callable[[Tensor], Tensor]  # the frozen, deterministic encoder, scaled
    picture: tuple[int, int] | None = None  # pixels (h, w) of what is kept, its upper left; None = all of it

    def extend(self, maps: Tensor) -> Tensor:
        """Maps (b, c, h, w) that lie on the picture -> maps that lie on the whole canvas, their last rows and columns repeated.

        A picture of any size is painted on the next canvas that the networks divide; without this, what lies pixel on pixel
        with it would be stretched.
        """
        if self.picture in (None, self.size):
            return maps
        (height, width), sides = self.picture, maps.shape[-2:]
        rows = math.ceil(sides[0] * self.size[0] / height) - sides[0]
        columns = math.ceil(sides[1] * self.size[1] / width) - sides[1]
        return F.pad(maps, (0, columns, 0, rows), mode="replicate")

    def zeros(self, *shape: int) -> Tensor:
        """Zeros (*shape) on the canvas' device, in its dtype."""
        return torch.zeros(*shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class ForeignStage:
    """The conditioning stage of a foreign checkpoint, as `Conditioner.from_foreign` sees it."""

    target: str  # the class the checkpoint's configuration names
    params: Mapping[str, Any]  # its constructor's parameters there
    key: str  # the field of a sample it reads there
    port: str  # tokens | vector | concat | hybrid
    channels: int  # channels it adds by concat, 0 = none
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # its weights, prefix stripped


@dataclass(frozen=True)
class Batch:
    """Prepared and collated samples, for the loss.

    `prepared[slot]` holds the collated tensors of all rows (a row without the field carries another row's values and is False in
    `present[slot]`), or None where no row has it. `latents` holds a cached posterior: ``mean`` and, for KL, ``logvar``.
    `answers[slot]` holds what a frozen conditioner returned before for each row that has the condition.
    `targets[name]` holds (b, ...), what an extra term of the loss compares with, computed before.
    """

    images: Tensor  # (b, c, h, w) in [-1, 1]
    prepared: Mapping[str, Tensors | None]
    present: Mapping[str, Tensor]  # slot -> (b,) bool, on the CPU
    positions: Tensor  # (b,) int64: the key of every random draw
    latents: Mapping[str, Tensor] | None = None
    answers: Mapping[str, Conditioning] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.positions.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; positions stay on the CPU, where generators are, and so does what is `present`, by which
        is decided what is encoded at all."""
        return replace(
            self,
            images=self.images.to(device),
            prepared={slot: _move(tensors, device) for slot, tensors in self.prepared.items()},
            latents=None if self.latents is None else {name: value.to(device) for name, value in self.latents.items()},
            answers={slot: answer.map(lambda value: value.to(device)) for slot, answer in self.answers.items()},
            targets={name: value.to(device) for name, value in self.targets.items()},
        )

    def select(self, rows: Sequence[int] | Tensor) -> Batch:
        """The rows (n,) of the batch, in the order given (repeats are fine)."""
        index = torch.as_tensor(rows, dtype=torch.long)

        def pick(value: Tensor) -> Tensor:
            return value[index.to(value.device)]

        return Batch(
            images=pick(self.images),
            prepared={
                slot: None if tensors is None else {name: pick(value) for name, value in tensors.items()}
                for slot, tensors in self.prepared.items()
            },
            present={slot: pick(value) for slot, value in self.present.items()},
            positions=pick(self.positions),
            latents=None if self.latents is None else {name: pick(value) for name, value in self.latents.items()},
            answers={slot: answer.map(pick) for slot, answer in self.answers.items()},
            targets={name: pick(value) for name, value in self.targets.items()},
        )


def _move(tensors: Tensors | None, device: torch.device | str) -> Tensors | None:
    return None if tensors is None else {name: value.to(device) for name, value in tensors.items()}


def pad_stack(rows: Sequence[Tensor], length: int | None = None, value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Stacks rows (l_i, ...) of different length into (b, l, ...) padded with `value`, and a mask (b, l), True where real.

    `length` is the least length of the result. For `Conditioner.collate`.
    """
    longest = max([row.shape[0] for row in rows] + [length or 0])
    out = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), value)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        out[index, : row.shape[0]] = row
        mask[index, : row.shape[0]] = True
    return out, mask


def pad_tokens(tokens: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor | None]:
    """Tokens (b, l, d) padded with zeros to `length`, masked there."""
    missing = length - tokens.shape[1]
    if missing == 0:
        return tokens, mask
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing), value=False)


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of the same ports joined along the batch; tokens of different length are padded and masked."""
    first = conditionings[0]
    tokens, mask = None, None
    if first.tokens is not None:
        tokens, mask = _concatenate_tokens(conditionings)
    return Conditioning(
        tokens=tokens,
        mask=mask,
        vector=None if first.vector is None else torch.cat([_there(c.vector) for c in conditionings]),
        concat=None if first.concat is None else torch.cat([_there(c.concat) for c in conditionings]),
    )


def _concatenate_tokens(conditionings: Sequence[Conditioning]) -> tuple[Tensor, Tensor | None]:
    length = max(_there(c.tokens).shape[1] for c in conditionings)
    padded = [pad_tokens(_there(c.tokens), c.mask, length) for c in conditionings]
    tokens = torch.cat([value for value, _ in padded])
    if all(mask is None for _, mask in padded):
        return tokens, None
    full = [torch.ones(v.shape[:2], dtype=torch.bool, device=v.device) if m is None else m for v, m in padded]
    return tokens, torch.cat(full)


def _there(value: Tensor | None) -> Tensor:
    assert value is not None, "conditionings of different ports cannot be joined along the batch"
    return value
