"""A source of any kind -> a folder of ldmkit: what the command does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmkit.autoencoder import Autoencoder
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop.compvis import config as compvis_config
from ldmkit.interop.compvis.load import import_compvis, import_compvis_autoencoder
from ldmkit.interop.compvis.reader import Imported, Weights
from ldmkit.interop.diffusers.autoencoder_folder import save_autoencoder
from ldmkit.interop.diffusers.folders import check_new
from ldmkit.interop.diffusers.load import import_diffusers, import_diffusers_autoencoder, is_component, is_pipeline
from ldmkit.interop.model_card import save_hub
from ldmkit.interop.report import KeyReport
from ldmkit.plugins import Registry


@dataclass(frozen=True)
class Written:
    """What was read, and which weights the folder holds."""

    report: KeyReport
    notes: tuple[str, ...]
    weights: tuple[str, ...]


def import_to(
    source: str | Path,
    folder: Path,
    *,
    config: str | Path | None = None,
    weights: Weights = "ema",
    heads: int | None = None,
    null_class: int | None = None,
    allow_partial: Sequence[str] = (),
    registry: Registry | None = None,
) -> Written:
    """Reads `source` and writes `folder`, whole or not at all; options as in `import_compvis`.

    A checkpoint with an average gives a folder with both kinds of weights (`ldmkit.load(folder, weights="raw")`). An
    autoencoder alone gives a folder for ``autoencoder: {from: ...}``.

    Raises:
        CheckpointError: `source` is not there, or cannot be read as what it is.
        UsageError: a checkpoint without `config`, or an option that `source` has no use for.
    """
    check_new(folder)
    if not Path(source).expanduser().exists():
        raise CheckpointError(
            f"there is no file or folder {source}",
            hint="give a checkpoint (.ckpt, .safetensors) or a folder of diffusers",
        )
    name = Path(source).name
    pipeline = is_pipeline(source)
    if pipeline or is_component(source):
        if config is not None or heads is not None or null_class is not None or weights == "raw":
            raise UsageError(
                "a diffusers folder is complete: config, weights, heads and null class are for checkpoints"
            )
        origin = f"Imported from the diffusers folder `{name}`."
        if not pipeline:
            alone = import_diffusers_autoencoder(source, allow_partial=allow_partial)
            return _save_autoencoder(*alone, folder, origin)
        return _save(import_diffusers(source, allow_partial=allow_partial, registry=registry), folder, origin)
    if config is None:
        raise UsageError("a checkpoint needs the YAML that came with it", hint="--config FILE")
    origin = f"Imported from the checkpoint `{name}`."
    if compvis_config.is_autoencoder(compvis_config.read(config)):
        if heads is not None or null_class is not None:
            raise UsageError("heads and null_class do not apply to an autoencoder alone")
        alone = import_compvis_autoencoder(source, config, weights=weights, allow_partial=allow_partial)
        return _save_autoencoder(*alone, folder, origin)
    found = import_compvis(
        source,
        config,
        weights=weights,
        heads=heads,
        null_class=null_class,
        allow_partial=allow_partial,
        registry=registry,
    )
    return _save(found, folder, origin)


def _save_autoencoder(autoencoder: Autoencoder, report: KeyReport, folder: Path, origin: str) -> Written:
    save_autoencoder(autoencoder, folder, [origin])
    return Written(report, ("an autoencoder alone: use it with autoencoder.from in a recipe",), ("one",))


def _save(found: Imported, folder: Path, origin: str) -> Written:
    save_hub(found.model, folder, raw=found.raw, notes=(origin, *found.notes))
    return Written(found.report, found.notes, ("ema", "raw") if found.raw else ("one",))
