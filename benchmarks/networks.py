"""The networks that are timed: those of the bundled recipes, and three sizes above."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.unet import diffusers_unet, randomised
from ldmkit.denoiser.unet import UNet


@dataclass(frozen=True)
class Network:
    """A UNet, the side of its latents, rows of a batch, and how many tokens it reads."""

    side: int
    batch: int
    tokens: int
    options: dict[str, Any] = field(default_factory=dict)


# 32 groups in every norm, as diffusers has; what diffusers cannot build of a recipe (its shortcut) is left out on both sides.
NETWORKS = {
    "superres": Network(
        16, 8, 0, {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (4,), "head_width": 32}
    ),
    "class": Network(
        8,
        64,
        1,
        {
            "channels": 32,
            "multipliers": (1, 2),
            "blocks": 1,
            "attention": (1, 2),
            "head_width": 32,
            "context_width": 64,
        },
    ),
    "S": Network(32, 8, 8, {"channels": 64, "multipliers": (1, 2, 3), "heads": 4, "context_width": 128}),
    "M": Network(
        32,
        4,
        1,
        {"channels": 128, "multipliers": (1, 2, 3, 4), "attention": (2, 4, 8), "heads": 8, "context_width": 512},
    ),
    "L": Network(
        64,
        1,
        1,
        {"channels": 192, "multipliers": (1, 2, 3, 5), "attention": (2, 4, 8), "heads": 8, "context_width": 512},
    ),
}


@dataclass(frozen=True)
class Pair:
    """The same network twice with the same weights, and what both are fed."""

    ours: UNet
    theirs: nn.Module
    x: Tensor
    t: Tensor
    tokens: Tensor | None
    parameters: int

    def forward(self, network: nn.Module | None = None) -> Tensor:
        """Ours, or a copy of it."""
        return (network or self.ours)(self.x, self.t, tokens=self.tokens)  # type: ignore[no-any-return]

    def diffusers(self, network: nn.Module | None = None) -> Tensor:
        """Theirs, or a copy of it."""
        given = (self.x, self.t) if self.tokens is None else (self.x, self.t, self.tokens)
        return (network or self.theirs)(*given, return_dict=False)[0]  # type: ignore[no-any-return]

    def of(self, dtype: torch.dtype) -> Pair:
        """The inputs in another type."""
        tokens = None if self.tokens is None else self.tokens.to(dtype)
        return Pair(self.ours, self.theirs, self.x.to(dtype), self.t, tokens, self.parameters)


def pair(name: str, device: torch.device, *, batch: int = 0, side: int = 0, tokens: int = 0) -> Pair:
    """The network `name`, at its own batch, side and number of tokens, or at others."""
    network = NETWORKS[name]
    options = dict(network.options)
    if "head_width" in options and "context_width" in options:  # diffusers takes a number of heads, one for all levels
        options["heads"] = max(options["channels"] // options.pop("head_width"), 1)
    torch.manual_seed(0)
    unet = randomised(UNet.of_widths(in_channels=4, out_channels=4, variant={"groups": 32}, **options))
    theirs = diffusers_unet(unet)
    generator = torch.Generator().manual_seed(1)
    rows, edge, length = batch or network.batch, side or network.side, tokens or network.tokens
    x = torch.randn(rows, 4, edge, edge, generator=generator).to(device)
    t = torch.randint(1000, (rows,), generator=generator).to(device)
    words = torch.randn(rows, length, unet.context_width or 0, generator=generator).to(device) if length else None
    return Pair(unet.to(device), theirs.to(device), x, t, words, sum(p.numel() for p in unet.parameters()))
