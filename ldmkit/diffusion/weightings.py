"""Loss weightings: how much each noise level counts.

The papers state theirs on the error of x_0 or of eps. Here a weighting multiplies the squared error of whatever the network
predicts, so that a weighting means the same thing for every prediction: `gain` is |error of the output|^2 / |error of x_0|^2.
All of it in float64; with an L1 or Huber loss the same numbers multiply that loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ldmkit.plugins.ranges import Above, NotNegative
from ldmkit.schedules import Schedule


class Weighting(ABC):
    """Timesteps (b,) -> weights (b,), float64."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def config(self) -> str | dict[str, Any]:
        """What a recipe says for it."""


class Simple(Weighting):
    """1 on the output itself (Ho et al. 2020, eq. 14)."""

    config = "simple"

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        return torch.ones_like(gain)


class SNR(Weighting):
    """SNR = alpha^2 / sigma^2 on the error of x_0: the plain loss of eps, whatever is predicted (Salimans and Ho 2022)."""

    config = "snr"

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        return schedule.log_snr(t).exp() / gain


class MinSNR(Weighting):
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023): min(1, gamma / SNR) for eps, min(SNR, gamma) / (SNR + 1) for v."""

    def __init__(self, *, gamma: Above = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        return schedule.log_snr(t).exp().clamp(max=self.gamma) / gain

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "min-snr-gamma", "gamma": self.gamma}


class P2(Weighting):
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, eq. 8)."""

    def __init__(self, *, k: Above = 1.0, gamma: NotNegative = 1.0) -> None:
        self.k, self.gamma = k, gamma

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        snr = schedule.log_snr(t).exp()
        return snr / (self.k + snr) ** self.gamma / gain

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "p2", "k": self.k, "gamma": self.gamma}


class EDMWeighting(Weighting):
    """(s^2 + d^2) / (s d)^2 on the error of x_0, s Karras' sigma, d the data's deviation (Karras et al. 2022, table 1).

    d is the schedule's `sigma_data`, and the weight of v then 1 everywhere. sigma_data: another d, in the schedule's units.
    """

    def __init__(self, *, sigma_data: Above | None = None) -> None:
        self.sigma_data = sigma_data

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        share = 1.0 if self.sigma_data is None else schedule.sigma_data / self.sigma_data
        return (schedule.log_snr(t).exp() + share**2) / gain

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "edm", "sigma_data": self.sigma_data}


class ELBO(Weighting):
    """(SNR(t - 1) - SNR(t)) / 2 on the error of x_0: the variational bound's own (Kingma et al. 2021, eq. 13).

    For eps it is beta_t^2 / (2 posterior_variance_t (1 - beta_t) (1 - alphas_cumprod_t)) of Ho et al. 2020, eq. 12; below
    t = 1, where the posterior has no variance, the weight of t = 1 on eps stands in, as in the released code.
    """

    config = "elbo"

    def __call__(self, schedule: Schedule, t: Tensor, gain: Tensor) -> Tensor:
        later = t.double().clamp(min=1) if t.device.type != "mps" else t.clamp(min=1)
        on_noise = 0.5 * torch.expm1(schedule.log_snr(later - 1) - schedule.log_snr(later))
        return on_noise * schedule.log_snr(t).exp() / gain


WEIGHTINGS: dict[str, type[Weighting]] = {
    "simple": Simple,
    "snr": SNR,
    "min-snr-gamma": MinSNR,
    "p2": P2,
    "edm": EDMWeighting,
    "elbo": ELBO,
}
