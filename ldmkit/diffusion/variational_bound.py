"""The variational bound on the negative log-likelihood, in bits per dimension (Ho et al. 2020, eq. 5; Kingma et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ldmkit.errors import UsageError
from ldmkit.random import normal
from ldmkit.schedules import Schedule


@dataclass(frozen=True)
class Bound:
    """A bound on -log2 p(x_0) per dimension, a number a row (b,) float64; `total` is the sum of the three."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def variational_bound(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    schedule: Schedule,
    *,
    generators: Sequence[Generator],
    steps: int | None = None,
    levels: int | None = None,
) -> Bound:
    """The bound of a denoiser (x_t, t) -> x_0 as an ancestral chain, from one noise draw a timestep.

    Args:
        x0: (b, c, h, w).
        generators: one a row.
        steps: length of the chain, 1 to T, evenly spaced timesteps; default T. A shorter chain is a valid, looser bound.
        levels: x0 lies on that many equal levels in [-1, 1] (256: eight-bit pictures), and the last step is a discretised
            Gaussian. None: x0 has a density (latents), and the last step is a Gaussian of x_t's own width.

    Costs `steps` calls of the denoiser. Raises UsageError for a number of steps outside 1 to T.
    """
    steps = schedule.timesteps if steps is None else steps
    if not 1 <= steps <= schedule.timesteps:
        raise UsageError(f"a bound of {steps} steps: 1 to {schedule.timesteps} are possible")
    chain = torch.linspace(schedule.timesteps - 1, 0, steps, dtype=torch.float64)
    chain = chain.round() if schedule.discrete else chain
    log_snr = schedule.log_snr(chain)
    alpha, sigma = schedule.coefficients(log_snr)
    exact = x0.double()
    diffusion = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    clean = x0
    for i, t in enumerate(chain.tolist()):
        noise = normal(generators, x0.shape[1:]).to(x0)
        noisy = float(alpha[i]) * x0 + float(sigma[i]) * noise
        clean = denoiser(noisy, torch.full((len(x0),), t, dtype=torch.float32, device=x0.device))
        if i + 1 < steps:
            # KL of the two posteriors of x_s given x_t: (SNR(s) - SNR(t)) / 2 |x_0 - x_0_hat|^2
            gap = 0.5 * (log_snr[i + 1].exp() - log_snr[i].exp()).item()
            diffusion += gap * ((exact - clean.double()) ** 2).flatten(1).mean(1)
    width = math.exp(-0.5 * float(log_snr[-1]))
    last = _density(exact, clean.double(), width) if levels is None else _levels(exact, clean.double(), width, levels)
    prior = _prior(exact, float(alpha[0]), float(sigma[0]))
    return Bound(*(part / math.log(2) for part in (prior, diffusion, last)))


def _prior(x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """KL of N(alpha x_0, sigma^2) from N(0, 1), nats per dimension (b,)."""
    divergence = sigma**2 + (alpha * x0) ** 2 - 1 - 2 * math.log(sigma)
    return 0.5 * divergence.flatten(1).mean(1)


def _density(x0: Tensor, mean: Tensor, width: float) -> Tensor:
    """-log N(x0; mean, width^2), nats per dimension (b,)."""
    return (0.5 * ((x0 - mean) / width) ** 2 + math.log(width) + 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def _levels(x0: Tensor, mean: Tensor, width: float, levels: int) -> Tensor:
    """-log of the Gaussian's mass on x0's level; the outermost levels reach to infinity (Ho et al. 2020, eq. 13)."""
    half = 1 / (levels - 1)
    above = torch.where(x0 > 1 - half, torch.inf, (x0 + half - mean) / width)
    below = torch.where(x0 < -1 + half, -torch.inf, (x0 - half - mean) / width)
    # In the upper tail both are mirrored, where the difference of two numbers near 1 would lose every digit.
    mirror = below > 0
    above, below = torch.where(mirror, -below, above), torch.where(mirror, -above, below)
    mass: Tensor = torch.special.ndtr(above) - torch.special.ndtr(below)
    return -mass.clamp(min=1e-12).log().flatten(1).mean(1)
