"""PLMS: pseudo linear multistep (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, predict, sampler
from ldmkit.samplers.grid import Grid, Level, level_at, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule

# Adams-Bashforth, newest first: Liu et al. 2022, eq. 12 and its lower orders.
_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@sampler
def plms(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    runge_kutta: bool = False,
    extrapolate: Literal["eps", "v"] = "eps",
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM steps along eps extrapolated from the last four; n steps cost n + 1 evaluations.

    Fourth-order weights, but of second order in all, as pseudo numerical methods are: the step itself is exact for an eps that
    stays the same. Its errors are a few times smaller than those of `dpmpp_2m` where timesteps are even.

    The first step is pseudo improved Euler, as in the released code and diffusers' `PNDMScheduler(skip_prk_steps=True)`.
    Even spacing is what its weights are made for. While x is noise alone (zero terminal SNR, the first levels of `sqrt`) the
    steps are DDIM's: memory begins after it.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        runge_kutta: the first three steps are pseudo Runge-Kutta, of four evaluations each (the paper's own start, eq. 13;
            diffusers' `skip_prk_steps=False`).
        extrapolate: what is extrapolated: eps, or v = alpha eps - sigma x_0, as diffusers does for `v_prediction`.
        spacing, clean: see `make_grid`. `spacing="compvis"` is the released code's sampler, step for step.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    method = _Pseudo(denoiser, schedule, grid, extrapolate)
    x = begin(noise, grid)
    history: list[Tensor] = []
    for i in range(len(grid)):
        start = x
        x0, output = method.evaluate(x, grid.timesteps[i], method.level(i))
        history = [output, *history[:3]]
        if grid.pure_at(i):
            history = [output]
            x = method.step(x, x0, i)
        elif runge_kutta and i < min(3, len(grid) - 1):
            x = method.runge_kutta(x, output, i)
        elif len(history) == 1 and i + 1 < len(grid):
            x = method.improved_euler(x, output, i)
        else:
            weights = _WEIGHTS[len(history) - 1]
            mixed = sum((w * old for w, old in zip(weights, history, strict=True)), torch.zeros_like(x))
            x = method.transfer(start, mixed, method.level(i), grid.end(i))
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


@dataclass(frozen=True)
class _Pseudo:
    """The steps of the paper's pseudo numerical methods on one grid."""

    denoiser: X0Predictor
    schedule: Schedule
    grid: Grid
    extrapolated: Literal["eps", "v"]

    def level(self, i: int) -> Level:
        return self.grid.alpha[i], self.grid.sigma[i], self.grid.log_snr[i]

    def evaluate(self, x: Tensor, t: float, level: Level) -> tuple[Tensor, Tensor]:
        """x_0, and what is extrapolated, at x of timestep `t`."""
        alpha, sigma, _ = level
        x0 = predict(self.denoiser, x, t)
        eps = (x - alpha * x0) / sigma
        return x0, eps if self.extrapolated == "eps" else alpha * eps - sigma * x0

    def transfer(self, x: Tensor, output: Tensor, start: Level, end: Level) -> Tensor:
        """A DDIM step along `output`: Liu et al. 2022, eq. 11."""
        alpha, sigma, _ = start
        eps = output if self.extrapolated == "eps" else (alpha * output + sigma * x) / (alpha**2 + sigma**2)
        return end[0] / alpha * (x - sigma * eps) + end[1] * eps

    def step(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        """DDIM's step, without dividing by an alpha of zero."""
        alpha, sigma, _ = self.grid.end(i)
        return alpha * x0 + sigma * (x - self.grid.alpha[i] * x0) / self.grid.sigma[i]

    def improved_euler(self, x: Tensor, output: Tensor, i: int) -> Tensor:
        """A step along the mean of the slopes at both its ends."""
        start, there, t = self.level(i), self.level(i + 1), self.grid.timesteps[i + 1]
        ahead = self.transfer(x, output, start, self.grid.end(i))
        _, again = self.evaluate(ahead, t, there)
        if self.grid.ends:  # in whole strides it begins a stride above the next timestep
            start = level_at(self.schedule, t + self._stride(i))
        return self.transfer(x, (output + again) / 2, start, there)

    def runge_kutta(self, x: Tensor, output: Tensor, i: int) -> Tensor:
        """Liu et al. 2022, eq. 13: slopes at the beginning, twice halfway, and at the end."""
        start, there, t = self.level(i), self.level(i + 1), self.grid.timesteps[i + 1]
        half = self._stride(i) / 2
        if self.schedule.discrete:
            half = float(int(half))
        halfway = level_at(self.schedule, t + half)
        second = self.transfer(x, output, start, level_at(self.schedule, self.grid.timesteps[i] - half))
        _, at_second = self.evaluate(second, t + half, halfway)
        _, at_third = self.evaluate(self.transfer(x, at_second, start, halfway), t + half, halfway)
        _, at_last = self.evaluate(self.transfer(x, at_third, start, there), t, there)
        return self.transfer(x, (output + 2 * at_second + 2 * at_third + at_last) / 6, start, there)

    def _stride(self, i: int) -> float:
        whole = self.schedule.timesteps // len(self.grid)
        return whole if self.grid.ends else self.grid.timesteps[i] - self.grid.timesteps[i + 1]
