"""The sections of a recipe: the keys that the core reads. The other keys are options of what `type` names (`core_schema`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from ldmkit.plugins.ranges import Above, Count, NotNegative, Positive, Share
from ldmkit.recipe.base import Component, Section
from ldmkit.recipe.core_schema import AutoencoderLoss, DataKeys, DiffusionKeys, ScheduleKeys
from ldmkit.recipe.strict_yaml import Document
from ldmkit.recipe.training import AutoencoderTrain, Runtime, Train


class Init(Section):
    """Start from a trained model, a run or a saved one."""

    from_: str = Field(alias="from")
    weights: Literal["ema", "raw"] = "ema"


class Data(DataKeys, Component):
    """Where samples come from (`type` names a data source) and how pictures are cut.

    What is left out of `crop`, `flip`, `views`, `zoom`, `portion` and `resample` is the source's own default.

    A window is as large as fits; `zoom: [low, high]` draws its scale (picture pixels per pixel), `portion: [low, high]` its side
    as a portion of the largest. `portion: [0.5, 1.0]` with `crop: random`, `views: null` and `resample: area` is how the paper
    cuts super-resolution data. `buckets`: sizes [h, w]; each picture is trained on at the one nearest in aspect ratio, each batch
    at one size. `jitter`: other colours than the pictures', for a source that has few. Held-out pictures are seen at `size`, in
    their own colours.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Autoencoder(Component):
    """Stage one. `type` names an autoencoder; `from`: reuse a trained one, from a run or a saved model.

    `scale`: latents are divided by their standard deviation, over all channels or `per-channel`, or multiplied with a number.
    """

    type: str = "vq"
    from_: str | None = Field(None, alias="from")
    scale: Literal["std", "per-channel"] | Above = "std"
    train: AutoencoderTrain | None = None
    loss: AutoencoderLoss = Field(default_factory=AutoencoderLoss)


class Slot(Component):
    """A conditioner in a recipe. Left out, `type` is the slot's name with `_` read as `-`.

    `known` is what the data source knows of each field that is read (kind, classes, names, palette, range); `fit` fills it.
    """

    fields_: dict[str, str] = Field(default_factory=dict, alias="fields")
    dropout: Share = 0.1
    lr: NotNegative | None = None
    weight_decay: NotNegative | None = None
    freeze: bool | Count = False
    known: dict[str, dict[str, Any]] | None = None


class Denoiser(Component):
    """The network that predicts. What comes in and out of it follows from the autoencoder and the conditioners."""

    type: str = "unet"


class Schedule(ScheduleKeys, Component):
    """The noise schedule: a name, or a mapping of `type` and options."""

    type: str = "linear"


class Distance(Component):
    """How far a prediction is from its target: a name, or a mapping of `type` and options."""

    type: str = "l2"


class Weighting(Component):
    """How much each noise level counts: a name, or a mapping of `type` and options."""

    type: str = "simple"


class TimestepSampling(Component):
    """Which timesteps are trained on: a name, or a mapping of `type` and options."""

    type: str = "uniform"


class Diffusion(DiffusionKeys):
    """What is learned."""

    schedule: Schedule = Field(default_factory=Schedule)
    loss: Distance = Field(default_factory=Distance)
    weighting: Weighting = Field(default_factory=Weighting)
    timestep_sampling: TimestepSampling = Field(default_factory=TimestepSampling)


class ExtraLoss(Component):
    """A term beside a stage's own loss. Left out, `type` is the term's name with `_` read as `-`.

    `weight`: what the term is multiplied with. `until`: the optimizer step from which on it is left out.
    """

    weight: float = 1.0
    until: Positive | None = None


class Guidance(Component):
    """A method of guidance: a name, or a mapping of `type` and options."""

    type: str = "plain"


class Threshold(Section):
    """Dynamic thresholding (Saharia et al. 2022): to the `quantile` of |x_0|, from 1 to `max`, divided by it."""

    quantile: Annotated[float, Field(gt=0.0, le=1.0)] = 0.995
    max: Annotated[float, Field(ge=1.0)] = 1.0


class FeatureCache(Section):
    """The denoiser's inner blocks run in every `every`-th evaluation; `depth` blocks at either end run in each (DeepCache)."""

    every: Positive = 3
    depth: Positive = 1


class Sample(Component):
    """How pictures are made at the end (`type` names a sampler), and by `ldmkit sample`.

    `guidance_options`: a method of guidance by name, or a mapping of `type` and options. `negative`: slot -> value that stands in
    for the slot's null; for perp-neg a list of such mappings too. `clip` bounds the predicted x_0, for models of pixels: true to
    [-1, 1], a number r to [-r, r], a mapping by dynamic thresholding. `cache`: with {every: 3}, for example, two of three
    evaluations of the denoiser take what its inner blocks gave from an earlier one: faster, and not the same images.
    """

    type: str = "ddim"
    steps: Positive = 50
    count: Positive = 16
    guidance: float | dict[str, float] | str = 1.0
    guidance_options: Guidance = Field(default_factory=Guidance)
    negative: dict[str, Any] | list[dict[str, Any]] | None = None
    clip: bool | Above | Threshold | None = None
    cache: FeatureCache | None = None
    seed: Count = 0


class Metric(Component):
    """One entry of `evaluate`; a name alone stands for `{type: name}`."""


class Sections(Section):
    """All sections of a recipe, and the document they were read from."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init: Init | None = None
    data: Data
    autoencoder: Autoencoder
    conditioners: dict[str, Slot] = Field(default_factory=dict)
    dropout: dict[str, Share] | None = None
    denoiser: Denoiser = Field(default_factory=Denoiser)
    diffusion: Diffusion = Field(default_factory=Diffusion)
    losses: dict[str, ExtraLoss] = Field(default_factory=dict)
    train: Train = Field(default_factory=lambda: Train.model_construct(steps=0))  # 0 can only be left out
    sample: Sample = Field(default_factory=Sample)
    evaluate: list[Metric] = Field(default_factory=list)
    runtime: Runtime = Field(default_factory=Runtime)

    _document: Document = PrivateAttr(default_factory=lambda: Document({}))

    @property
    def alone(self) -> bool:
        """Whether the autoencoder alone is trained and judged: a recipe without `train`."""
        return self.train.steps == 0

    @property
    def document(self) -> Document:
        """What was written, after `extends` and overrides, with the place of every key."""
        return self._document
