"""`Diffusion`: the schedule, what the network predicts, and the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn

from ldmkit.diffusion.losses import DISTANCES, L2, Distance
from ldmkit.diffusion.predictions import PREDICTIONS, Eps, Prediction
from ldmkit.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS, TimestepSampling, Uniform
from ldmkit.diffusion.weightings import ELBO, WEIGHTINGS, Simple, Weighting
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import NotNegative
from ldmkit.random import normal
from ldmkit.schedules import SCHEDULES, Schedule
from ldmkit.schedules import make as make_schedule

# Both map x_t (b, c, h, w) and t (b,) to (b, c, h, w): a network returns its own prediction, a denoiser x_0.
Network = Callable[[Tensor, Tensor], Tensor]
X0Predictor = Callable[[Tensor, Tensor], Tensor]
PredictionName = Literal["eps", "x0", "v", "flow"]
Choice = str | Mapping[str, Any]
T = TypeVar("T")


class Diffusion(nn.Module):
    """The noising process and the objective of a network (Rombach et al. 2022, section 3.2).

    Args:
        schedule: timestep -> (alpha, sigma).
        prediction: what the network predicts: ``eps``, ``x0``, ``v`` or ``flow`` (or a `Prediction`).
        loss: the distance of output and target.
        weighting: of the noise levels.
        timestep_sampling: which noise levels are trained on.
        elbo: weight of the variational bound's term, added to the loss (the released code's `original_elbo_weight`).
        learn_logvar: learn a log-variance per timestep: loss / exp(logvar_t) + logvar_t, a parameter (T,).
        logvar: where it starts.
        offset_noise: standard deviation of noise that is one number a channel, added to the noise (Guttenberg 2023).
        input_perturbation: extra noise in x_t that the target does not know of, as a share of sigma (Ning et al. 2023; 0.1).

    Raises UsageError where eps is to be predicted on a schedule with zero terminal SNR.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        prediction: str | Prediction = "eps",
        loss: Distance | None = None,
        weighting: Weighting | None = None,
        timestep_sampling: TimestepSampling | None = None,
        elbo: float = 0.0,
        learn_logvar: bool = False,
        logvar: float = 0.0,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.prediction = (
            prediction if isinstance(prediction, Prediction) else choose("prediction", PREDICTIONS, prediction)
        )
        self.distance, self.weighting = loss or L2(), weighting or Simple()
        self.timestep_sampling = timestep_sampling or Uniform()
        self.elbo, self.initial_logvar = elbo, logvar
        self.offset_noise, self.input_perturbation = offset_noise, input_perturbation
        self.logvar = nn.Parameter(torch.full((schedule.timesteps,), float(logvar))) if learn_logvar else None
        if isinstance(self.prediction, Eps) and schedule.zero_terminal_snr:
            raise UsageError(
                "prediction eps on a schedule whose last timestep is noise alone: the noise there says nothing of the picture",
                hint="set diffusion.prediction to v, x0 or flow",
            )

    @property
    def config(self) -> dict[str, Any]:
        """What `make` needs to build this again: JSON values."""
        return {
            "schedule": self.schedule.config,
            "prediction": self.prediction.name,
            "loss": self.distance.config,
            "weighting": self.weighting.config,
            "timestep_sampling": self.timestep_sampling.config,
            "elbo": self.elbo,
            "learn_logvar": self.logvar is not None,
            "logvar": self.initial_logvar,
            "offset_noise": self.offset_noise,
            "input_perturbation": self.input_perturbation,
        }

    # draws

    def sample_timesteps(self, uniforms: Tensor, positions: Tensor | None = None) -> Tensor:
        """Timesteps (b,) float32 from `uniforms` (b,) in [0, 1).

        `positions` (b,) int64 are what stratified sampling goes by; without them, `uniforms` are shares of the distribution.
        """
        return self.timestep_sampling(self.schedule, uniforms, positions)

    def draw_noise(self, generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
        """Noise (b, *shape) on the CPU, with offset noise where that is on; row i from `generators[i]` alone."""
        noise = normal(generators, shape)
        if self.offset_noise:
            noise = noise + self.offset_noise * normal(generators, (shape[0], *(1 for _ in shape[1:])))
        return noise

    # the process

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor, *, perturbation: Tensor | None = None) -> Tensor:
        """x_t = alpha x_0 + sigma noise, (b, c, h, w); `t` (b,).

        `perturbation`, unit normal noise of the same shape, is mixed in by the share `input_perturbation`: in training only.
        """
        alpha, sigma = self._coefficients(t, x0)
        if perturbation is not None:
            noise = noise + self.input_perturbation * perturbation
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output, (b, c, h, w)."""
        return self.prediction.target(x0, noise, *self._coefficients(t, x0))

    def to_x0(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """x_0 (b, c, h, w) of the network's output at x_t = `noisy`."""
        return self.prediction.x0(output, noisy, *self._coefficients(t, noisy))

    def to_eps(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """eps (b, c, h, w) of the network's output."""
        return self.prediction.noise(output, noisy, *self._coefficients(t, noisy))

    def to_v(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma x_0 (b, c, h, w) of the network's output."""
        alpha, sigma = self._coefficients(t, noisy)
        return alpha * self.to_eps(output, noisy, t) - sigma * self.to_x0(output, noisy, t)

    def to_flow(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """u = eps - x_0 (b, c, h, w) of the network's output."""
        return self.to_eps(output, noisy, t) - self.to_x0(output, noisy, t)

    def from_x0(self, x0: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The output (b, c, h, w) of the network that means `x0` at x_t = `noisy`: the inverse of `to_x0`."""
        alpha, sigma = self._coefficients(t, noisy)
        return self.prediction.target(x0, (noisy - alpha * x0) / sigma, alpha, sigma)

    def denoiser(self, network: Network) -> X0Predictor:
        """`network`, which returns this prediction, as a denoiser (x_t, t) -> x_0."""

        def denoise(noisy: Tensor, t: Tensor) -> Tensor:
            return self.to_x0(network(noisy, t).to(noisy.dtype), noisy, t)

        return denoise

    # the objective

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The loss of each row (b,), weights, learned log-variance and bound applied; its mean is what is minimised."""
        return self.terms(output, x0, noise, t)["loss"]

    def terms(self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> dict[str, Tensor]:
        """`loss` (b,) and its parts (b,): `simple`, unweighted, the mean over c, h, w; `elbo`, the bound's, where on."""
        simple = self.distance(output.float(), self.target(x0, noise, t).float()).flatten(1).mean(1)
        loss = simple * self.weights(t)
        terms = {"simple": simple}
        if self.logvar is not None:
            logvar = self.logvar[t.round().long().clamp(0, self.schedule.timesteps - 1)]
            loss = loss / logvar.exp() + logvar
        if self.elbo:
            terms["elbo"] = simple * self._weights(ELBO(), t)
            loss = loss + self.elbo * terms["elbo"]
        return {"loss": loss, **terms}

    def weights(self, t: Tensor) -> Tensor:
        """What multiplies the loss of each row (b,), float32."""
        return self._weights(self.weighting, t)

    def _weights(self, weighting: Weighting, t: Tensor) -> Tensor:
        gain = self.prediction.gain(*self.schedule.coefficients(self.schedule.log_snr(t)))
        return weighting(self.schedule, t, gain).to(t.device, torch.float32)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.coefficients(self.schedule.log_snr(t))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        shape = (-1, *(1 for _ in like.shape[1:]))
        return alpha.to(like.device, dtype).view(shape), sigma.to(like.device, dtype).view(shape)


def make(
    *,
    schedule: Mapping[str, Any] | None = None,
    prediction: PredictionName = "eps",
    loss: Choice = "l2",
    weighting: Choice = "simple",
    timestep_sampling: Choice = "uniform",
    elbo: NotNegative = 0.0,
    learn_logvar: bool = False,
    logvar: float = 0.0,
    offset_noise: NotNegative = 0.0,
    input_perturbation: NotNegative = 0.0,
    schedules: Mapping[str, Callable[..., Schedule]] = SCHEDULES,
) -> Diffusion:
    """The `diffusion` section of a recipe as a `Diffusion`.

    `loss`, `weighting` and `timestep_sampling` are a name, or a mapping of `type` and options: ``{type: p2, gamma: 0.5}``.
    `schedules` are the registered ones. Raises UsageError for unknown names and options.
    """
    return Diffusion(
        schedule=make_schedule(**(schedule or {}), schedules=schedules),
        prediction=prediction,
        loss=choose("loss", DISTANCES, loss),
        weighting=choose("weighting", WEIGHTINGS, weighting),
        timestep_sampling=choose("timestep_sampling", TIMESTEP_SAMPLINGS, timestep_sampling),
        elbo=elbo,
        learn_logvar=learn_logvar,
        logvar=logvar,
        offset_noise=offset_noise,
        input_perturbation=input_perturbation,
    )


def choose(what: str, table: Mapping[str, Callable[..., T]], choice: Choice) -> T:
    """`table[name](**options)` for a name, or a mapping of `type` and options. Raises UsageError naming what there is."""
    options = {"type": choice} if isinstance(choice, str) else dict(choice)
    name = str(options.pop("type", None))
    if name not in table:
        raise UsageError(f"no {what} is called {name!r}; there are {', '.join(table)}")
    allowed = inspect.signature(table[name]).parameters
    if unknown := [key for key in options if key not in allowed]:
        raise UsageError(f"{what} {name} has no option {', '.join(unknown)}; it has {', '.join(allowed) or 'none'}")
    return table[name](**options)
