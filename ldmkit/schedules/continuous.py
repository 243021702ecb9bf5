"""Schedules that are a formula in t: EDM's sigmas and the rectified flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above, Positive
from ldmkit.schedules.base import Schedule, resolution_shift_of


class EDM(Schedule):
    """Karras et al. 2022, eq. 5: sigma^(1/rho) in equal steps from `sigma_min` (t = 0) to `sigma_max` (t = T - 1).

    Their sigma over `sigma_data`, the deviation of their data, is sigma / alpha here, where data have deviation 1: x_t is
    theirs times their c_in = 1 / sqrt(sigma^2 + sigma_data^2), so that the network sees unit variance and every sampler and
    prediction applies as it stands. Their preconditioned network is `prediction="v"` in these coordinates (c_skip = alpha^2,
    c_out = sigma of this class).

    sigma_min, sigma_max: None is 0.004 and 160 times sigma_data, which is the paper's 0.002 and 80 for its sigma_data of 0.5.
    The `log-normal` timesteps and the `edm` weighting read sigma_data here too, so that ``{type: edm, sigma_data: 0.5}`` with
    both is the paper's training, figure for figure.

    Raises UsageError unless 0 < sigma_min < sigma_max, sigma_data > 0, rho > 0 and there are at least 2 timesteps.
    """

    def __init__(
        self,
        *,
        sigma_data: Above = 1.0,
        sigma_min: Above | None = None,
        sigma_max: Above | None = None,
        rho: Above = 7.0,
        timesteps: Positive = 1000,
    ) -> None:
        if not sigma_data > 0:
            raise UsageError(f"edm schedule with sigma_data {sigma_data:g}: it is above 0; the paper's is 0.5")
        sigma_min = 0.004 * sigma_data if sigma_min is None else sigma_min
        sigma_max = 160.0 * sigma_data if sigma_max is None else sigma_max
        if not 0 < sigma_min < sigma_max or rho <= 0 or timesteps < 2:
            raise UsageError(
                f"edm schedule with sigma_min {sigma_min:g}, sigma_max {sigma_max:g}, rho {rho:g}, timesteps {timesteps}: "
                "0 < sigma_min < sigma_max, rho > 0 and timesteps >= 2 are needed"
            )
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max
        self.rho, self.timesteps = rho, timesteps
        self._roots = math.pow(sigma_min / sigma_data, 1 / rho), math.pow(sigma_max / sigma_data, 1 / rho)

    @property
    def config(self) -> dict[str, Any]:
        names = ("sigma_data", "sigma_min", "sigma_max", "rho", "timesteps")
        return {"type": "edm", **{name: getattr(self, name) for name in names}}

    def _log_snr(self, t: Tensor) -> Tensor:
        low, high = self._roots
        root = low + t / (self.timesteps - 1) * (high - low)
        return root.log() * (-2 * self.rho)

    def _timestep(self, log_snr: Tensor) -> Tensor:
        low, high = self._roots
        return (torch.exp(log_snr / (-2 * self.rho)) - low) / (high - low) * (self.timesteps - 1)


class Flow(Schedule):
    """The rectified flow: sigma = (t + 1) / T, alpha = 1 - sigma (Liu et al. 2022; Lipman et al. 2022; Esser et al. 2024).

    t = T - 1 is noise alone; T equal steps end on the data. Raises UsageError for fewer than 2 timesteps.
    """

    def __init__(self, *, timesteps: Positive = 1000) -> None:
        if timesteps < 2:
            raise UsageError(f"a flow schedule of {timesteps} timesteps: at least 2 are needed")
        self.timesteps = timesteps

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "flow", "timesteps": self.timesteps}

    @property
    def straight(self) -> bool:
        return True

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)

    def _log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.logit((t + 1) / self.timesteps)

    def _timestep(self, log_snr: Tensor) -> Tensor:
        return self.timesteps * torch.sigmoid(-log_snr / 2) - 1


class Shifted(Schedule):
    """A continuous schedule with log-SNR lowered by 2 log(`factor`): see `resolution_shift_of`."""

    def __init__(self, schedule: Schedule, factor: float) -> None:
        self.schedule, self.factor = schedule, factor
        self._offset = resolution_shift_of(factor)
        self.timesteps, self.discrete, self.sigma_data = schedule.timesteps, schedule.discrete, schedule.sigma_data

    @property
    def config(self) -> dict[str, Any]:
        inner = self.schedule.config
        return {**inner, "shift": self.factor * inner.get("shift", 1.0)}

    @property
    def straight(self) -> bool:
        return self.schedule.straight

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.coefficients(log_snr)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.schedule._log_snr(t) - self._offset

    def _timestep(self, log_snr: Tensor) -> Tensor:
        return self.schedule._timestep(log_snr + self._offset)
