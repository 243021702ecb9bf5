"""Noise schedules: one interface, timestep -> (alpha, sigma) with x_t = alpha x_0 + sigma eps.

schedule = make("linear", start=0.0015, end=0.0155)     # what `diffusion.schedule` of a recipe says
alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 999]))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above
from ldmkit.schedules.base import LOG_SNR_LIMIT, Schedule, resolution_shift_of
from ldmkit.schedules.continuous import EDM, Flow, Shifted
from ldmkit.schedules.discrete import (
    Discrete,
    cosine,
    given,
    linear,
    plain_linear,
    rescale_zero_snr,
    shift_discrete,
    sqrt,
)

__all__ = [
    "EDM",
    "LOG_SNR_LIMIT",
    "SCHEDULES",
    "Discrete",
    "Flow",
    "Schedule",
    "Shifted",
    "cosine",
    "given",
    "linear",
    "make",
    "plain_linear",
    "rescale_zero_snr",
    "resolution_shift",
    "resolution_shift_of",
    "sqrt",
]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "plain-linear": plain_linear,
    "cosine": cosine,
    "sqrt": sqrt,
    "given": given,
    "edm": EDM,
    "flow": Flow,
}


def make(
    type: str = "linear",
    *,
    zero_snr: bool = False,
    shift: Above = 1.0,
    schedules: Mapping[str, Callable[..., Schedule]] = SCHEDULES,
    **options: Any,
) -> Schedule:
    """The schedule a recipe names; `options` are those of its constructor in `schedules`, the registered ones.

    zero_snr: rescale a table of betas to zero terminal SNR (Lin et al. 2023).
    shift: the resolution shift, applied last; 1 is none.

    Raises UsageError for an unknown name or option.
    """
    if type not in schedules:
        raise UsageError(f"no schedule is called {type!r}; there are {', '.join(schedules)}")
    kind = schedules[type]
    allowed = inspect.signature(kind).parameters
    if unknown := [name for name in options if name not in allowed]:
        raise UsageError(
            f"schedule {type} has no option {', '.join(unknown)}; it has {', '.join(allowed)}, zero_snr, shift"
        )
    if missing := [n for n, p in allowed.items() if p.default is p.empty and n not in options]:
        raise UsageError(f"schedule {type} needs {', '.join(missing)}")
    schedule = kind(**options)
    if zero_snr:
        if not isinstance(schedule, Discrete):
            raise UsageError(f"zero_snr rescales a table of betas, and schedule {type} has none")
        schedule = rescale_zero_snr(schedule)
    return schedule if shift == 1 else resolution_shift(schedule, shift)


def resolution_shift(schedule: Schedule, factor: float) -> Schedule:
    """`schedule` with log-SNR lowered by 2 log(`factor`), for pictures `factor` times larger: see `resolution_shift_of`."""
    return shift_discrete(schedule, factor) if isinstance(schedule, Discrete) else Shifted(schedule, factor)
