"""How a model shows itself in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from torch import nn

from ldmkit.latent_diffusion.networks import Networks


def model_page(model: Networks) -> str:
    """Its parts with their sizes, its slots, and what it samples with, as a table of HTML."""
    height, width = model.size
    latent = " x ".join(map(str, model.latent_shape(model.size)))
    parts = [
        ("images", f"{height} x {width}, {model.autoencoder.image_channels} channels"),
        ("autoencoder", f"{type(model.autoencoder).__name__}, {_counted(model.autoencoder)}, latents {latent}"),
        (
            "denoiser",
            f"{type(model.denoiser).__name__}, {_counted(model.denoiser)}, predicts {model.diffusion.prediction.name}",
        ),
    ]
    for slot, conditioner in model.conditioners.items():
        ports = ", ".join(f"{port} {width}" for port, width in vars(conditioner.emits).items() if width)
        parts.append((f"slot {slot}", f"{type(conditioner).__name__}, {_counted(conditioner)}, {ports}"))
    sampling = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **model.sampling}
    parts.append(("samples with", ", ".join(f"{key} {value}" for key, value in sampling.items() if value is not None)))
    return f"<b>{type(model).__name__}</b>{table(parts)}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text as a table of HTML; text is text, whatever is in it."""
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _counted(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"
