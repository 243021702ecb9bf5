"""Where a sampler evaluates its denoiser: `steps` timesteps of a schedule from noise to data, by one of several spacings."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from ldmkit.errors import UsageError
from ldmkit.samplers.spacing import Spacing, spacing_of
from ldmkit.schedules import Schedule

Level = tuple[float, float, float]  # alpha, sigma, log-SNR


@dataclass(frozen=True)
class Grid:
    """`n` falling timesteps, and alpha, sigma and log-SNR at them and where the last step ends (n + 1 each), float64.

    `straight` is the schedule's. `scale` takes unit normal noise to x at the first timestep: 1 if variance is preserved.
    `ends`: where each step ends, if not where the next begins; `ddim` and `plms` step so (see `spacing.Leading`).
    """

    timesteps: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    log_snr: tuple[float, ...]
    straight: bool
    scale: float
    ends: tuple[Level, ...] | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def rho(self, i: int) -> float:
        """sigma / alpha of node `i`: Karras' sigma."""
        return math.exp(-self.log_snr[i] / 2)

    def lam(self, i: int) -> float:
        """log(alpha / sigma) of node `i`: DPM-Solver's lambda; inf where the last step ends on the data."""
        return self.log_snr[i] / 2

    @property
    def clean(self) -> bool:
        """Whether the last step ends on the data: alpha 1, sigma 0."""
        return self.sigma[-1] == 0

    @property
    def pure(self) -> bool:
        """Whether x at the first timestep is as good as noise alone: sigma / alpha above 1000 (cosine, zero terminal SNR)."""
        return self.pure_at(0)

    def pure_at(self, i: int) -> bool:
        """Whether x at node `i` is as good as noise alone: eps there says nothing of x_0."""
        return self.sigma[i] > 1000 * self.alpha[i]

    def end(self, i: int) -> Level:
        """Where step `i` ends: (alpha, sigma, log-SNR)."""
        return self.ends[i] if self.ends else (self.alpha[i + 1], self.sigma[i + 1], self.log_snr[i + 1])

    def tail(self, first: int) -> Grid:
        """The steps from node `first` on; a sampler's `noise` is then x itself at that node, in the schedule's own scale."""
        parts = {name: getattr(self, name)[first:] for name in ("timesteps", "alpha", "sigma", "log_snr")}
        return dataclasses.replace(self, **parts, scale=1.0, ends=self.ends and self.ends[first:])


def make_grid(schedule: Schedule, steps: int | Grid, spacing: Spacing = "trailing", *, clean: bool = True) -> Grid:
    """The grid of `steps` (1 to T) steps; a `Grid` is handed through as it is.

    `spacing` is one of `spacing.SPACINGS` by name, or a mapping of `type` and its options:

        trailing: T - 1 down in strides of T / n (Lin et al. 2023); starts where noise is all, wastes no step near the data.
        leading: strides of T // n up from 0, or from `offset` (Song et al. 2020).
        linspace: n even points from T - 1 to 0.
        quadratic: trailing in sqrt(t): dense near the data, where the solvers of second order and above need it.
        karras: even in (sigma / alpha)^(1 / rho) from T - 1 to 0 (Karras et al. 2022, eq. 5).
        exponential: even in log(sigma / alpha) from T - 1 to 0.
        given: a list of `timesteps` or `sigmas`.
        compvis: the released code's DDIM steps; compvis-quadratic: its `quad`.
    Whole timesteps on a discrete schedule, but for karras, exponential, given, and linspace with `fractional`.

    `clean`: end on the data (sigma 0); False ends on timestep 0's level, where the released code does.
    Raises UsageError for steps outside 1 to T, an unknown spacing, and for timesteps past T - 1.
    """
    if isinstance(steps, Grid):
        return steps
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise UsageError(f"{steps!r} sampling steps: a whole number is needed")
    if not 1 <= steps <= schedule.timesteps:
        raise UsageError(f"{steps} sampling steps: 1 to {schedule.timesteps} (the schedule's timesteps) are possible")
    placed = spacing_of(spacing)
    t, log_snr = placed.points(schedule, steps)
    alpha, sigma = schedule.coefficients(log_snr)
    last = (1.0, 0.0, math.inf) if clean and not placed.released_end else level_at(schedule, 0.0)
    ends = None
    if placed.whole_strides:
        stride = schedule.timesteps // steps
        ends = tuple(level_at(schedule, at - stride) if at >= stride else last for at in t.tolist())
    return Grid(
        timesteps=tuple(t.tolist()),
        alpha=(*alpha.tolist(), last[0]),
        sigma=(*sigma.tolist(), last[1]),
        log_snr=(*log_snr.tolist(), last[2]),
        straight=schedule.straight,
        scale=math.hypot(float(alpha[0]), float(sigma[0])),
        ends=ends,
    )


def level_at(schedule: Schedule, t: float) -> Level:
    """(alpha, sigma, log-SNR) at timestep `t`."""
    log_snr = schedule.log_snr(torch.tensor(t, dtype=torch.float64))
    alpha, sigma = schedule.coefficients(log_snr)
    return float(alpha), float(sigma), float(log_snr)
