"""Spacings: where the n timesteps of a sampler lie. A recipe names one, alone or as a mapping of `type` and its options."""

from __future__ import annotations

import itertools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ldmkit.diffusion import choose
from ldmkit.errors import UsageError
from ldmkit.schedules import LOG_SNR_LIMIT, Schedule

# Karras and exponential spacing need a finite sigma / alpha to start from; 4096 is noise alone for every purpose.
_LOWEST_LOG_SNR = -2 * math.log(4096)


class AnySpacing(ABC):
    """One way to place timesteps.

    `whole_strides`: every step ends T // n below where it begins (see `Leading`). `released_end`: the last step ends on timestep
    0's level, as in the released code.
    """

    whole_strides: bool = False
    released_end: bool = False

    @abstractmethod
    def points(self, schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
        """(timesteps, log-SNR), falling and rising, float64, of n = `steps` steps. Raises UsageError where there are none."""


class _Timesteps(AnySpacing):
    """A spacing that places timesteps; their levels are the schedule's."""

    @abstractmethod
    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        """The falling timesteps, float64."""

    def points(self, schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
        t = self.timesteps(schedule, steps)
        if float(t[0]) > schedule.timesteps - 1:
            raise UsageError(
                f"{steps} steps of this spacing reach timestep {float(t[0]):g}: the last is {schedule.timesteps - 1}",
                hint="take fewer steps, or a smaller offset",
            )
        return t, schedule.log_snr(t)


@dataclass(frozen=True, kw_only=True)
class Trailing(_Timesteps):
    """T down in strides of T / n, rounded, less 1 (Lin et al. 2023, table 2): starts where noise is all."""

    type: Literal["trailing"] = "trailing"
    whole_strides: bool = False

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        count = reach(schedule, steps)
        return _whole(count - torch.arange(steps, dtype=torch.float64) * count / steps, schedule) - 1


@dataclass(frozen=True, kw_only=True)
class Leading(_Timesteps):
    """Strides of T // n up from `offset` (Song et al. 2020; diffusers' `steps_offset`).

    drop_last: of n + 1 points, in strides of T // (n + 1), the lowest is not evaluated (the DPM-Solver family in diffusers).
    whole_strides: every step ends T // n below where it begins, wherever the next begins (DDIM and PNDM in diffusers): `ddim`
        and `plms` step so; every other sampler steps to where the next begins.
    """

    type: Literal["leading"] = "leading"
    offset: Annotated[int, Field(ge=0)] = 0
    drop_last: bool = False
    whole_strides: bool = False

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise UsageError(f"spacing leading with offset {self.offset}: it is 0 or more")

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        extra = int(self.drop_last)
        stride = reach(schedule, steps + extra) // (steps + extra)
        return torch.arange(steps - 1 + extra, extra - 1, -1, dtype=torch.float64) * stride + self.offset


@dataclass(frozen=True, kw_only=True)
class Linspace(_Timesteps):
    """n even points from T - 1 to 0; of a discrete schedule whole ones, unless `fractional` (Euler, Heun, LMS in diffusers).

    drop_last, whole_strides: see `Leading`.
    """

    type: Literal["linspace"] = "linspace"
    fractional: bool = False
    drop_last: bool = False
    whole_strides: bool = False

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        count = steps + int(self.drop_last)
        t = torch.linspace(reach(schedule, count) - 1, 0, count, dtype=torch.float64)[:steps]
        return t if self.fractional else _whole(t, schedule)


@dataclass(frozen=True, kw_only=True)
class Quadratic(_Timesteps):
    """Trailing in sqrt(t): dense near the data, where the solvers of second order and above need it."""

    type: Literal["quadratic"] = "quadratic"

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        falling = reach(schedule, steps) * (1 - torch.arange(steps, dtype=torch.float64) / steps) ** 2 - 1
        rising = _whole(falling.flip(0).clamp(min=0), schedule)
        # Moved up where two would be less than a timestep apart.
        for i in range(1, len(rising)):
            rising[i] = torch.maximum(rising[i], rising[i - 1] + 1)
        return rising.flip(0)


@dataclass(frozen=True, kw_only=True)
class CompVis(_Timesteps):
    """The released code's DDIM steps, range(0, T, T // n) + 1, ending on timestep 0's noise level.

    Takes another number of steps where n does not divide T, and logs how many.
    """

    type: Literal["compvis"] = "compvis"
    released_end = True

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        count = schedule.timesteps
        return _as_released(self.type, steps, list(range(1, count + 1, count // steps)), count)


@dataclass(frozen=True, kw_only=True)
class CompVisQuadratic(_Timesteps):
    """The released code's `quad`: n points of t up to 0.8 T, even in sqrt(t), cut to whole numbers, + 1.

    Those that fall together are taken once (repeated, as there, they change nothing), and it logs how many are left.
    """

    type: Literal["compvis-quadratic"] = "compvis-quadratic"
    released_end = True

    def timesteps(self, schedule: Schedule, steps: int) -> Tensor:
        points = np.linspace(0, np.sqrt(0.8 * schedule.timesteps), steps) ** 2
        rising = sorted(set((points.astype(int) + 1).tolist()))
        return _as_released(self.type, steps, rising, schedule.timesteps)


@dataclass(frozen=True, kw_only=True)
class _InRho(AnySpacing):
    """Even in a power of sigma / alpha, from `sigma_max` to `sigma_min` of it; None: the schedule's, or those of `within`.

    within: the first and last point of that spacing give the range (Euler, Heun and LMS in diffusers).
    """

    sigma_min: Annotated[float, Field(gt=0)] | None = None
    sigma_max: Annotated[float, Field(gt=0)] | None = None
    within: Leading | Linspace | Trailing | None = None

    @property
    @abstractmethod
    def power(self) -> float: ...

    def points(self, schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
        top, bottom = reach(schedule, steps) - 1.0, 0.0
        if self.within is not None:
            t, _ = spacing_of(self.within).points(schedule, steps)
            top, bottom = float(t[0]), float(t[-1])
        high = _log_snr(schedule, top) if self.sigma_max is None else self._given(schedule, "sigma_max", self.sigma_max)
        low = (
            _log_snr(schedule, bottom) if self.sigma_min is None else self._given(schedule, "sigma_min", self.sigma_min)
        )
        if high > low:
            raise UsageError(f"spacing {self}: sigma_min is above sigma_max")
        log_snr = _between(max(high, _LOWEST_LOG_SNR), low, steps, self.power)
        t = schedule.timestep(log_snr)
        if self.sigma_max is None:
            t[0], log_snr[0] = top, high
        return t, log_snr

    def _given(self, schedule: Schedule, name: str, sigma: float) -> float:
        """The log-SNR of a level that was given. Raises UsageError outside the schedule's own."""
        log_snr = -2 * math.log(sigma)
        ends = _log_snr(schedule, schedule.timesteps - 1.0), _log_snr(schedule, 0.0)
        if not ends[0] - 1e-4 <= log_snr <= ends[1] + 1e-4:
            low, high = math.exp(-ends[1] / 2), math.exp(-ends[0] / 2)
            raise UsageError(f"{name} {sigma:g}: sigma / alpha of this schedule goes from {low:.4g} to {high:.4g}")
        return min(max(log_snr, ends[0]), ends[1])


@dataclass(frozen=True, kw_only=True)
class Karras(_InRho):
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5). See `_InRho` for the range."""

    type: Literal["karras"] = "karras"
    rho: Annotated[float, Field(gt=0)] = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise UsageError(f"spacing karras with rho {self.rho:g}: it is above 0; 7 is usual")

    @property
    def power(self) -> float:
        return self.rho


@dataclass(frozen=True, kw_only=True)
class Exponential(_InRho):
    """Even in log(sigma / alpha)."""

    type: Literal["exponential"] = "exponential"

    @property
    def power(self) -> float:
        return math.inf


@dataclass(frozen=True, kw_only=True)
class Given(AnySpacing):
    """The falling `timesteps` themselves, or the noise levels `sigmas`: sigma / alpha, on a rectified flow sigma.

    As many steps as the list is long; a final sigma of 0 is no step (`clean` says where the last one ends).
    """

    type: Literal["given"] = "given"
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.timesteps is None) == (self.sigmas is None):
            raise UsageError("spacing given takes a list: timesteps, or sigmas")
        values = self._values
        if not values or any(a <= b for a, b in itertools.pairwise(values)) or values[-1] < 0:
            name = "timesteps" if self.sigmas is None else "sigmas"
            raise UsageError(
                f"spacing given with {name} {list(values)}: they fall, from noise to data, and none is negative"
            )

    @property
    def _values(self) -> tuple[float, ...]:
        values = tuple(float(value) for value in (self.timesteps if self.sigmas is None else self.sigmas) or ())
        return values[:-1] if self.sigmas is not None and values and values[-1] == 0 else values

    def __len__(self) -> int:
        return len(self._values)

    def points(self, schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
        values = torch.tensor(self._values, dtype=torch.float64)
        if steps != len(self):
            raise UsageError(
                f"{steps} steps, and spacing given lists {len(self)}", hint="leave steps out, or say as many"
            )
        if self.sigmas is None:
            return values, schedule.log_snr(values)
        log_snr = -2 * (torch.logit(values) if schedule.straight else values.log())
        log_snr = log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        ends = _log_snr(schedule, schedule.timesteps - 1.0), _log_snr(schedule, 0.0)
        if float(log_snr[0]) < ends[0] - 1e-4 or float(log_snr[-1]) > ends[1] + 1e-4:
            raise UsageError(f"sigmas from {values[0]:g} to {values[-1]:g} are not all levels of this schedule")
        log_snr = log_snr.clamp(*ends)
        return schedule.timestep(log_snr), log_snr


SPACINGS: dict[str, type[AnySpacing]] = {
    "trailing": Trailing,
    "leading": Leading,
    "linspace": Linspace,
    "quadratic": Quadratic,
    "karras": Karras,
    "exponential": Exponential,
    "given": Given,
    "compvis": CompVis,
    "compvis-quadratic": CompVisQuadratic,
}
SpacingName = Literal[
    "trailing", "leading", "linspace", "quadratic", "karras", "exponential", "compvis", "compvis-quadratic"
]
Spacing = (
    SpacingName
    | Annotated[
        Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic,
        Field(discriminator="type"),
    ]
)


def spacing_of(choice: Spacing | AnySpacing | Mapping[str, Any]) -> AnySpacing:
    """The spacing of a name, or of a mapping of `type` and options. Raises UsageError naming what there is."""
    return choice if isinstance(choice, AnySpacing) else choose("spacing", SPACINGS, choice)


def reach(schedule: Schedule, steps: int) -> int:
    """How many of the schedule's timesteps, from 0 up, `steps` points are spread over: T.

    Fewer where more than a hundredth of them are noise alone (`sqrt`, whose upper half is): nothing is seen there, and eps says
    nothing of x_0. A single such timestep (cosine, zero terminal SNR) is where sampling starts.
    """
    seen = math.ceil(float(schedule.timestep(torch.tensor(_LOWEST_LOG_SNR)))) + 1
    return seen if steps <= seen < 0.99 * schedule.timesteps else schedule.timesteps


def _whole(t: Tensor, schedule: Schedule) -> Tensor:
    return t.round() if schedule.discrete else t


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


def _between(high: float, low: float, steps: int, power: float) -> Tensor:
    """Log-SNR of points from `high` noise to `low`, even in (sigma / alpha)^(1 / power); infinite: in its logarithm."""
    logs = torch.tensor([-high / 2, -low / 2], dtype=torch.float64)
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if power == math.inf:
        return -2 * torch.lerp(logs[0], logs[1], share)
    first, last = (logs / power).exp()
    return -2 * power * torch.lerp(first, last, share).log()


def _log_snr(schedule: Schedule, t: float) -> float:
    return float(schedule.log_snr(torch.tensor(t)))
