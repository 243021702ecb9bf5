"""A folder that `huggingface_hub` can upload: config.json, safetensors, and a README.md that says what the model is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ldmkit.interop.folders import new_folder
from ldmkit.latent_diffusion import LatentDiffusion

UNKNOWN = "other"  # the hub's word for a licence that nobody stated


def save_hub(
    model: LatentDiffusion,
    folder: str | Path,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
    raw: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a new folder with the model as `model.save` does and a model card; `run` is where recipe and metrics are read."""
    with new_folder(folder) as path:
        model.save(path / "model", raw)
        for file in (path / "model").iterdir():
            file.rename(path / file.name)
        (path / "model").rmdir()
        card = model_card(model, name=Path(folder).name, run=None if run is None else Path(run), licence=licence)
        (path / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def model_card(model: LatentDiffusion, *, name: str, run: Path | None = None, licence: str | None = None) -> str:
    """README.md: the hub's front matter, what the model takes and gives, and the run's recipe and metrics where there are any."""
    front = {
        "license": licence or UNKNOWN,
        "library_name": "ldmkit",
        "tags": ["latent-diffusion", *(slot.type for slot in model.slots.values())],
    }
    recipe, metrics = _text(run, "recipe.resolved.yaml"), _text(run, "evaluation.json")
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        _about(model),
        "",
        _usage(model),
    ]
    if recipe:
        data = (yaml.safe_load(recipe) or {}).get("data", {})
        parts += ["", "## Data", "", f"`{data.get('type', 'unknown')}`, images of {data.get('size')} pixels."]
    if metrics:
        parts += ["", "## Metrics", "", "```json", json.dumps(json.loads(metrics), indent=2, ensure_ascii=False), "```"]
    if recipe:
        parts += ["", "## Recipe", "", "```yaml", recipe.strip(), "```"]
    return "\n".join(parts) + "\n"


def _about(model: LatentDiffusion) -> str:
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    conditions = ", ".join(f"`{slot}`" for slot in model.conditioners) or "none: it is unconditional"
    return (
        f"A latent diffusion model for images of {model.size[0]} x {model.size[1]} pixels, with a "
        f"{model.autoencoder.config['type']} autoencoder of factor {model.autoencoder.factor} and a UNet of {parameters:,} "
        f"parameters. Conditions: {conditions}."
    )


def _usage(model: LatentDiffusion) -> str:
    given = ", ".join(f'"{slot}": ...' for slot in model.conditioners)
    call = f"model.sample({{{given}}}, count=4)" if given else "model.sample(count=4)"
    return (
        f'```python\nimport ldmkit\n\nmodel = ldmkit.load("this folder, or its name on the hub")\nimages = {call}\n```'
    )


def _text(run: Path | None, name: str) -> str:
    if run is None or not (run / name).is_file():
        return ""
    text: Any = (run / name).read_text(encoding="utf-8")
    return str(text)
