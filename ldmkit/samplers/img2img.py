"""Image to image: noise a latent part of the way, and sample from there (SDEdit, Meng et al. 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, Sampler
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


def img2img(
    sampler: Sampler,
    denoiser: X0Predictor,
    latents: Tensor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    strength: float,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """The last int(strength * n) of a sampler's n steps, from `latents` noised to where those begin.

    Args:
        sampler: one of this package's.
        denoiser: (x_t, t) -> x_0.
        latents: (b, c, h, w), clean.
        noise: (b, c, h, w), unit normal.
        steps: how many the whole way would be, or a `Grid`.
        strength: in (0, 1]; 1 takes all steps, from almost pure noise.
        spacing, clean: see `make_grid`. Even spacing, whatever the sampler's own default is: `strength` is then the share of the
            timesteps too, and means the same for every sampler.
        generators, callback, options: the sampler's.

    The released script noises to the level one step above the one it starts from; here both are one.
    Returns latents (b, c, h, w). Raises UsageError for a strength outside (0, 1], and where no step is left.
    """
    if not 0 < strength <= 1:
        raise UsageError(f"strength {strength:g}: above 0, which keeps the picture, to 1, which forgets it")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    taken = int(strength * len(grid) + 1e-9)
    if taken < 1:
        raise UsageError(
            f"strength {strength:g} of {len(grid)} steps leaves no step to take",
            hint=f"take more steps, or a strength of at least {1 / len(grid):g}",
        )
    tail = grid.tail(len(grid) - taken)
    noisy = tail.alpha[0] * latents + tail.sigma[0] * noise
    return sampler(denoiser, noisy, schedule, tail, generators=generators, callback=callback, **options)
