"""The options encoder and decoder share, checked once: what a recipe may say about the networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import Field

from ldmkit.autoencoder.layers import AttentionType
from ldmkit.denoiser.layers import undivided
from ldmkit.denoiser.levels import PerLevel, level_widths, spread
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above, Decay, InRecipe, Positive

# Channel multipliers of the released and the paper's networks, by how much they shrink an image.
MULTIPLIERS: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (1, 2),
    4: (1, 2, 4),
    8: (1, 2, 4, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 2, 2, 4, 4),
}
MOST_IMAGE_CHANNELS = 64
MiddleAttention = bool | Literal["encoder", "decoder"]


class NetworkOptions(TypedDict, total=False):
    """The keywords of `NetworkConfig` for a type checker, of constructors that pass them on; a test holds the two together."""

    image_channels: int
    downsample: Literal[1, 2, 4, 8, 16, 32]
    channels: int
    multipliers: tuple[float, ...] | None
    blocks: PerLevel
    latent_channels: int
    attention: tuple[int, ...]
    resolution: int
    attention_type: AttentionType
    middle_attention: MiddleAttention
    dropout: float
    pad: bool
    groups: int | None
    shortcut: bool
    checkpoint: bool


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of encoder and decoder. The defaults are convolutional without attention, as the paper describes it.

    Args:
        image_channels: 1 to 64.
        downsample: how many times smaller the latent grid is; a power of two from 1 to 32.
        channels: width at full resolution; level i has `channels * multipliers[i]`, a whole number.
        multipliers: one a level (log2(downsample) + 1 of them); None takes those of the paper.
        blocks: residual blocks a level in the encoder, one number or one a level; the decoder has one more.
        latent_channels: width of the latent.
        attention: side lengths in pixels, counted at `resolution`, of the levels that attend. Where attention sits is decided
            here and not by the image at hand.
        resolution: side length in pixels that `attention` refers to.
        attention_type: which attention `attention` and `middle_attention` put in; `none` goes with neither.
        middle_attention: attention between the two middle blocks, of both networks or of one of them. The released models have
            it, except vq-f4-noattn.
        dropout: in the residual blocks, 0 to 1.
        groups: of every group norm, a divisor of every width; default 32, or fewer where a level is narrower than 128 channels.
            Released and diffusers' models of any width need 32.
        shortcut: a linear map beside encoder and decoder (`Encoder`), for short training on few pictures. No released model has
            it.
        pad: accept image sizes that are no multiple of `downsample`, by padding on the right and at the bottom.
        checkpoint: recompute the activations of each level in the backward pass: less memory, about a third more time.

    Raises:
        UsageError: an option out of range, or two that contradict each other.
    """

    image_channels: Annotated[int, Field(ge=1, le=MOST_IMAGE_CHANNELS)] = 3
    downsample: Literal[1, 2, 4, 8, 16, 32] = 4
    channels: Positive = 128
    multipliers: Annotated[tuple[Positive | Above, ...], Field(min_length=1)] | None = None
    blocks: Annotated[PerLevel, InRecipe(Positive | Annotated[tuple[Positive, ...], Field(min_length=1)])] = 2
    latent_channels: Positive = 3
    attention: tuple[Positive, ...] = ()
    resolution: Positive = 256
    attention_type: AttentionType = "vanilla"
    middle_attention: MiddleAttention = False
    dropout: Decay = 0.0
    pad: bool = False
    groups: Positive | None = None
    shortcut: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.downsample not in MULTIPLIERS:
            raise UsageError(f"downsample is {self.downsample}; allowed are {', '.join(map(str, MULTIPLIERS))}")
        multipliers = tuple(self.multipliers) if self.multipliers else MULTIPLIERS[self.downsample]
        # JSON and YAML know lists only; everything below wants tuples.
        object.__setattr__(self, "multipliers", multipliers)
        object.__setattr__(self, "attention", tuple(self.attention))
        object.__setattr__(self, "blocks", self.blocks if isinstance(self.blocks, int) else tuple(self.blocks))
        self._check_ranges()
        self._check_attention()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        assert self.multipliers is not None
        return tuple(level_widths(self.channels, self.multipliers))

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level of the encoder."""
        assert self.multipliers is not None
        return tuple(spread("blocks", self.blocks, len(self.multipliers)))

    def attends_middle(self, network: Literal["encoder", "decoder"]) -> bool:
        """Whether the middle of the encoder, or of the decoder, attends."""
        return self.middle_attention in (True, network)

    def attends(self, level: int) -> bool:
        """Whether level `level` (0 is full resolution) has attention."""
        return self.resolution // 2**level in self.attention

    def to_dict(self) -> dict[str, Any]:
        """All options, defaults written out, as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _check_ranges(self) -> None:
        assert self.multipliers is not None
        levels = self.downsample.bit_length()
        if len(self.multipliers) != levels:
            raise UsageError(
                f"multipliers {list(self.multipliers)} have {len(self.multipliers)} entries; "
                f"downsample {self.downsample} has {levels} levels and needs one each"
            )
        if not 1 <= self.image_channels <= MOST_IMAGE_CHANNELS:
            raise UsageError(f"image_channels is {self.image_channels}; allowed are 1 to {MOST_IMAGE_CHANNELS}")
        for name in ("channels", "latent_channels", "resolution", "groups"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        widths = (self.channels, *self.widths)
        if self.groups is not None and any(width % self.groups for width in widths):
            raise undivided(self.groups, widths)
        assert self.level_blocks
        if self.middle_attention not in (True, False, "encoder", "decoder"):
            raise UsageError(
                f"middle_attention is {self.middle_attention!r}; allowed are true, false, encoder, decoder"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; allowed is 0 up to, but not including, 1")

    def _check_attention(self) -> None:
        assert self.multipliers is not None
        if self.attention_type not in get_args(AttentionType):
            raise UsageError(
                f"attention_type is {self.attention_type!r}; allowed are {', '.join(get_args(AttentionType))}"
            )
        if self.attention_type == "none" and (self.attention or self.middle_attention):
            raise UsageError(
                "attention_type none contradicts attention and middle_attention",
                hint="leave out attention and middle_attention, or say attention_type: vanilla",
            )
        sides = [self.resolution // 2**level for level in range(len(self.multipliers))]
        if unknown := set(self.attention) - set(sides):
            raise UsageError(
                f"attention at {sorted(unknown)} pixels matches no level; at resolution {self.resolution} they are {sides}",
                hint="attention counts pixels at `resolution`, not down-sampling factors",
            )
