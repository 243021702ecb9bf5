"""The `diffusion` section: noise schedule, prediction, loss, weighting, choice of timesteps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from ldmkit.recipe.base import Above, NotNegative, Positive, Section, type_of


class AnySchedule(Section):
    """The keys that every schedule has."""

    type: str
    timesteps: Positive = 1000
    zero_snr: bool = False
    shift: Above = 1.0


Beta = Annotated[float, Field(gt=0.0, lt=1.0)]


class Linear(AnySchedule):
    """The released models' schedule: equal steps in sqrt(beta)."""

    type: Literal["linear"] = "linear"
    start: Beta = 0.0015
    end: Beta = 0.0195


class PlainLinear(AnySchedule):
    type: Literal["plain-linear"] = "plain-linear"
    start: Beta = 1e-4
    end: Beta = 2e-2


class Sqrt(AnySchedule):
    type: Literal["sqrt"] = "sqrt"
    start: Beta = 1e-4
    end: Beta = 2e-2


class Cosine(AnySchedule):
    type: Literal["cosine"] = "cosine"
    offset: NotNegative = 0.008


class Given(Section):
    """The betas themselves."""

    type: Literal["given"] = "given"
    betas: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=2)]
    zero_snr: bool = False
    shift: Above = 1.0


class EDM(AnySchedule):
    """EDM's levels for data of deviation `sigma_data`, 0.5 in the paper; null: 0.004 and 160 of it, the paper's 0.002, 80."""

    type: Literal["edm"] = "edm"
    sigma_data: Above = 1.0
    sigma_min: Above | None = None
    sigma_max: Above | None = None
    rho: Above = 7.0


class Flow(AnySchedule):
    type: Literal["flow"] = "flow"


Schedule = Annotated[
    Annotated[Linear, Tag("linear")]
    | Annotated[PlainLinear, Tag("plain-linear")]
    | Annotated[Sqrt, Tag("sqrt")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Given, Tag("given")]
    | Annotated[EDM, Tag("edm")]
    | Annotated[Flow, Tag("flow")],
    type_of("linear"),
]


class L2(Section):
    type: Literal["l2"] = "l2"


class L1(Section):
    type: Literal["l1"] = "l1"


class Huber(Section):
    type: Literal["huber"] = "huber"
    delta: Above = 1.0


class Simple(Section):
    type: Literal["simple"] = "simple"


class SNR(Section):
    type: Literal["snr"] = "snr"


class MinSNR(Section):
    type: Literal["min-snr-gamma"] = "min-snr-gamma"
    gamma: Above = 5.0


class P2(Section):
    type: Literal["p2"] = "p2"
    k: Above = 1.0
    gamma: NotNegative = 1.0


class EDMWeighting(Section):
    """EDM's weights: 1 for v. `sigma_data`: null is the schedule's."""

    type: Literal["edm"] = "edm"
    sigma_data: Above | None = None


class ELBO(Section):
    type: Literal["elbo"] = "elbo"


class Uniform(Section):
    type: Literal["uniform"] = "uniform"


class Stratified(Section):
    type: Literal["stratified"] = "stratified"
    bits: Positive = 10


class LogitNormal(Section):
    type: Literal["logit-normal"] = "logit-normal"
    mean: float = 0.0
    std: Above = 1.0


class LogNormal(Section):
    """Normal in the log of Karras' sigma. `mean`: null is log(0.6024 sigma_data), the paper's -1.2 for its 0.5."""

    type: Literal["log-normal"] = "log-normal"
    mean: float | None = None
    std: Above = 1.2


Loss = Annotated[Annotated[L2, Tag("l2")] | Annotated[L1, Tag("l1")] | Annotated[Huber, Tag("huber")], type_of("l2")]
Weighting = Annotated[
    Annotated[Simple, Tag("simple")]
    | Annotated[SNR, Tag("snr")]
    | Annotated[MinSNR, Tag("min-snr-gamma")]
    | Annotated[P2, Tag("p2")]
    | Annotated[EDMWeighting, Tag("edm")]
    | Annotated[ELBO, Tag("elbo")],
    type_of("simple"),
]
TimestepSampling = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[Stratified, Tag("stratified")]
    | Annotated[LogitNormal, Tag("logit-normal")]
    | Annotated[LogNormal, Tag("log-normal")],
    type_of("uniform"),
]


class Diffusion(Section):
    """What is learned. `loss`, `weighting` and `timestep_sampling` are a name, or a mapping of `type` and options."""

    schedule: Schedule = Field(default_factory=Linear)
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    loss: Loss = Field(default_factory=L2)
    weighting: Weighting = Field(default_factory=Simple)
    timestep_sampling: TimestepSampling = Field(default_factory=Uniform)
    elbo: NotNegative = 0.0
    learn_logvar: bool = False
    logvar: float = 0.0
    offset_noise: NotNegative = 0.0
    input_perturbation: NotNegative = 0.0
