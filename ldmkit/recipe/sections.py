"""The sections of a recipe as pydantic models. Their keys are the constructors' parameters; a test holds the two together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from ldmkit.recipe.base import (
    Above,
    Component,
    Count,
    NotNegative,
    PerLevel,
    Positive,
    Section,
    Share,
    type_of,
)
from ldmkit.recipe.guiding import GuidanceOptions, PlainGuidance
from ldmkit.recipe.training import AutoencoderTrain

Multiplier = Positive | Above
Portion = Annotated[float, Field(gt=0.0, le=1.0)]


class Init(Section):
    """Start from a trained model, a run or a saved one."""

    from_: str = Field(alias="from")
    weights: Literal["ema", "raw"] = "ema"


class Jitter(Section):
    """Colours drawn for each view, as torchvision's `ColorJitter` counts: factors in [1 - x, 1 + x], hue in turns."""

    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


class Data(Component):
    """Where samples come from (`type` names a data source) and how pictures are cut.

    What is left out of `crop`, `flip`, `views`, `zoom`, `portion` and `resample` is the source's own default.

    A window is as large as fits; `zoom: [low, high]` draws its scale (picture pixels per pixel), `portion: [low, high]` its side
    as a portion of the largest. `portion: [0.5, 1.0]` with `crop: random`, `views: null` and `resample: area` is how the paper
    cuts super-resolution data. `buckets`: sizes [h, w]; each picture is trained on at the one nearest in aspect ratio, each batch
    at one size. `jitter`: other colours than the pictures', for a source that has few. Held-out pictures are seen at `size`, in
    their own colours.
    """

    type: str
    size: Positive | tuple[Positive, Positive]
    channels: Literal[1, 3] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    views: Positive | None = 1
    zoom: tuple[Above, Above] | None = None
    portion: tuple[Portion, Portion] | None = None
    resample: Literal["bicubic", "area"] = "bicubic"
    jitter: Jitter | None = None
    buckets: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Perceptual(Section):
    """LPIPS (Zhang et al. 2018) on `alex`, `vgg` or `squeeze`; `efficientnet-lite0` is the same distance on a backbone that is
    installed with the extra `samples`. `weights` names where the backbone's come from: `random` needs no download.
    """

    net: Literal["alex", "vgg", "squeeze", "efficientnet-lite0"] = "vgg"
    weights: str = "imagenet"
    weight: NotNegative = 1.0


class Adversarial(Section):
    """The patch discriminator (Isola et al. 2017), from step `start` on."""

    start: Count = 0
    weight: NotNegative = 0.5
    factor: NotNegative = 1.0
    layers: Positive = 3
    channels: Positive = 64
    norm: Literal["batch", "group", "none"] = "batch"
    loss: Literal["hinge", "vanilla"] = "hinge"
    r1: NotNegative = 0.0
    lecam: NotNegative = 0.0
    lecam_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99


class AutoencoderLoss(Section):
    """What the autoencoder is trained on."""

    pixel: Literal["l1", "l2"] = "l1"
    reduction: Literal["mean", "sum"] = "mean"
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None
    kl: NotNegative = 1e-6
    codebook: NotNegative = 1.0
    learn_logvar: bool = False
    logvar: float = 0.0


class AnyAutoencoder(Section):
    """The keys that every autoencoder has. `from`: reuse a trained one, from a run or a saved model."""

    type: str
    from_: str | None = Field(None, alias="from")
    scale: Literal["std", "per-channel"] | Above = "std"
    train: AutoencoderTrain | None = None


class Identity(AnyAutoencoder):
    """Diffusion on pixels."""

    type: Literal["identity"] = "identity"
    image_channels: Positive | None = None

    @property
    def factor(self) -> int:
        return 1


class Convolutional(AnyAutoencoder):
    """What VQ and KL autoencoders share.

    `shortcut`: a linear map beside encoder and decoder, for short training on few pictures.
    """

    downsample: Literal[1, 2, 4, 8, 16, 32] = 4
    image_channels: Positive | None = None
    channels: Positive = 128
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1)] | None = None
    blocks: PerLevel = 2
    latent_channels: Positive = 3
    attention: tuple[Positive, ...] = ()
    attention_type: Literal["none", "vanilla", "linear"] = "vanilla"
    middle_attention: bool | Literal["encoder", "decoder"] = False
    resolution: Positive = 256
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    pad: bool = False
    groups: Positive | None = None
    shortcut: bool = False
    checkpoint: bool = False
    loss: AutoencoderLoss = Field(default_factory=AutoencoderLoss)

    @property
    def factor(self) -> int:
        return self.downsample


class KL(Convolutional):
    type: Literal["kl"] = "kl"


class VQ(Convolutional):
    type: Literal["vq"] = "vq"
    codebook: Positive = 8192
    commitment: NotNegative = 0.25
    swapped: bool = False
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    revive: Positive | None = None


Autoencoder = Annotated[
    Annotated[VQ, Tag("vq")] | Annotated[KL, Tag("kl")] | Annotated[Identity, Tag("identity")], type_of("vq")
]


class Slot(Component):
    """A conditioner in a recipe. Left out, `type` is the slot's name with `_` read as `-`."""

    type: str
    fields_: dict[str, str] = Field(default_factory=dict, alias="fields")
    dropout: Share = 0.1
    lr: NotNegative | None = None
    weight_decay: NotNegative | None = None
    freeze: bool | Count = False


class Variant(Section):
    """What some released models do differently."""

    scale_shift: bool = False
    resample_blocks: bool = False
    linear_projection: bool = False
    self_transformer: bool = False
    plain_attention: bool = False
    groups: Positive | None = None
    classes: Positive | None = None
    vector: Positive | None = None
    only_cross_attention: tuple[Positive, ...] = ()
    time: dict[str, str | float] | None = None
    checkpoint: bool = False


class Denoiser(Section):
    """The UNet. Its channels in and out and its token width follow from the autoencoder and the conditioners.

    `shortcut`: a linear way from its input to its output, each input channel scaled by what the timestep says.
    """

    type: Literal["unet"] = "unet"
    channels: Positive = 32
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1)] = (1, 2, 4)
    blocks: PerLevel = 2
    attention: tuple[Positive, ...] = (2, 4)
    heads: PerLevel | None = None
    head_width: PerLevel | None = None
    transformer_depth: PerLevel = 1
    dropout: Share = 0.0
    shortcut: bool = False
    variant: Variant = Field(default_factory=Variant)

    @property
    def factor(self) -> int:
        """The latent's sides are multiples of it."""
        return int(2 ** (len(self.multipliers) - 1))


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
    guidance_options: GuidanceOptions = Field(default_factory=PlainGuidance)
    negative: dict[str, Any] | list[dict[str, Any]] | None = None
    clip: bool | Above | Threshold | None = None
    cache: FeatureCache | None = None
    seed: Count = 0


class Metric(Component):
    """One entry of `evaluate`; a name alone stands for `{type: name}`."""

    type: str
