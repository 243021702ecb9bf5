"""Tensors and a configuration -> a model, built on meta so that no weight is drawn that is then overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldmkit import autoencoder as autoencoders
from ldmkit.assembly import Uninitialised, reset_meta_buffers
from ldmkit.assembly import assemble as assembled
from ldmkit.autoencoder import Autoencoder, IdentityAutoencoder, KLAutoencoder, VQAutoencoder
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import UsageError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry

CORE_AUTOENCODERS = (KLAutoencoder, VQAutoencoder, IdentityAutoencoder)


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks made inside have shapes and no numbers."""
    with torch.device("meta"), Uninitialised():
        yield


def assemble(config: Mapping[str, Any], tensors: Mapping[str, Tensor], registry: Registry) -> LatentDiffusion:
    """The model of `config` (what `config.json` would hold) with these weights, in eval mode on the CPU.

    What `tensors` lacks keeps fresh weights. Tensors are copied: a checkpoint's may be the file itself.
    """
    with on_meta():
        model = assembled(config, registry)
    state = {name: value.clone() for name, value in tensors.items()}
    if any(name not in state for name in model.state_dict()):
        fresh = assembled(config, registry).state_dict()
        state = {name: state.get(name, value) for name, value in fresh.items()}
    model.load_state_dict(state, assign=True)
    reset_meta_buffers(model, config, registry)
    model.requires_grad_(True)
    for conditioner in model.conditioners.values():
        for name in conditioner.frozen:
            conditioner.get_submodule(name).requires_grad_(False)
    model.autoencoder.requires_grad_(False)
    return model.eval()


def finish_autoencoder(
    model: Autoencoder, tensors: Mapping[str, Tensor], options: Mapping[str, Any], *, scale: float = 1.0
) -> Autoencoder:
    """An autoencoder that was built on meta, with these weights, and the scale of its latent where that is known."""
    state = {name: value.clone() for name, value in tensors.items()} | latent_buffers(model, scale)
    if any(name not in state for name in model.state_dict()):
        state = {**autoencoders.make(**options).state_dict(), **state}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def latent_buffers(model: Autoencoder, scale: float | Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
    """The latent's shift and scale, (c,) each, as the autoencoder keeps them, and empty statistics."""
    state = {name: value for name, value in model.state_dict().items() if name.startswith("latent_")}
    buffers = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in state.items()}
    buffers["latent_scale"] += torch.as_tensor(scale, dtype=torch.float32)
    if shift is not None:
        buffers["latent_shift"] += shift
    return buffers


def core_unet(model: LatentDiffusion, refuse: Callable[[str], UsageError]) -> UNet:
    """The model's UNet; networks of plugins have no layout elsewhere, and are refused."""
    if not isinstance(model.denoiser, UNet):
        raise refuse(f"its denoiser is {type(model.denoiser).__name__}, and no UNet of ldmkit")
    if not isinstance(model.autoencoder, CORE_AUTOENCODERS):
        raise refuse(f"its autoencoder is {type(model.autoencoder).__name__}, which a plugin has")
    return model.denoiser
