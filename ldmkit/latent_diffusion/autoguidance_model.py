"""The worse model that autoguidance goes away from: found, and seen to speak of the same latents and conditions."""

from __future__ import annotations

from typing import Any

import torch

from ldmkit.autoencoder import Autoencoder
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.latent_diffusion.networks import Networks


def find(model: Networks, which: object, weights: str) -> Networks:
    """`which` itself where it is a model, else what is at that path: read once, and kept.

    Raises CheckpointError where the two do not go together, UsageError where nothing can be read.
    """
    if isinstance(which, Networks):
        check_alike(model, which)
        return which
    path = str(which)
    if (path, weights) not in model.others:
        if model.loader is None:
            raise UsageError(f"this model was not made by `ldmkit.load` and cannot read {path}: give the model itself")
        other = model.loader(path, weights)
        check_alike(model, other)
        model.others[path, weights] = other
    return model.others[path, weights]


def check_alike(model: Networks, other: Networks) -> None:
    """Raises CheckpointError where the two do not speak of the same latents, noise levels and conditions."""

    def differs(what: str, hint: str) -> CheckpointError:
        return CheckpointError(f"the model to guide away from has {what}", hint=hint)

    if tuple(other.conditioners) != tuple(model.conditioners):
        theirs = ", ".join(other.conditioners) or "none"
        raise differs(f"other slots: {theirs}", f"train it with the slots {', '.join(model.conditioners) or 'none'}")
    for slot in model.conditioners:
        mine, own = model.slots.get(slot), other.slots.get(slot)
        if mine is not None and own is not None and (mine.type, _reading(mine)) != (own.type, _reading(own)):
            raise differs(f"another conditioner in slot {slot}", "only its widths and depths may differ")
    if other.diffusion.schedule.config != model.diffusion.schedule.config:
        raise differs("another noise schedule", "train it with the same `diffusion.schedule`")
    if not _same_latents(model.autoencoder, other.autoencoder):
        raise differs("another autoencoder", "train it with `autoencoder: {from: ...}`, from the better one")


def _same_latents(first: Autoencoder, second: Autoencoder) -> bool:
    """Equal weights, shift and scale. Compared, not hashed: this is asked at each sampling."""
    if first is second:
        return True
    mine, theirs = first.state_dict(), second.state_dict()
    scales = ("latent_shift", "latent_scale")
    if not all(torch.allclose(mine[name].cpu(), theirs[name].cpu()) for name in scales):
        return False
    names = {name for name in (*mine, *theirs) if not name.startswith("latent_")}
    return all(
        name in mine
        and name in theirs
        and mine[name].dtype == theirs[name].dtype
        and torch.equal(mine[name], theirs[name].to(mine[name].device))
        for name in names
    )


def _reading(slot: Any) -> dict[str, Any]:
    """The options that say how a value is read: words, lists and mappings; numbers are sizes of the network."""
    return {key: value for key, value in slot.options.items() if not isinstance(value, int | float)}
