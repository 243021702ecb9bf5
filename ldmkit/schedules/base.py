"""What every noise schedule gives: timestep -> (alpha, sigma), with x_t = alpha x_0 + sigma eps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ldmkit.errors import UsageError

# alpha = exp(-80) = 2e-35 is zero to any sum, while every ratio and logarithm stays finite, in float32 too.
LOG_SNR_LIMIT = 160.0


class Schedule(ABC):
    """A noise schedule: timestep t in [0, T) -> (alpha, sigma); T - 1 is the most noise.

    `timesteps` is T. `discrete` says that a network is trained on whole timesteps only. `sigma_data` is the deviation of the
    data that Karras' sigmas are stated for: theirs is sigma_data sigma / alpha; the data here always have deviation 1.
    Everything is computed in float64, on the device of the argument (on the CPU for MPS, which has no float64).
    """

    timesteps: int
    discrete: bool = False
    sigma_data: float = 1.0

    @abstractmethod
    def _log_snr(self, t: Tensor) -> Tensor:
        """Log of alpha^2 / sigma^2 at float64 `t` in [0, T - 1]: falling, may be infinite."""

    @abstractmethod
    def _timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `_log_snr`, float64."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of `make` that build this schedule again; JSON values."""

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of log-SNR, any shape, of its shape and dtype: variance preserving, alpha^2 + sigma^2 = 1."""
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    @property
    def straight(self) -> bool:
        """Whether alpha + sigma = 1 (a rectified flow), not alpha^2 + sigma^2 = 1 (variance preserving)."""
        return False

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_(T-1) is noise alone, so that eps says nothing about x_0 there."""
        return float(self.log_snr(torch.tensor(self.timesteps - 1.0))) < 1 - LOG_SNR_LIMIT

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at `t` (any shape, whole or fractional, in [0, T)): float64, within +-160.

        Raises UsageError for a timestep outside [0, T) (looked at on the CPU only: elsewhere it would stall the device).
        """
        t = _double(t)
        if t.device.type == "cpu" and t.numel() and not bool(((t >= 0) & (t < self.timesteps)).all()):
            raise UsageError(
                f"timesteps from {float(t.min()):g} to {float(t.max()):g}: they lie in [0, {self.timesteps})"
            )
        return self._log_snr(t.clamp(0, self.timesteps - 1)).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def timestep(self, log_snr: Tensor) -> Tensor:
        """The timestep with this log-SNR (any shape), fractional, clamped to [0, T - 1]: float64, of the same shape."""
        return self._timestep(_double(log_snr)).clamp(0, self.timesteps - 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at `t` (any shape, in [0, T)): float32, of `t`'s shape, on its device."""
        alpha, sigma = self.coefficients(self.log_snr(t))
        return alpha.to(t.device, torch.float32), sigma.to(t.device, torch.float32)


def _double(value: Tensor) -> Tensor:
    return value.detach().to("cpu" if value.device.type == "mps" else value.device).double()


def resolution_shift_of(factor: float) -> float:
    """What a resolution shift by `factor` > 0 takes off the log-SNR: 2 log(factor).

    For larger pictures, `factor` = side / side at which the schedule was tuned (Hoogeboom et al. 2023, "simple diffusion",
    eq. 7). On a rectified flow this is sigma' = f sigma / (1 + (f - 1) sigma) (Esser et al. 2024, eq. 23).

    Raises UsageError where `factor` is not above 0.
    """
    if not factor > 0:
        raise UsageError(f"a schedule's shift of {factor:g}: it is a factor above 0; 1 changes nothing")
    return 2 * math.log(factor)
