"""The factor on the noise that a sampler draws (`temperature`, `s_noise`) multiplies that noise, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit import samplers
from ldmkit.schedules import make

# Sampler, its factor, and the options with which it draws.
FACTORS: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "temperature", {"eta": 1.0}),
    ("ddpm", "temperature", {}),
    ("euler_ancestral", "s_noise", {}),
    ("euler", "s_noise", {"s_churn": 4.0}),
    ("heun", "s_noise", {"s_churn": 4.0}),
]


@pytest.mark.parametrize(("name", "factor", "options"), FACTORS)
def test_a_sample_is_affine_in_the_factor(name: str, factor: str, options: dict[str, Any]) -> None:
    """For data N(0, 1) the exact denoiser is linear, and so is the whole sampler in what it draws."""
    schedule = make(type="linear")

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        kept = schedule.alphas_cumprod[t.round().long()].view(-1, 1, 1, 1)
        return kept.sqrt() * x  # alpha x / (alpha^2 + sigma^2)

    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def sample(value: float) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in range(2)]
        return getattr(samplers, name)(
            denoiser, noise, schedule, 6, spacing="trailing", generators=generators, **options, **{factor: value}
        )

    none, once, twice = sample(0.0), sample(1.0), sample(2.0)
    assert float((once - none).abs().mean()) > 0.05, "it draws"
    assert torch.allclose(twice - none, 2 * (once - none), atol=1e-9)
