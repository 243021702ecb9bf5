"""Where a sampler evaluates its denoiser: `steps` timesteps of a schedule from noise to data, by one of several spacings."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.schedules import Schedule

Spacing = Literal[
    "trailing", "leading", "linspace", "quadratic", "karras", "exponential", "compvis", "compvis-quadratic"
]

# Karras and exponential spacing need a finite sigma / alpha to start from; 4096 is noise alone for every purpose.
_LOWEST_LOG_SNR = -2 * math.log(4096)


@dataclass(frozen=True)
class Grid:
    """`n` falling timesteps, and alpha, sigma and log-SNR at them and where the last step ends (n + 1 each), float64.

    `straight` is the schedule's. `scale` takes unit normal noise to x at the first timestep: 1 if variance is preserved.
    """

    timesteps: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    log_snr: tuple[float, ...]
    straight: bool
    scale: float

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
        return self.sigma[0] > 1000 * self.alpha[0]

    def tail(self, first: int) -> Grid:
        """The steps from node `first` on; a sampler's `noise` is then x itself at that node, in the schedule's own scale."""
        parts = {name: getattr(self, name)[first:] for name in ("timesteps", "alpha", "sigma", "log_snr")}
        return dataclasses.replace(self, **parts, scale=1.0)


def make_grid(schedule: Schedule, steps: int | Grid, spacing: Spacing = "trailing", *, clean: bool = True) -> Grid:
    """The grid of `steps` (1 to T) steps; a `Grid` is handed through as it is.

    Spacings, with n = steps:
        trailing: T - 1 down in strides of T / n (Lin et al. 2023); starts where noise is all, wastes no step near the data.
        leading: strides of T // n up from 0 (Song et al. 2020).
        linspace: n even points from T - 1 to 0.
        quadratic: trailing in sqrt(t): dense near the data, where the solvers of second order and above need it.
        karras: even in (sigma / alpha)^(1/7) from T - 1 to 0 (Karras et al. 2022, eq. 5).
        exponential: even in log(sigma / alpha) from T - 1 to 0.
        compvis: the released code's DDIM steps, range(0, T, T // n) + 1, ending on timestep 0's noise level. Takes another
            number of steps where n does not divide T, and logs how many.
        compvis-quadratic: the released code's `quad`: n points of t up to 0.8 T, even in sqrt(t), cut to whole numbers, + 1.
            Those that fall together are taken once (repeated, as there, they change nothing), and it logs how many are left.
    Whole timesteps on a discrete schedule, but for karras and exponential.

    `clean`: end on the data (sigma 0); False ends on timestep 0's level, where the released code does.
    Raises UsageError for steps outside 1 to T, an unknown spacing, and where the released code's steps pass T - 1.
    """
    if isinstance(steps, Grid):
        return steps
    if not 1 <= steps <= schedule.timesteps:
        raise UsageError(f"{steps} sampling steps: 1 to {schedule.timesteps} (the schedule's timesteps) are possible")
    if spacing in ("karras", "exponential"):
        log_snr = _in_rho(schedule, steps, 7.0 if spacing == "karras" else math.inf)
        t = schedule.timestep(log_snr)
        t[0], log_snr[0] = schedule.timesteps - 1, _log_snr(schedule, schedule.timesteps - 1)
    else:
        t = _timesteps(schedule, steps, spacing)
        log_snr = schedule.log_snr(t)
    alpha, sigma = schedule.coefficients(log_snr)
    end = (1.0, 0.0, math.inf) if clean and not spacing.startswith("compvis") else _first_level(schedule)
    return Grid(
        timesteps=tuple(t.tolist()),
        alpha=(*alpha.tolist(), end[0]),
        sigma=(*sigma.tolist(), end[1]),
        log_snr=(*log_snr.tolist(), end[2]),
        straight=schedule.straight,
        scale=math.hypot(float(alpha[0]), float(sigma[0])),
    )


def _timesteps(schedule: Schedule, steps: int, spacing: Spacing) -> Tensor:
    count = schedule.timesteps
    if spacing == "trailing":
        t = count - torch.arange(steps, dtype=torch.float64) * count / steps - 1
    elif spacing == "leading":
        t = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (count // steps)
    elif spacing == "linspace":
        t = torch.linspace(count - 1, 0, steps, dtype=torch.float64)
    elif spacing == "quadratic":
        t = _distinct(count * (1 - torch.arange(steps, dtype=torch.float64) / steps) ** 2 - 1, schedule)
    elif spacing == "compvis":
        t = _as_released(spacing, steps, list(range(1, count + 1, count // steps)), count)
    elif spacing == "compvis-quadratic":
        points = np.linspace(0, np.sqrt(0.8 * count), steps) ** 2
        t = _as_released(spacing, steps, sorted(set((points.astype(int) + 1).tolist())), count)
    else:
        raise UsageError(f"no spacing is called {spacing!r}; there are {', '.join(get_args(Spacing))}")
    return t.round() if schedule.discrete else t


def _distinct(falling: Tensor, schedule: Schedule) -> Tensor:
    """Rounded for a discrete schedule, and moved up where two would be less than a timestep apart."""
    rising = falling.flip(0).clamp(min=0)
    rising = rising.round() if schedule.discrete else rising
    for i in range(1, len(rising)):
        rising[i] = torch.maximum(rising[i], rising[i - 1] + 1)
    return rising.flip(0)


def _as_released(spacing: str, asked: int, rising: list[int], count: int) -> Tensor:
    """The released code's timesteps, falling; it says where they are not as many as were asked for."""
    if rising[-1] >= count:
        raise UsageError(
            f"spacing {spacing} with {asked} steps of {count} reaches timestep {rising[-1]}, where the released code fails",
            hint="ask for a smaller divisor of the schedule's timesteps, or take spacing leading",
        )
    if len(rising) != asked:
        logging.getLogger("ldmkit").warning(
            "spacing %s takes %d steps where %d were asked for", spacing, len(rising), asked
        )
    return torch.tensor(rising[::-1], dtype=torch.float64)


def _in_rho(schedule: Schedule, steps: int, power: float) -> Tensor:
    """Log-SNR of points even in (sigma / alpha)^(1 / power), in its logarithm for infinite `power`."""
    high = max(_log_snr(schedule, schedule.timesteps - 1), _LOWEST_LOG_SNR)
    logs = torch.tensor([-high / 2, -_log_snr(schedule, 0) / 2], dtype=torch.float64)
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if power == math.inf:
        return -2 * torch.lerp(logs[0], logs[1], share)
    first, last = (logs / power).exp()
    return -2 * power * torch.lerp(first, last, share).log()


def _log_snr(schedule: Schedule, t: float) -> float:
    return float(schedule.log_snr(torch.tensor(float(t))))


def _first_level(schedule: Schedule) -> tuple[float, float, float]:
    log_snr = schedule.log_snr(torch.zeros(()))
    alpha, sigma = schedule.coefficients(log_snr)
    return float(alpha), float(sigma), float(log_snr)
