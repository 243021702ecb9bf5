"""Which timesteps are trained on: a uniform number a row -> its timestep, so that every row keeps its own key."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above
from ldmkit.schedules import Schedule


class TimestepSampling(ABC):
    """`uniforms` (b,) in [0, 1) and `positions` (b,) int64 -> timesteps (b,) float32; whole ones for a discrete schedule.

    Without positions, the timestep below which that share of all draws lies: uniforms spread evenly give the whole distribution.
    """

    @abstractmethod
    def __call__(self, schedule: Schedule, uniforms: Tensor, positions: Tensor | None) -> Tensor: ...

    @property
    @abstractmethod
    def config(self) -> str | dict[str, Any]:
        """What a recipe says for it."""


class Uniform(TimestepSampling):
    """All timesteps alike (Ho et al. 2020)."""

    config = "uniform"

    def __call__(self, schedule: Schedule, uniforms: Tensor, positions: Tensor | None) -> Tensor:
        return _at(schedule, uniforms.double())


class Stratified(TimestepSampling):
    """Uniform, and evenly spread within every batch (cf. Kingma et al. 2021, appendix I.1).

    Position p draws from stratum bit_reverse(p) of 2^`bits`: any aligned run of 2^k positions has one in each of 2^k equal
    strata. So the spread holds for batches of every size, and a row's timestep still depends on its own position alone.
    Raises UsageError for `bits` outside 1 to 30.
    """

    def __init__(self, *, bits: Annotated[int, Field(ge=1, le=30)] = 10) -> None:
        if not 1 <= bits <= 30:
            raise UsageError(f"stratified timesteps of {bits} bits: 1 to 30 are possible")
        self.bits = bits

    def __call__(self, schedule: Schedule, uniforms: Tensor, positions: Tensor | None) -> Tensor:
        if positions is None:
            return _at(schedule, uniforms.double())
        stratum = torch.zeros_like(positions)
        for bit in range(self.bits):
            stratum = stratum | ((positions >> bit) & 1) << (self.bits - 1 - bit)
        return _at(schedule, (stratum + uniforms.double()) / 2**self.bits)

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "stratified", "bits": self.bits}


class LogitNormal(TimestepSampling):
    """t / T = sigmoid of a normal number: most in the middle (Esser et al. 2024, eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: Above = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, schedule: Schedule, uniforms: Tensor, positions: Tensor | None) -> Tensor:
        fraction = torch.sigmoid(self.mean + self.std * _normal(uniforms))
        return _at(schedule, fraction.clamp(max=1 - 1e-12))

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "logit-normal", "mean": self.mean, "std": self.std}


class LogNormal(TimestepSampling):
    """log of Karras' sigma is normal (Karras et al. 2022, table 1), clamped to the schedule's own range.

    Karras' sigma is sigma / alpha times the schedule's `sigma_data`. mean: None is log(0.6024 sigma_data), the paper's -1.2
    for its sigma_data of 0.5.
    """

    def __init__(self, *, mean: float | None = None, std: Above = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, schedule: Schedule, uniforms: Tensor, positions: Tensor | None) -> Tensor:
        # In units of the data here, whose deviation is 1.
        mean = math.log(2.0) - 1.2 if self.mean is None else self.mean - math.log(schedule.sigma_data)
        t = schedule.timestep(-2 * (mean + self.std * _normal(uniforms)))
        return (t.round() if schedule.discrete else t).float()

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "log-normal", "mean": self.mean, "std": self.std}


def _at(schedule: Schedule, fraction: Tensor) -> Tensor:
    """The timestep at `fraction` in [0, 1) of the schedule."""
    if schedule.discrete:
        return (fraction * schedule.timesteps).floor().float()
    return (fraction * (schedule.timesteps - 1)).float()


def _normal(uniforms: Tensor) -> Tensor:
    # A float32 uniform is 0 once in 2^24 draws, where the normal would be -inf.
    numbers: Tensor = torch.special.ndtri(uniforms.double().clamp(2.0**-26, 1 - 2.0**-26))
    return numbers


TIMESTEP_SAMPLINGS: dict[str, type[TimestepSampling]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "logit-normal": LogitNormal,
    "log-normal": LogNormal,
}
