"""The sinusoidal embedding of the timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldmkit.errors import UsageError


def timestep_embedding(t: Tensor, width: int, *, period: float = 10_000.0) -> Tensor:
    """Embed timesteps t (b,), integer or fractional, as (b, width) float32: cosines first, then sines.

    Frequencies are ``period ** (-i / (width / 2))`` (Vaswani et al. 2017, section 3.5, in the order and with the
    spacing of Dhariwal & Nichol 2021, which the released models were trained with). `width` is even.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    # Multiplied before divided, as the released models had it: at t = 1000 a rounding here is seen in the sixth digit.
    angles = t.float()[:, None] * torch.exp(-math.log(period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embedded_time(options: Mapping[str, Any] | None) -> Callable[[Tensor], Tensor]:
    """What a network embeds of its timesteps (b,): by default t itself.

    ``{type: offset, by: 1}``: t + 1 (networks for a rectified flow that see T sigma).
    ``{type: log-sigma, sigma_min, sigma_max, rho, timesteps}``: log(sigma) / 4 (Karras et al. 2022, table 1), where
    sigma^(1 / rho) rises evenly from sigma_min at t = 0 to sigma_max at t = timesteps - 1.

    Raises UsageError for another type, and for options that are missing or left over.
    """
    if options is None:
        return _unchanged
    given = {key: value for key, value in options.items() if key != "type"}
    names = {"offset": ("by",), "log-sigma": ("sigma_min", "sigma_max", "rho", "timesteps")}
    kind = options.get("type")
    if kind not in names:
        raise UsageError(f"variant.time has the type {kind!r}; there are {', '.join(names)}")
    if set(given) != set(names[kind]):
        raise UsageError(
            f"variant.time {kind} has {', '.join(given) or 'no options'}; it needs {', '.join(names[kind])}"
        )
    if kind == "offset":
        return partial(_offset, by=given["by"])
    rho, last = given["rho"], given["timesteps"] - 1
    low, high = given["sigma_min"] ** (1 / rho), given["sigma_max"] ** (1 / rho)
    return partial(_quarter_log_sigma, low=low, high=high, rho=rho, last=last)


# Functions of the module, so that a network can be copied and pickled.


def _unchanged(t: Tensor) -> Tensor:
    return t


def _offset(t: Tensor, *, by: float) -> Tensor:
    return t + by


def _quarter_log_sigma(t: Tensor, *, low: float, high: float, rho: float, last: float) -> Tensor:
    """log(sigma) / 4, where sigma^(1 / rho) rises evenly from `low` at t = 0 to `high` at t = `last`."""
    return (low + t.double() / last * (high - low)).log() * (rho / 4)
