"""The README.md beside a model: what it is, what it was trained on, how good it is, under which licence; and the hub's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.folders import new_folder, read_json
from ldmkit.latent_diffusion import LatentDiffusion

UNKNOWN = "unknown"  # the hub's word for a licence that nobody stated
CARD, CONFIG, WEIGHTS, RECIPE, METRICS = (
    "README.md",
    "config.json",
    "model.safetensors",
    "recipe.resolved.yaml",
    "evaluation.json",
)


def save_hub(
    model: LatentDiffusion,
    folder: str | Path,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
    raw: Mapping[str, Tensor] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes a new folder that `huggingface_hub` can upload and `ldmkit.load` reads: what `model.save` writes, and its card.

    Args:
        run: where recipe, data and metrics are read: a run, or its `model` directory.
        licence: for the card; default: what the card of `run` says.
        raw: the weights before averaging.
        notes: sentences for the card, such as where the weights came from.

    Raises CheckpointError where the folder holds something already.
    """
    with new_folder(folder) as path:
        model.save(path, raw)
        told = None if run is None else Path(run).expanduser()
        write_card(path, name=Path(folder).name, run=told, licence=licence or stated_licence(told), notes=notes)
    return Path(folder)


def write_card(
    folder: Path, *, name: str, run: Path | None = None, licence: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Writes the card of a saved model (or of an autoencoder alone) into its folder.

    A licence that is stated there stays. Raises CheckpointError where the weights cannot be read.
    """
    config = read_json(folder / CONFIG)
    count = _parameters(folder, "denoiser.")
    card = model_card(config, count, name=name, run=run, licence=licence or stated_licence(folder), notes=notes)
    (folder / CARD).write_text(card, encoding="utf-8")


def model_card(
    config: Mapping[str, Any],
    parameters: int,
    *,
    name: str,
    run: Path | None = None,
    licence: str | None = None,
    notes: Sequence[str] = (),
    library: str = "ldmkit",
    usage: str | None = None,
) -> str:
    """README.md of a model: the hub's front matter, what it is, how it is used, and the run's data, metrics and recipe.

    Args:
        config: what its `config.json` says.
        parameters: of the UNet.
        name: the card's title.
        run: see `save_hub`.
        licence: as the hub abbreviates it (``apache-2.0``).
        notes: sentences to add.
        library, usage: of models in other software's format.
    """
    front = {
        "license": licence or UNKNOWN,
        "library_name": library,
        "tags": ["latent-diffusion", *dict.fromkeys(slot["type"] for slot in config.get("conditioners", {}).values())],
    }
    text = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    text += [*_about(config, parameters), ""]
    text += [*(f"- {note}" for note in notes), ""] if notes else []
    text += (usage or _usage(config)).splitlines()
    recipe, metrics = _read(run, RECIPE), _read(run, METRICS)
    results = json.loads(metrics) if metrics else {}
    if recipe:
        text += ["", "## Data", "", *_data(yaml.safe_load(recipe) or {}, results)]
    if results.get("figures"):
        text += ["", "## Metrics", "", *_metrics(results)]
    if recipe:
        text += ["", "## Recipe", "", "```yaml", recipe.strip().replace(str(Path.home()), "~"), "```"]
    return "\n".join(text) + "\n"


def stated_licence(folder: Path | None) -> str | None:
    """The licence in a folder's card, or that of its model; None where none is stated."""
    for place in () if folder is None else (folder, folder / "model"):
        text = _read(place, CARD)
        parts = text.split("---\n", 2)
        if text.startswith("---\n") and len(parts) == 3:
            try:
                front = yaml.safe_load(parts[1])
            except yaml.YAMLError:
                continue
            found = front.get("license") if isinstance(front, dict) else None
            return str(found) if found not in (None, UNKNOWN) else None
    return None


def _about(config: Mapping[str, Any], parameters: int) -> Iterator[str]:
    first = config["autoencoder"]
    stage = f"{first['type']} autoencoder of factor {first.get('downsample', 1)}"
    if "denoiser" not in config:
        yield f"A {stage}: the first stage of a latent diffusion model."
        return
    height, width = config["size"]
    conditions = ", ".join(f"`{slot}`" for slot in config["conditioners"]) or "none: it is unconditional"
    yield (
        f"A latent diffusion model for images of {height} x {width} pixels, with a {stage} and a UNet of "
        f"{parameters:,} parameters. Conditions: {conditions}."
    )


def _parameters(folder: Path, prefix: str) -> int:
    """How many numbers the tensors below a prefix hold; only the file's header is read."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118  # no mapping
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights cannot be read: {error}", where=str(folder / WEIGHTS)) from error


def _usage(config: Mapping[str, Any]) -> str:
    if "denoiser" not in config:
        return "In a recipe of ldmkit: `autoencoder: {from: this folder}`."
    given = ", ".join(f'"{slot}": ...' for slot in config["conditioners"])
    call = f"model.sample({{{given}}}, count=4)" if given else "model.sample(count=4)"
    return (
        f'```python\nimport ldmkit\n\nmodel = ldmkit.load("this folder, or its name on the hub")\nimages = {call}\n```'
    )


def _data(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    section = recipe.get("data", {})
    yield f"`{section.get('type', 'unknown')}`, images of {section.get('size')} pixels."
    facts = results.get("data") or {}
    for name, value in facts.items():
        if isinstance(value, str | int) and value != "" and not (name == "licence" and facts.get("attribution")):
            yield f"- {name}: {'; '.join(str(value).splitlines())}"


def _metrics(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| metric | value | 95 % interval | beside |", "|---|---|---|---|")
    for figure in results["figures"]:
        named = f"{figure.get('title') or figure.get('name')}" + (f" ({figure['slot']})" if figure.get("slot") else "")
        interval = " to ".join(_number(bound) for bound in figure.get("interval") or ())
        beside = ", ".join(f"{name} {_number(value)}" for name, value in (figure.get("beside") or {}).items())
        value = f"{_number(figure.get('value'))} {figure.get('unit') or ''}".strip()
        yield f"| {named} | {value} | {interval} | {beside} |"
    yield ""
    yield f"{results.get('n')} held-out samples, seed {results.get('seed')}; sampled with {json.dumps(results.get('sampling'))}."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _read(run: Path | None, name: str) -> str:
    """A file of a run, whose `model` directory may be given in its place; empty where there is none."""
    if run is None:
        return ""
    places = (run, run.parent) if run.name == "model" else (run,)
    file = next((place / name for place in places if (place / name).is_file()), None)
    return "" if file is None else file.read_text(encoding="utf-8")
