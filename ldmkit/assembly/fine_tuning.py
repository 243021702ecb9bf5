"""Fine-tuning: a model that starts as a trained one, whatever conditions it has beside.

A condition that the source did not have starts without effect, so that step 0 is the source's last: its input channels, its
projection to the time embedding and the cross-attention that reads it are zero where they join the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ldmkit.assembly import load
from ldmkit.conditioning import ConditionerSet
from ldmkit.denoiser import SpatialTransformer
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.messages import tensor_differences
from ldmkit.plugins import Registry

STEM = "input_blocks.0.0.weight"
SHORTCUT = "shortcut.conv.weight"


@dataclass
class Initialised:
    """What happened to each slot, and what a person should know."""

    kept: list[str] = field(default_factory=list)  # weights of the source
    added: list[str] = field(default_factory=list)  # new, without effect yet
    notes: list[str] = field(default_factory=list)

    def lines(self, source: str | Path) -> list[str]:
        """For a person: what came from `source`, and what did not."""
        said = f"starts as {source}"
        if self.kept:
            said += f"; conditions it knows: {', '.join(self.kept)}"
        if self.added:
            said += f"; new, and without effect yet: {', '.join(self.added)}"
        return [said, *(f"note: {note}" for note in self.notes)]


def initialise(
    model: LatentDiffusion,
    source_dir: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    *,
    registry: Registry | None = None,
    autoencoder: bool = True,
) -> Initialised:
    """Copies a trained model's weights into `model`, in place; `source_dir` is what `ldmkit.load` takes.

    Slots of the same name keep the source's weights. What both have computes what the source computed. Without `autoencoder`
    that part is left as it is, because it comes from elsewhere.

    Raises:
        CheckpointError: the source cannot be read, or the networks differ; what differs in a part is named.
        UsageError: a new condition that cannot start without effect.
    """
    source = load(source_dir, weights, registry=registry)
    where = str(source_dir)
    done = Initialised(
        kept=[slot for slot in model.conditioners if slot in source.conditioners],
        added=[slot for slot in model.conditioners if slot not in source.conditioners],
    )
    with torch.no_grad():
        if autoencoder:
            _copy(model.autoencoder, source.autoencoder, "autoencoder", where)
        else:
            done.notes.append("the autoencoder is not the source's: its weights know other latents")
        _denoiser(model, source, done, where)
        _conditioners(model.conditioners, source.conditioners, done, where)
        if isinstance(model.denoiser, UNet) and isinstance(source.denoiser, UNet):
            _inputs(model, source, where)
        if model.diffusion.logvar is not None and source.diffusion.logvar is not None:
            _copy(model.diffusion, source.diffusion, "learned variance", where)
    if model.diffusion.schedule.config != source.diffusion.schedule.config:
        done.notes.append("the noise schedule differs from the source's: its weights know other noise levels")
    if model.diffusion.prediction.name != source.diffusion.prediction.name:
        raise CheckpointError(
            f"the source predicts {source.diffusion.prediction.name} and this model {model.diffusion.prediction.name}",
            where=where,
            hint=f"set diffusion.prediction: {source.diffusion.prediction.name}",
        )
    return done


def _copy(target: nn.Module, source: nn.Module, what: str, where: str) -> None:
    """All weights of a part; CheckpointError naming what differs."""
    ours, theirs = target.state_dict(), source.state_dict()
    if wrong := tensor_differences(ours, theirs):
        raise CheckpointError(f"the {what} is not the source's: {wrong}", where=where)
    for name, value in ours.items():
        value.copy_(theirs[name])


def _conditioners(target: ConditionerSet, source: ConditionerSet, done: Initialised, where: str) -> None:
    for slot in done.kept:
        _copy(target[slot], source[slot], f"conditioner {slot}", where)
    for slot in source:
        if slot not in target:
            done.notes.append(f"the source's condition {slot} is left out: the model has to learn to do without")
    for kind in ("_token_projections", "_vector_projections"):
        ours, theirs = target.get_submodule(kind), source.get_submodule(kind)
        for slot, projection in ours.named_children():
            if slot in source:
                _copy(projection, theirs.get_submodule(slot), f"projection of {slot}", where)
    for slot in done.added:
        _silence_vector(target, slot)


def _silence_vector(conditioners: ConditionerSet, slot: str) -> None:
    """Zero the projection of a new slot's vector to the time embedding."""
    if not conditioners[slot].emits.vector:
        return
    projection = dict(conditioners.get_submodule("_vector_projections").named_children()).get(slot)
    if projection is None:
        raise UsageError(
            f"the condition {slot} has a vector as wide as the time embedding ({conditioners.vector_width}), which is added as "
            "it is and cannot start without effect",
            hint="choose another width for it: a projection then starts at zero",
        )
    for parameter in projection.parameters():
        parameter.zero_()


def _denoiser(model: LatentDiffusion, source: LatentDiffusion, done: Initialised, where: str) -> None:
    """The network, without what reads the input channels of a UNet: they are those of the conditions."""
    ours, theirs = model.denoiser, source.denoiser
    if isinstance(ours, UNet) and isinstance(theirs, UNet):
        _unet(ours, theirs, model, done, where)
    else:  # of what is inside another network nothing is known: all of it, or nothing
        _copy(ours, theirs, "denoiser", where)


def _unet(target: UNet, source: UNet, model: LatentDiffusion, done: Initialised, where: str) -> None:
    new_tokens = [slot for slot in done.added if model.conditioners[slot].emits.tokens]
    if new_tokens and source.context_width is not None:
        raise UsageError(
            f"the source reads tokens already, and those of {', '.join(new_tokens)} would share their attention from the first "
            "step on: they cannot start without effect",
            hint="add the condition by vector or concat, or start from a model without tokens",
        )
    for ours, theirs in _pairs(target, source, where):
        if theirs is not None:
            _copy(ours, theirs, "denoiser", where)
        else:
            assert isinstance(ours, SpatialTransformer)
            for parameter in ours.proj_out.parameters():
                parameter.zero_()


def _pairs(target: UNet, source: UNet, where: str) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(block here, block of the source), without the stem; None: a transformer that the source does not have."""
    yield target.time_embed, source.time_embed
    yield target.out, source.out
    if hasattr(target, "label_emb") or hasattr(source, "label_emb"):
        yield nn.ModuleDict(_labels(target)), nn.ModuleDict(_labels(source))
    ours, theirs = target.blocks()[1:], source.blocks()[1:]
    if len(ours) != len(theirs):
        raise _other_blocks(f"it has {len(ours)} stages and the source {len(theirs)}", where)
    for stage, other in zip(ours, theirs, strict=True):
        left = list(other.children())
        fewer = not any(isinstance(block, SpatialTransformer) for block in left)
        for block in stage.children():
            if fewer and isinstance(block, SpatialTransformer):
                yield block, None
                continue
            if not left or type(left[0]) is not type(block):
                raise _other_blocks(f"a {type(block).__name__} stands where the source has {_names(other)}", where)
            yield block, left.pop(0)
        if left:
            raise _other_blocks(f"the source has a {type(left[0]).__name__} that has no place here", where)


def _labels(unet: UNet) -> dict[str, nn.Module]:
    return {name: module for name, module in unet.named_children() if name == "label_emb"}


def _names(stage: nn.Module) -> str:
    return ", ".join(type(block).__name__ for block in stage.children())


def _other_blocks(what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"the denoiser is not built like the source's: {what}",
        where=where,
        hint="take the source's `denoiser` section. A model that gets tokens where the source had none keeps the source's "
        "attention beside the new one with `variant: {plain_attention: true}`",
    )


def _inputs(model: LatentDiffusion, source: LatentDiffusion, where: str) -> None:
    """What reads the UNet's input channels: each condition's to where they are here, zero for those of new conditions."""
    network, other = model.denoiser, source.denoiser
    assert isinstance(network, UNet)
    assert isinstance(other, UNet)
    ours, theirs = network.get_parameter(STEM), other.get_parameter(STEM)
    if ours.shape[0] != theirs.shape[0]:
        raise _other_blocks(f"its stem is {ours.shape[0]} wide and the source's {theirs.shape[0]}", where)
    _moved(model, source, STEM, dim=1)
    _moved(model, source, STEM.replace("weight", "bias"))
    if other.shortcut is None:
        return  # one that is added starts as zero
    if network.shortcut is None:
        raise _other_blocks("it lacks the source's linear shortcut (denoiser.shortcut)", where)
    _moved(model, source, SHORTCUT, dim=1)
    _moved(model, source, SHORTCUT.replace("weight", "bias"))
    for parameter in network.shortcut.conv.parameters():
        parameter.mul_(other.shortcut.gain / network.shortcut.gain)
    _moved(model, source, "shortcut.scale.weight", dim=0)
    _moved(model, source, "shortcut.scale.bias", dim=0)


def _moved(model: LatentDiffusion, source: LatentDiffusion, name: str, *, dim: int | None = None) -> None:
    """The source's parameter here; `dim` is that of the input channels, where it has one."""
    ours, theirs = model.denoiser.get_parameter(name), source.denoiser.get_parameter(name)
    if dim is None:
        ours.copy_(theirs)
        return
    ours.zero_()
    places, found = _channels(model), _channels(source)
    for slot, place in places.items():
        if slot in found:
            length = place.stop - place.start
            ours.narrow(dim, place.start, length).copy_(theirs.narrow(dim, found[slot].start, length))


def _channels(model: LatentDiffusion) -> dict[str, slice]:
    """Where the latent (under an empty name) and each concatenated condition lie in the UNet's input."""
    start = model.autoencoder.latent_channels
    out = {"": slice(0, start)}
    for slot, conditioner in model.conditioners.items():
        out[slot] = slice(start, start := start + conditioner.emits.concat)
    return out
