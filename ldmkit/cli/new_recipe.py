"""`ldmkit recipe new`: a recipe of a few lines for a folder of one's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmkit.plugins import Registry
from ldmkit.recipe.flow_style import flow

TEMPLATE = """\
# {title}
#   ldmkit run {file}
name: {name}
data: {data}
autoencoder: {autoencoder}
conditioners: {conditioners}
denoiser: {{type: unet, channels: 48, multipliers: [1, 2], blocks: 1, attention: [2], head_width: 16}}
train: {{steps: 2000, batch: {batch}, lr: 1.0e-3, warmup: 50, decay: cosine, ema: 0.999}}
sample: {{type: ddim, steps: 30, count: 16, guidance: {guidance}}}
evaluate: [{metrics}]
"""
AUTOENCODER = (
    "{{type: kl, downsample: 4, channels: 32, multipliers: [1, 2, 4], blocks: 1, latent_channels: 4, "
    "train: {{steps: 1000, batch: {batch}, lr: 1.0e-3}}}}"
)


def write(registry: Registry, path: str, conditions: tuple[str, ...], to: str | None, steps: int | None) -> Path:
    """Writes a recipe that trains on the folder `path` with these conditioners; returns its file.

    Raises UsageError where the file is there already, or the folder has no field that a conditioner reads.
    """
    from ldmkit.cli.data import source_at
    from ldmkit.data.overview import overview, recipe_lines, sum_of
    from ldmkit.errors import UsageError

    found = overview(source_at(path, ()))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).expanduser().resolve().name).strip("-.") or "mine"
    target = Path(to).expanduser() if to else Path(f"{name}.yaml")
    if target.exists():
        raise UsageError(f"{target} is there already", hint="give another name: --to OTHER.yaml")
    slots = {condition.replace("-", "_"): _slot(registry, condition, found) for condition in conditions}
    batch = max(1, min(32, sum_of(found)))
    text = TEMPLATE.format(
        title=f"{sum_of(found)} images of {path}" + (f", told by {', '.join(conditions)}" if conditions else ""),
        file=shlex.quote(str(target)),
        name=name,
        data=flow(recipe_lines(path, found)),
        autoencoder=AUTOENCODER.format(batch=min(batch, 16)),
        conditioners=flow(slots),
        batch=batch,
        guidance="2.0" if conditions else "1.0",
        metrics=", ".join([*(["conditioning-gain"] if conditions else []), "nearest", "reconstruction"]),
    )
    if steps is not None:
        text = re.sub(r"steps: (1000|2000)", f"steps: {steps}", text)
    target.write_text(text, encoding="utf-8")
    return target


def _slot(registry: Registry, condition: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a conditioner as a bundled recipe has them, where it reads a field of the data."""
    from ldmkit.errors import UsageError

    kind = registry.conditioners.load(condition)
    if missing := [field for field in kind.reads if field not in found["fields"]]:
        raise UsageError(
            f"{condition} reads {', '.join(missing)}, and the data have {', '.join(found['fields'])}",
            hint=f"add it to the data, or write conditioners: {{{condition}: {{fields: {{{missing[0]}: ...}}}}}} yourself",
        )
    return _bundled(condition)


def _bundled(condition: str) -> dict[str, Any]:
    """What the bundled recipe with this one conditioner says of it; the data's own classes and names are learned."""
    from ldmkit.recipe import bundled, load

    for name in bundled():
        slots = {} if "/" in name else load(name).document.value.get("conditioners") or {}
        if len(slots) == 1:
            ((slot, options),) = slots.items()
            if (options or {}).get("type", slot.replace("_", "-")) == condition:
                return {key: value for key, value in (options or {}).items() if key not in ("type", "classes")}
    return {}
