"""The UNet: epsilon_theta, with three ports for conditions.

Parameters are named as in the released checkpoints (Rombach et al. 2022; the layout is Dhariwal & Nichol's), so those
load after their ``model.diffusion_model.`` prefix is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ldmkit.conditioning import LatentSpec, Ports
from ldmkit.denoiser import (
    AttentionBlock,
    Context,
    Denoiser,
    Downsample,
    LinearShortcut,
    ResidualBlock,
    SpatialTransformer,
    Stage,
    Stem,
    Upsample,
    group_norm,
    timestep_embedding,
    zeroed,
)
from ldmkit.denoiser.embedding import embedded_time
from ldmkit.denoiser.levels import Level, Levels, MaybeLevels, Multipliers, Variant, plain, resolve_levels
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above, InRecipe, Positive, Share

RELEASED = Variant()  # nothing differs


class UNet(Denoiser):
    """A noisy latent and its timestep to the prediction; conditions come in by tokens, vector and concat.

    latent, ports: the latent's channels, the token width and the channels by concat; a UNet without `ports.tokens` has
        self-attention alone. `UNet.of_widths` takes the three widths themselves.
    channels, multipliers: level i is ``channels * multipliers[i]`` wide, a whole number, and ``2 ** i`` times smaller than the
        input, halves rounded up.
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: the **down-sampling factors** of the levels with attention, not pixels. The middle always has it.
    heads or head_width: how many attention heads, or how wide each is (default: 32, or what divides the width).
        ``heads=1`` is what the released class, layout and text-256 models were trained with.
    transformer_depth: transformer blocks in each attention.
    dropout: probability, in residual blocks and transformers.
    shortcut: a linear way from the input, latent and concat, to the output (``ldmkit.denoiser.LinearShortcut``). No
        released model has it. A number is the factor on it, by which it is learned faster; true is 1.
    variant: what some released models do differently.

    `config` holds the arguments of `of_widths` as JSON values, so that ``UNet.of_widths(**unet.config)`` builds it again.
    `vector_width` is that of the time embedding unless the variant says another; `reduction` is 1, as any size is halved.

    Raises UsageError for options that exclude one another or do nothing.
    """

    def __init__(
        self,
        *,
        latent: LatentSpec,
        ports: Ports,
        channels: Positive = 32,
        multipliers: Annotated[Sequence[float], InRecipe(Multipliers)] = (1, 2, 4),
        blocks: Levels = 2,
        attention: Annotated[Sequence[int], InRecipe(tuple[Positive, ...])] = (2, 4),
        heads: MaybeLevels = None,
        head_width: MaybeLevels = None,
        transformer_depth: Levels = 1,
        dropout: Share = 0.0,
        shortcut: bool | Above = False,
        variant: Annotated[Variant | Mapping[str, Any] | None, InRecipe(Variant | None)] = RELEASED,
    ) -> None:
        super().__init__()
        in_channels, out_channels, context_width = latent.channels + ports.concat, latent.channels, ports.tokens or None
        self.variant = Variant.of(variant)
        # To be switched at will: it changes no number and is no part of the model.
        self.checkpointing = self.variant.checkpoint
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": plain(blocks),
            "attention": list(attention),
            "heads": plain(heads),
            "head_width": plain(head_width),
            "context_width": context_width,
            "transformer_depth": plain(transformer_depth),
            "dropout": dropout,
            "shortcut": shortcut,
            "variant": self.variant.to_dict(),
        }
        self.in_channels, self.out_channels, self.context_width = in_channels, out_channels, context_width
        self.channels, self.reduction = channels, 1
        embedding = self.embedding_width = 4 * channels
        self.vector_width = self.variant.vector or embedding
        self.dropout = dropout
        self.embedded_time = embedded_time(self.variant.time)
        levels = resolve_levels(self.config)

        self.time_embed = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if self.variant.classes is not None:
            self.label_emb: nn.Module = nn.Embedding(self.variant.classes, embedding)
        if self.variant.vector is not None:
            layers = nn.Linear(self.variant.vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            self.label_emb = nn.Sequential(nn.Sequential(*layers))
        skips: list[int] = []
        self.input_blocks = nn.ModuleList(self._down(levels, skips))
        self.middle_block = self._middle(levels[-1])
        self.output_blocks = nn.ModuleList(self._up(levels, skips))
        self.out = nn.Sequential(
            group_norm(levels[0].width, groups=self.variant.groups),
            nn.SiLU(),
            zeroed(nn.Conv2d(levels[0].width, out_channels, 3, padding=1)),
        )
        self.shortcut = (
            LinearShortcut(in_channels, out_channels, self.vector_width, float(shortcut)) if shortcut else None
        )

    @classmethod
    def of_widths(
        cls, *, in_channels: int, out_channels: int, context_width: int | None = None, **options: Any
    ) -> UNet:
        """A UNet by its widths, as foreign configurations and `config` have them: latent and concat channels together, latent
        channels, and the width of the tokens (None: it takes none)."""
        latent = LatentSpec(out_channels, factor=1, size=(0, 0))
        return cls(latent=latent, ports=Ports(tokens=context_width or 0, concat=in_channels - out_channels), **options)

    def blocks(self) -> tuple[nn.Module, ...]:
        """Its stages: down, middle and up."""
        return (*self.input_blocks, self.middle_block, *self.output_blocks)

    def _down(self, levels: Sequence[Level], skips: list[int]) -> Iterator[Stage]:
        """The encoder's stages; the width that each hands to the decoder is appended to `skips`."""
        width = self.channels
        skips.append(width)
        yield Stage([Stem(self.in_channels, width)])
        for level in levels:
            for _ in range(level.blocks):
                yield Stage([self._residual(width, level.width), *self._attention(level)])
                width = level.width
                skips.append(width)
            if level is not levels[-1]:
                skips.append(width)
                half = nn.AvgPool2d(2, ceil_mode=True)
                resample = self.variant.resample_blocks
                yield Stage([self._residual(width, width, half) if resample else Downsample(width)])

    def _middle(self, level: Level) -> Stage:
        width = level.width
        attention = self._attention(replace(level, only_cross=False), middle=True)
        return Stage([self._residual(width, width), *attention, self._residual(width, width)])

    def _up(self, levels: Sequence[Level], skips: list[int]) -> Iterator[Stage]:
        width = levels[-1].width
        for level in reversed(levels):
            for block in range(level.blocks + 1):
                stage = [self._residual(width + skips.pop(), level.width), *self._attention(level)]
                width = level.width
                if block == level.blocks and level is not levels[0]:
                    double = nn.Upsample(scale_factor=2.0, mode="nearest")
                    resample = self.variant.resample_blocks
                    stage.append(self._residual(width, width, double) if resample else Upsample(width))
                yield Stage(stage)

    def _residual(self, inputs: int, outputs: int, resample: nn.Module | None = None) -> nn.Module:
        return ResidualBlock(
            inputs,
            outputs,
            self.embedding_width,
            dropout=self.dropout,
            scale_shift=self.variant.scale_shift,
            resample=resample,
            groups=self.variant.groups,
        )

    def _attention(self, level: Level, *, middle: bool = False) -> Iterator[nn.Module]:
        """The attention of a level: none, one, or with `plain_attention` two."""
        if not (level.attends or middle):
            return
        transformer = self.context_width is not None or self.variant.self_transformer
        if not transformer or self.variant.plain_attention:
            yield AttentionBlock(level.width, level.heads, groups=self.variant.groups)
        if not transformer:
            return
        yield SpatialTransformer(
            level.width,
            heads=level.heads,
            depth=level.depth,
            context_width=self.context_width,
            dropout=self.dropout,
            linear=self.variant.linear_projection,
            groups=self.variant.groups,
            only_cross=level.only_cross,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        concat: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Predict from x (b, c, h, w), noisy latents, and t (b,), timesteps in [0, T), integer or fractional.

        tokens (b, l, context_width) and mask (b, l), bool, True = attend; None attends to all.
        vector (b, vector_width), added to the time embedding (`variant.vector`: mapped first).
        concat (b, in_channels - c, h, w), joined after x.
        labels (b,), integers, for ``Variant(classes=...)``. Returns (b, out_channels, h, w) in the dtype of x.
        Raises UsageError for a shape that does not fit, and for tokens missing or unexpected.
        """
        if concat is not None:
            _check("concat", concat, (x.shape[0], self.in_channels - x.shape[1], *x.shape[2:]))
            x = torch.cat([x, concat], dim=1)
        self._check_inputs(x, t, tokens, mask, vector, labels)
        embedding = self.time_embed(timestep_embedding(self.embedded_time(t), self.channels).to(x.dtype))
        if vector is not None:
            embedding = embedding + (vector if self.variant.vector is None else self.label_emb(vector))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        context = Context(embedding, tokens, None if mask is None else mask[:, None, None, :])
        output: Tensor = self.out(self._run(x, context))
        return output if self.shortcut is None else output + self.shortcut(x, embedding)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        checkpointed = self.checkpointing and torch.is_grad_enabled()
        skips = []
        for stage in self.input_blocks:
            h = stage(h, context, checkpointed=checkpointed)
            skips.append(h)
        h = self.middle_block(h, context, checkpointed=checkpointed)
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            h = stage(h, context._replace(size=size), checkpointed=checkpointed)
        return h

    def _check_inputs(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        vector: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise UsageError(
                f"the UNet reads (b, {self.in_channels}, h, w), latent and concat channels together; "
                f"it was given {tuple(x.shape)}"
            )
        b = x.shape[0]
        _check("t", t, (b,))
        if (tokens is None) != (self.context_width is None):
            given, wanted = ("no tokens", "needs") if tokens is None else ("tokens", "has no port for")
            raise UsageError(
                f"{given} were given to a UNet that {wanted} them (context_width={self.context_width})",
                hint="Without a condition, give the conditioner's null; for no tokens at all, context_width=None.",
            )
        if tokens is not None:
            _check("tokens", tokens, (b, tokens.shape[1] if tokens.ndim == 3 else -1, self.context_width or 0))
        if mask is not None:
            _check("mask", mask, (b, tokens.shape[1] if tokens is not None else 0))
            if mask.dtype != torch.bool:
                raise UsageError(f"mask is {mask.dtype}; it must be torch.bool, True = attend")
        if vector is not None:
            _check("vector", vector, (b, self.vector_width))
        if (labels is None) != (self.variant.classes is None):
            given, wanted = ("no labels", "needs") if labels is None else ("labels", "has no table for")
            raise UsageError(
                f"{given} were given to a UNet that {wanted} them (variant classes={self.variant.classes})",
                hint="Labels are the rows of the table inside the UNet that `variant.classes` makes.",
            )


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UsageError(f"{name} has shape {tuple(tensor.shape)}; here it must be {shape}")
