"""Schedules given by a table of betas: T noising steps x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) eps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import InRecipe, NotNegative, Positive
from ldmkit.schedules.base import LOG_SNR_LIMIT, Schedule, resolution_shift_of

Beta = Annotated[float, Field(gt=0.0, lt=1.0)]
Betas = Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=2)]


class Discrete(Schedule):
    """A variance-preserving schedule from a table of betas (Ho et al. 2020); between whole timesteps log-SNR is interpolated.

    `betas` (T,) in (0, 1]; only the last may be 1 (zero terminal SNR). `.betas` and `.alphas_cumprod` are float64 on the CPU.
    Raises UsageError for betas of another shape or outside that range.
    """

    discrete = True

    def __init__(self, betas: Tensor | Sequence[float], *, config: Mapping[str, Any] | None = None) -> None:
        self.betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if self.betas.ndim != 1 or len(self.betas) < 1:
            raise UsageError(f"betas of shape {tuple(self.betas.shape)}: one row of at least 1 number is needed")
        if not bool(((self.betas > 0) & (self.betas <= 1)).all()) or bool((self.betas[:-1] == 1).any()):
            raise UsageError("betas lie in (0, 1), and only the last may be 1 (zero terminal SNR)")
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)
        self.timesteps = len(self.betas)
        table = torch.logit(self.alphas_cumprod).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        self._tables = {torch.device("cpu"): table}
        self._config = dict(config) if config else {"type": "given", "betas": self.betas.tolist()}

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def _log_snr(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        low = t.floor().long()
        high = (low + 1).clamp(max=self.timesteps - 1)
        return torch.lerp(table[low], table[high], t - low)

    def _timestep(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr.device)
        if self.timesteps == 1:
            return torch.zeros_like(log_snr)
        high = torch.searchsorted(-table, -log_snr.contiguous()).clamp(1, self.timesteps - 1)
        low = high - 1
        return low + ((table[low] - log_snr) / (table[low] - table[high]).clamp(min=1e-12)).clamp(0, 1)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


def linear(*, start: Beta = 0.0015, end: Beta = 0.0195, timesteps: Positive = 1000) -> Discrete:
    """The released latent diffusion models' `linear`: equal steps in sqrt(beta) from `start` to `end`, both betas in (0, 1).

    Diffusers' `scaled_linear`. Endings of the paper: 0.0155 (super-resolution, churches), 0.0195 (unconditional, class,
    text), 0.0205 (semantic, layout, inpainting). Raises UsageError for a beta outside (0, 1), or fewer than 1 timestep.
    """
    betas = _ramp(start, end, timesteps, power=0.5)
    return Discrete(betas, config={"type": "linear", "start": start, "end": end, "timesteps": timesteps})


def plain_linear(*, start: Beta = 1e-4, end: Beta = 2e-2, timesteps: Positive = 1000) -> Discrete:
    """Equal steps in beta (Ho et al. 2020); CompVis' `sqrt_linear`, diffusers' `linear`.

    Raises UsageError for a beta outside (0, 1), or fewer than 1 timestep.
    """
    betas = _ramp(start, end, timesteps)
    return Discrete(betas, config={"type": "plain-linear", "start": start, "end": end, "timesteps": timesteps})


def sqrt(*, start: Beta = 1e-4, end: Beta = 2e-2, timesteps: Positive = 1000) -> Discrete:
    """beta = sqrt of equal steps from `start` to `end` (CompVis' `sqrt`).

    Raises UsageError for a beta outside (0, 1), or fewer than 1 timestep.
    """
    betas = _ramp(start, end, timesteps).sqrt()
    return Discrete(betas, config={"type": "sqrt", "start": start, "end": end, "timesteps": timesteps})


def cosine(*, offset: NotNegative = 0.008, timesteps: Positive = 1000) -> Discrete:
    """alphas_cumprod = cos^2 of equal angles, betas at most 0.999 (Nichol and Dhariwal 2021, eq. 17).

    Raises UsageError for fewer than 1 timestep.
    """
    _check_timesteps(timesteps)
    angles = (torch.arange(timesteps + 1, dtype=torch.float64) / timesteps + offset) / (1 + offset) * (math.pi / 2)
    kept = torch.cos(angles) ** 2
    betas = (1 - kept[1:] / kept[:-1]).clamp(0, 0.999)
    return Discrete(betas, config={"type": "cosine", "offset": offset, "timesteps": timesteps})


def given(*, betas: Annotated[Sequence[float], InRecipe(Betas)]) -> Discrete:
    """The betas themselves, T of them."""
    return Discrete(betas)


def rescale_zero_snr(schedule: Discrete) -> Discrete:
    """`schedule` shifted and stretched in sqrt(alphas_cumprod) so that the last is 0 (Lin et al. 2023, algorithm 1).

    The network must then predict v, x0 or flow: eps says nothing of x_0 where there is no signal.
    Raises UsageError for a schedule of one timestep.
    """
    root = schedule.alphas_cumprod.sqrt()
    if schedule.timesteps < 2:
        raise UsageError("a schedule of one timestep cannot be rescaled to zero terminal SNR")
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return Discrete(_betas_of(root**2), config={**schedule.config, "zero_snr": True})


def shift_discrete(schedule: Discrete, factor: float) -> Discrete:
    """`schedule` with log-SNR lowered by 2 log(`factor`): see `resolution_shift_of`."""
    kept = torch.sigmoid(torch.logit(schedule.alphas_cumprod) - resolution_shift_of(factor))
    return Discrete(_betas_of(kept), config={**schedule.config, "shift": factor})


def _betas_of(alphas_cumprod: Tensor) -> Tensor:
    return 1 - alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])


def _ramp(start: float, end: float, timesteps: int, *, power: float = 1.0) -> Tensor:
    """`timesteps` numbers from `start` to `end`, even in their `power`."""
    _check_timesteps(timesteps)
    if not 0 < start < 1 or not 0 < end < 1:
        raise UsageError(f"betas from {start:g} to {end:g}: both lie in (0, 1)")
    return torch.linspace(start**power, end**power, timesteps, dtype=torch.float64) ** (1 / power)


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise UsageError(f"a schedule of {timesteps} timesteps: at least 1 is needed")
