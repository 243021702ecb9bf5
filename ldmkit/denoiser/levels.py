"""What a UNet's options mean level by level, and which exclude one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import Field

from ldmkit.denoiser.layers import undivided
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above, InRecipe, Positive

PerLevel = int | Sequence[int]
Multipliers = Annotated[tuple[Positive | Above, ...], Field(min_length=1)]
Levels = Annotated[PerLevel, InRecipe(Positive | Annotated[tuple[Positive, ...], Field(min_length=1)])]
MaybeLevels = Annotated[
    PerLevel | None, InRecipe(Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | None)
]
"""One number, or one a level from the finest to the coarsest; the middle block takes the last."""


@dataclass(frozen=True)
class Variant:
    """What some released models do differently; the defaults are the paper's.

    scale_shift: timestep and vector scale and shift a norm instead of being added.
    resample_blocks: residual blocks halve and double the size, instead of a convolution.
    linear_projection: the transformers' projections are linear layers instead of 1x1 convolutions (SD 2, SDXL).
    self_transformer: without tokens, use transformer blocks whose second attention is self-attention too (what the
        released code does with no context), instead of plain attention blocks.
    groups: groups of every group norm, a divisor of every width; by default 32, or fewer where a level is narrower than 128
        channels or no multiple of 32 (see ``ldmkit.denoiser.layers.usual_groups``). The released code has 32 at every width.
    plain_attention: beside the transformers that read tokens, the plain attention of a UNet without tokens, before each of them.
        So a model that was trained without tokens can learn to read them from where it is.
    classes: rows of an embedding table inside the UNet, added to the time embedding (`labels` of ``forward``).
    vector: width of the vector port, which two layers inside the UNet then map to the time embedding (SDXL); by default a vector
        is as wide as that and is added to it.
    only_cross_attention: down-sampling factors of the levels whose transformers attend to the tokens twice, and not to the pixels
        themselves (the x4 upscaler of SD 2). The middle is no level.
    time: what of the timestep is embedded (see ``ldmkit.denoiser.embedding.embedded_time``); by default the timestep itself.
    checkpoint: recompute activations in the backward pass: less memory, about a third more time.
    """

    scale_shift: bool = False
    resample_blocks: bool = False
    linear_projection: bool = False
    self_transformer: bool = False
    plain_attention: bool = False
    groups: Positive | None = None
    classes: Positive | None = None
    vector: Positive | None = None
    only_cross_attention: Annotated[Sequence[int], InRecipe(tuple[Positive, ...])] = ()
    time: Annotated[Mapping[str, Any] | None, InRecipe(dict[str, str | float] | None)] = None
    checkpoint: bool = False

    @classmethod
    def of(cls, value: Variant | Mapping[str, Any] | None) -> Variant:
        """The variant that a recipe or a saved configuration says.

        Raises UsageError for an option that does not exist.
        """
        if isinstance(value, cls):
            return value
        options: Mapping[str, Any] = value or {}  # type: ignore[assignment]
        names = [field.name for field in fields(cls)]
        if unknown := sorted(options.keys() - set(names)):
            raise UsageError(f"variant has no {', '.join(unknown)}; it has {', '.join(names)}")
        return cls(**options)

    def __post_init__(self) -> None:
        object.__setattr__(self, "only_cross_attention", tuple(self.only_cross_attention))  # JSON knows lists only

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON has them."""
        return {**asdict(self), "only_cross_attention": list(self.only_cross_attention)}


@dataclass(frozen=True)
class Level:
    """One resolution of a UNet."""

    width: int
    blocks: int
    heads: int
    depth: int
    attends: bool
    only_cross: bool = False


def plain(value: PerLevel | None) -> int | list[int] | None:
    """As a JSON value."""
    return value if value is None or isinstance(value, int) else list(value)


def resolve_levels(config: Mapping[str, Any]) -> list[Level]:
    """The levels of a configuration, from the finest to the coarsest; UsageError where options exclude one another."""
    _check_options(config)
    count = len(config["multipliers"])
    blocks = spread("blocks", config["blocks"], count)
    depths = spread("transformer_depth", config["transformer_depth"], count)
    widths = level_widths(config["channels"], config["multipliers"])
    if (groups := config["variant"]["groups"]) is not None and any(
        width % groups for width in (config["channels"], *widths)
    ):
        raise undivided(groups, [config["channels"], *widths])
    attends = [2**i in config["attention"] for i in range(count)]
    attending = [a or i == count - 1 for i, a in enumerate(attends)]  # the middle block has the last level's heads
    heads = _heads(config, widths, attending)
    only_cross = [2**i in config["variant"]["only_cross_attention"] for i in range(count)]
    return [Level(*options) for options in zip(widths, blocks, heads, depths, attends, only_cross, strict=True)]


def level_widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Channels of each level. Raises UsageError where a multiplier gives no whole number of 1 or more."""
    exact = [channels * multiplier for multiplier in multipliers]
    widths = [round(width) for width in exact]
    for multiplier, width, product in zip(multipliers, widths, exact, strict=True):
        if width < 1 or not math.isclose(width, product, rel_tol=1e-9):
            raise UsageError(
                f"channels {channels} times the multiplier {multiplier:g} is {product:g}, and no number of channels"
            )
    return widths


def multipliers_of(widths: Sequence[int]) -> list[int | float]:
    """The multipliers of `widths` with the first of them as `channels`: whole numbers where they are."""
    first = widths[0]
    return [width / first if width % first else width // first for width in widths]


def _heads(config: Mapping[str, Any], widths: Sequence[int], attending: Sequence[bool]) -> list[int]:
    """Heads a level; levels without attention are not checked."""
    if config["heads"] is not None:
        heads = spread("heads", config["heads"], len(widths))
    elif config["head_width"] is not None:
        head_widths = spread("head_width", config["head_width"], len(widths))
        bad = [w for w, d, a in zip(widths, head_widths, attending, strict=True) if a and w % d]
        if bad:
            raise UsageError(f"head_width {config['head_width']} does not divide levels {bad} channels wide")
        heads = [max(width // head_width, 1) for width, head_width in zip(widths, head_widths, strict=True)]
    else:
        heads = [width // math.gcd(32, width) for width in widths]
    if bad := [w for w, h, a in zip(widths, heads, attending, strict=True) if a and w % h]:
        raise UsageError(f"{config['heads']} heads do not divide levels {bad} channels wide")
    return heads


def _check_options(config: Mapping[str, Any]) -> None:
    factors = [2**i for i in range(len(config["multipliers"]))]
    if not factors:
        raise UsageError("multipliers is empty; a UNet has at least one level")
    if unreached := [factor for factor in config["attention"] if factor not in factors]:
        raise UsageError(
            f"attention at {unreached}: no such level; with {len(factors)} multipliers the factors are {factors}",
            hint="These are down-sampling factors of the latent, not pixels.",
        )
    variant = config["variant"]
    if wrong := [factor for factor in variant["only_cross_attention"] if factor not in config["attention"]]:
        raise UsageError(
            f"only_cross_attention at {wrong}, where no level attends; attention is at {list(config['attention'])}"
        )
    if variant["only_cross_attention"] and config["context_width"] is None:
        raise UsageError("only_cross_attention is attention to tokens, and this UNet reads none")
    if variant["classes"] is not None and variant["vector"] is not None:
        raise UsageError("variant has classes and vector; both are the one table or network `label_emb`")
    if config["heads"] is not None and config["head_width"] is not None:
        raise UsageError("heads and head_width are both given; one follows from the other")
    if config["channels"] % 2:
        raise UsageError(f"channels={config['channels']}; the timestep embedding needs an even number")
    if config["context_width"] is not None and config["variant"]["self_transformer"]:
        raise UsageError("self_transformer is for a UNet without tokens; here context_width is given")
    if config["context_width"] is None and config["variant"]["plain_attention"]:
        raise UsageError(
            "plain_attention stands beside transformers that read tokens, and this UNet reads none",
            hint="without a condition by tokens the attention is plain anyway: leave plain_attention out",
        )


def spread(name: str, value: int | Sequence[int], levels: int) -> list[int]:
    """One number a level. Raises UsageError for another number of them, or one below 1."""
    numbers = [value] * levels if isinstance(value, int) else list(value)
    if len(numbers) != levels:
        raise UsageError(f"{name} lists {len(numbers)} numbers for {levels} levels")
    if any(number < 1 for number in numbers):
        raise UsageError(f"{name}={value}; every level needs 1 or more")
    return numbers
