"""A model whose network is linear, so that what comes out of `sample` has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit import diffusion as objectives
from ldmkit import samplers
from ldmkit.autoencoder import make
from ldmkit.conditioning import Conditioner, ConditionerSet, Conditioning, Dropout, Ports
from ldmkit.latent_diffusion import LatentDiffusion, Slot

WIDTH = 3 * 4 * 6  # a whole latent


class Word(Conditioner):
    """A number -> a latent's worth of numbers in one token; another table for another seed."""

    reads = ("word",)

    def __init__(self, *, words: tuple[str, ...] = (), seed: int = 0) -> None:
        super().__init__()
        self.words, self.emits = words, Ports(tokens=WIDTH, length=1)
        self.table = nn.Parameter(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)))

    def prepare(self, sample, generator=None):
        return {"id": torch.tensor(int(sample["word"]))}

    def from_user(self, value, size):
        return {"id": torch.tensor(value if isinstance(value, int) else len(str(value)) % 4)}

    def encode(self, prepared, canvas):
        return Conditioning(tokens=self.table[prepared["id"]][:, None])

    def null(self, canvas):
        return Conditioning(tokens=self.table[4:, None])


class Linear(nn.Module):
    """x_0 = share x + t / 1000 + all tokens."""

    def __init__(self, share: float = 0.3) -> None:
        super().__init__()
        self.share, self.reduction, self.calls = nn.Parameter(torch.tensor(share)), 1, []

    def forward(self, x: Tensor, t: Tensor, *, tokens: Tensor, **_: Any) -> Tensor:
        self.calls.append((len(x), float(t[0])))
        return self.share * x + t[:, None, None, None] / 1000 + tokens.sum(1).view_as(x)


@pytest.fixture
def linear() -> Callable[..., LatentDiffusion]:
    """Slots `a` and `b`, latents (3, 4, 6), pictures of 4 x 6 that are their own latents."""

    def build(
        *,
        share: float = 0.3,
        seed: int = 0,
        dropout: dict[str, float] | None = None,
        slots: tuple[str, str] = ("a", "b"),
        **rest: Any,
    ) -> Any:
        first, second = slots
        conditioners = {first: Word(seed=seed), second: Word(seed=seed + 1)}
        table = {first: 0.1, second: 0.1, f"{first}+{second}": 0.1} if dropout is None else dropout
        own = {name: getattr(samplers, name) for name in ("ddim", "ddpm", "dpmpp_2m", "euler")}
        return LatentDiffusion(
            make("identity"),
            Linear(share),
            ConditionerSet(conditioners, vector_width=1, dropout=Dropout.from_table(slots, table)),
            objectives.make(schedule={"type": "linear"}, prediction="x0"),
            size=(4, 6),
            samplers=own,
            slots={name: Slot("word", {"seed": seed}) for name in conditioners},
            **rest,
        ).eval()

    return build
