"""In which formats a model can be written, found out without writing it: before training too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from ldmkit.errors import LdmkitError, UsageError
from ldmkit.interop.assembling import core_unet
from ldmkit.interop.compvis.save import check_compvis
from ldmkit.interop.diffusers.describe import autoencoder_to, refuse, unet_to
from ldmkit.interop.diffusers.save import pipeline_of
from ldmkit.interop.diffusers.schedule import scheduler_to
from ldmkit.latent_diffusion import LatentDiffusion

Form = Literal["diffusers", "compvis", "hub"]


def obstacles(model: LatentDiffusion) -> dict[Form, str | None]:
    """Each format, and why the model cannot be written in it; None where it can. Works on meta too, after `planned`."""
    return {"hub": None, "diffusers": _why_not(_diffusers, model), "compvis": _why_not(check_compvis, model)}


def planned(model: LatentDiffusion, scale: float | Literal["std", "per-channel"]) -> LatentDiffusion:
    """`model`, on meta, with such latent scales as its training is going to measure: what the formats ask of them."""
    first = model.autoencoder
    count = first.latent_channels
    scales = (
        torch.arange(1.0, count + 1)
        if scale == "per-channel"
        else torch.full((count,), 0.5 if scale == "std" else scale)
    )
    with torch.device("cpu"):
        first.latent_scale = scales
        first.latent_shift = torch.ones(count) if scale == "per-channel" else torch.zeros(count)
    return model


def advised(error: UsageError, model: LatentDiffusion, form: Form) -> UsageError:
    """The UsageError of a format that cannot hold the model, with those that can as its hint."""
    able = [f"--format {name}" for name, reason in obstacles(model).items() if reason is None and name != form]
    return UsageError(error.message, where=error.where, hint=f"supported: {' and '.join(able)}")


def _diffusers(model: LatentDiffusion) -> None:
    unet = core_unet(model, refuse)
    pipeline_of(model)
    unet_to(unet, model.latent_shape(model.size)[1:][0])
    autoencoder_to(model.autoencoder)
    scheduler_to(model.diffusion)


def _why_not(check: Callable[[LatentDiffusion], None], model: LatentDiffusion) -> str | None:
    try:
        check(model)
    except LdmkitError as error:
        return error.message.partition(": ")[2] or error.message  # after "... cannot represent this model"
    return None
