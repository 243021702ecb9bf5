"""A model -> a folder for other software, with its card: what the command does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.errors import UsageError
from ldmkit.interop.compvis.save import save_compvis
from ldmkit.interop.diffusers.folders import read_raw
from ldmkit.interop.formats import Form, advised, obstacles
from ldmkit.interop.model_card import CARD, model_card, save_hub, stated_licence
from ldmkit.interop.verifying import Verification, export_diffusers
from ldmkit.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Exported:
    """What was written: of a pipeline folder its name, and what diffusers computed from it, where that was asked for."""

    pipeline: str | None = None
    verified: Verification | None = None


def export_to(
    model: LatentDiffusion,
    folder: Path,
    form: Form,
    *,
    run: Path,
    both: bool = True,
    verify: bool = False,
    licence: str | None = None,
) -> Exported:
    """Writes `folder`, which is new: a pipeline of diffusers, the original's two files, or what the hub takes.

    Args:
        run: where the model is from: recipe, data, metrics and a stated licence are read there for the card.
        both: formats that hold averaged and raw weights get both, where `run` has them.
        verify: diffusers computes the same from the folder, or there is none.

    Raises as `save_diffusers`, `export_diffusers`, `save_compvis` and `save_hub` do.
    """
    try:
        return _written(model, folder, form, run=run, both=both, verify=verify, licence=licence)
    except UsageError as error:
        if error.hint is None and obstacles(model)[form] is not None:
            raise advised(error, model, form) from error
        raise


def _written(
    model: LatentDiffusion, folder: Path, form: Form, *, run: Path, both: bool, verify: bool, licence: str | None
) -> Exported:
    raw = read_raw(run) if both else None
    licence = licence or stated_licence(run)
    if form == "hub":
        save_hub(model, folder, run=run, licence=licence, raw=raw)
        return Exported()
    about: dict[str, Any] = {"name": folder.name, "run": run, "licence": licence}
    count = sum(parameter.numel() for parameter in model.denoiser.parameters())
    if form == "compvis":
        save_compvis(model, folder, raw)
        usage = "`config.yaml` and `model.ckpt` are in the layout of the paper's code."
        card = model_card(model.config, count, **about, library="latent-diffusion", usage=usage)
        (folder / CARD).write_text(card, encoding="utf-8")
        return Exported()
    pipeline, found = export_diffusers(model, folder, verify=verify)
    lines = ("```python", f"from diffusers import {pipeline}", "", f'pipe = {pipeline}.from_pretrained("...")', "```")
    card = model_card(model.config, count, **about, library="diffusers", usage="\n".join(lines))
    (folder / CARD).write_text(card, encoding="utf-8")
    return Exported(pipeline, found)
