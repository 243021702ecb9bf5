"""What the same tensors are called in ldmkit (which keeps the original's names) and in diffusers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldmkit.autoencoder import Autoencoder
from ldmkit.autoencoder.layers import Attention as PixelAttention
from ldmkit.denoiser import AttentionBlock, Downsample, ResidualBlock, SpatialTransformer, Upsample
from ldmkit.denoiser.unet import UNet

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class Rename:
    """All tensors below a prefix keep their names and numbers; `squeeze`: a 1x1 convolution here is a linear layer there."""

    ours: str
    theirs: str
    squeeze: bool = False

    def export(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Ours -> theirs, of any shape; with `squeeze`, (o, i, 1, 1) as (o, i)."""
        for name, value in _below(self.ours, tensors):
            flat = value.flatten(1) if self.squeeze and value.ndim > 2 else value
            yield self.theirs + name, flat

    def read(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Theirs -> ours, of any shape; `like` has our shapes: with `squeeze`, (o, i) as (o, i, 1, 1)."""
        for name, value in _below(self.theirs, tensors):
            shape = like[self.ours + name].shape if self.ours + name in like else value.shape
            same = self.squeeze and value.ndim == 2 and value.numel() == shape.numel()
            yield self.ours + name, value.reshape(shape) if same else value


@dataclass(frozen=True)
class Interleaved:
    """Our query, key and value in one layer, interleaved per head, are three linear layers there."""

    ours: str
    theirs: str
    heads: int

    def export(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Ours -> theirs: rows (3 c, ...) of q, k and v in turn for each head -> three tensors (c, ...)."""
        for name, value in _below(self.ours, tensors):
            split = value.flatten(1) if value.ndim > 1 else value[:, None]  # (3 c, c) or (3 c, 1)
            parts = split.view(self.heads, 3, -1, split.shape[1]).unbind(1)  # each (heads, c / heads, ...)
            for letter, part in zip("qkv", parts, strict=True):
                rows = part.flatten(0, 1)
                yield f"{self.theirs}to_{letter}{name}", (rows if value.ndim > 1 else rows[:, 0]).contiguous()

    def read(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Theirs -> ours: three tensors (c, ...) -> (3 c, ...), of the shapes in `like`."""
        for name in (".weight", ".bias"):
            keys = [f"{self.theirs}to_{letter}{name}" for letter in "qkv"]
            if not all(key in tensors for key in keys) or self.ours + name not in like:
                continue
            parts = [tensors[key].reshape(self.heads, -1, *tensors[key].shape[1:]) for key in keys]
            yield self.ours + name, torch.stack(parts, dim=1).reshape(like[self.ours + name].shape)


Rule = Rename | Interleaved


def unet_rules(unet: UNet, vector: str = "add_embedding.") -> list[Rule]:
    """Of a UNet2DModel, or a UNet2DConditionModel where the UNet reads tokens; `vector`: what maps the vector port there."""
    rules: list[Rule] = [
        Rename("time_embed.0.", "time_embedding.linear_1."),
        Rename("time_embed.2.", "time_embedding.linear_2."),
        Rename("input_blocks.0.0.", "conv_in."),
        Rename("out.0.", "conv_norm_out."),
        Rename("out.2.", "conv_out."),
    ]
    if unet.variant.vector is None:
        rules.append(Rename("label_emb.", "class_embedding."))
    else:
        rules += [Rename("label_emb.0.0.", f"{vector}linear_1."), Rename("label_emb.0.2.", f"{vector}linear_2.")]
    for place, stage in _places(unet):
        rules.extend(_stage_rules(*place, stage))
    middle = ("mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1.")
    for index, (block, theirs) in enumerate(zip(unet.middle_block, middle, strict=True)):
        rules.extend(_block_rules(block, f"middle_block.{index}.", theirs))
    return rules


def _places(unet: UNet) -> Iterator[tuple[tuple[str, str, int, bool], nn.Module]]:
    """(our prefix, their block, number within it, whether it resamples) of every stage but the first and the middle."""
    counts = _blocks(unet)
    stages = iter(list(enumerate(unet.input_blocks))[1:])
    for level, count in enumerate(counts):
        last = level == len(counts) - 1
        for number in range(count + (0 if last else 1)):
            index, stage = next(stages)
            yield (f"input_blocks.{index}.", f"down_blocks.{level}.", number, number == count), stage
    outputs = iter(enumerate(unet.output_blocks))
    for level, count in enumerate(reversed(counts)):
        for number in range(count + 1):
            index, stage = next(outputs)
            yield (f"output_blocks.{index}.", f"up_blocks.{level}.", number, False), stage


def _blocks(unet: UNet) -> list[int]:
    blocks = unet.config["blocks"]
    return [blocks] * len(unet.config["multipliers"]) if isinstance(blocks, int) else list(blocks)


def _stage_rules(ours: str, theirs: str, number: int, resamples: bool, stage: nn.Module) -> Iterator[Rule]:
    for index, block in enumerate(stage.children()):
        if resamples or (index > 0 and isinstance(block, ResidualBlock)):
            name = "downsamplers.0." if resamples else "upsamplers.0."
        elif isinstance(block, Upsample):
            name = "upsamplers.0."
        elif isinstance(block, ResidualBlock):
            name = f"resnets.{number}."
        else:
            name = f"attentions.{number}."
        yield from _block_rules(block, f"{ours}{index}.", theirs + name)


def _block_rules(block: nn.Module, ours: str, theirs: str) -> Iterator[Rule]:
    match block:
        case ResidualBlock():
            yield from (Rename(f"{ours}{a}.", f"{theirs}{b}.") for a, b in RESIDUAL.items())
        case Downsample():
            yield Rename(f"{ours}op.", f"{theirs}conv.")
        case Upsample():
            yield Rename(f"{ours}conv.", f"{theirs}conv.")
        case AttentionBlock():
            yield Rename(f"{ours}norm.", f"{theirs}group_norm.")
            yield Interleaved(f"{ours}qkv", theirs, block.heads)
            yield Rename(f"{ours}proj_out.", f"{theirs}to_out.0.", squeeze=True)
        case SpatialTransformer():
            yield Rename(ours, theirs)
        case _:
            raise AssertionError(type(block).__name__)


def autoencoder_rules(autoencoder: Autoencoder) -> list[Rule]:
    """Of an AutoencoderKL or a VQModel."""
    rules: list[Rule] = [
        Rename(f"{name}.", f"{name}.") for name in ("quant_conv", "post_quant_conv", "quantize.embedding")
    ]
    levels = len(autoencoder.config["multipliers"])
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            rules.append(Rename(f"{side}.{name}.", f"{side}.{name}."))
        rules.append(Rename(f"{side}.norm_out.", f"{side}.conv_norm_out."))
        middle = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
        for ours, theirs in middle.items():
            network = autoencoder.get_submodule(f"{side}.mid.{ours}")
            rules.extend(_pixel_rules(network, f"{side}.mid.{ours}.", f"{side}.mid_block.{theirs}."))
        for level in range(levels):
            down = side == "encoder"
            ours = f"{side}.{'down' if down else 'up'}.{level}."
            theirs = f"{side}.{'down' if down else 'up'}_blocks.{level if down else levels - 1 - level}."
            rules.extend(_level_rules(autoencoder.get_submodule(ours[:-1]), ours, theirs))
    return rules


def _level_rules(level: nn.Module, ours: str, theirs: str) -> Iterator[Rule]:
    for kind, name in (("block", "resnets"), ("attn", "attentions")):
        for number, block in enumerate(level.get_submodule(kind).children()):
            yield from _pixel_rules(block, f"{ours}{kind}.{number}.", f"{theirs}{name}.{number}.")
    for name, sampler in (("downsample", "downsamplers"), ("upsample", "upsamplers")):
        yield Rename(f"{ours}{name}.conv.", f"{theirs}{sampler}.0.conv.")


def _pixel_rules(block: nn.Module, ours: str, theirs: str) -> Iterator[Rule]:
    if isinstance(block, PixelAttention):
        names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
        yield from (Rename(f"{ours}{a}.", f"{theirs}{b}.", squeeze=True) for a, b in names.items())
        return
    names = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
    yield from (Rename(f"{ours}{a}.", f"{theirs}{b}.") for a, b in names.items())


def export(rules: Iterable[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names; every one of them, or an assertion fails."""
    out = dict(pair for rule in rules for pair in rule.export(tensors))
    assert sum(value.numel() for value in out.values()) == sum(value.numel() for value in tensors.values())
    return {name: value.contiguous() for name, value in out.items()}


def read(rules: Iterable[Rule], tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names, in the shapes of `like`; what no rule knows keeps its name."""
    rules = list(rules)
    old = {f".{a}.": f".{b}." for a, b in OLD_ATTENTION.items()}
    current = {_modern(name, old): value for name, value in tensors.items()}
    out = dict(pair for rule in rules for pair in rule.read(current, like))
    known = {name for rule in rules for name in current if _knows(rule, name)}
    return {**out, **{name: value for name, value in current.items() if name not in known}}


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.16


def _modern(name: str, old: Mapping[str, str]) -> str:
    if ".attentions." in name:
        for before, after in old.items():
            name = name.replace(before, after)
    return name


def _knows(rule: Rule, name: str) -> bool:
    if isinstance(rule, Interleaved):
        return name.startswith(tuple(f"{rule.theirs}to_{letter}." for letter in "qkv"))
    return name.startswith(rule.theirs)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), value
