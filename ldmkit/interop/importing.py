"""A source of any kind -> a folder of ldmkit: what the command does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop import compvis_config
from ldmkit.interop.autoencoder_folder import save_autoencoder
from ldmkit.interop.compvis import import_compvis, import_compvis_autoencoder
from ldmkit.interop.compvis_reader import Imported, Weights
from ldmkit.interop.diffusers_load import import_diffusers
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
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already", hint="choose a new directory; nothing was written")
    if (Path(source).expanduser() / "model_index.json").is_file():
        if config is not None or heads is not None or null_class is not None:
            raise UsageError("a folder of diffusers says all itself: config, heads and null class are for checkpoints")
        return _save(import_diffusers(source, registry=registry), folder)
    if config is None:
        raise UsageError("a checkpoint needs the YAML that came with it", hint="--config FILE")
    if compvis_config.is_autoencoder(compvis_config.read(config)):
        autoencoder, report = import_compvis_autoencoder(source, config, weights=weights, allow_partial=allow_partial)
        save_autoencoder(autoencoder, folder)
        return Written(report, ("an autoencoder alone: use it with autoencoder.from in a recipe",), (weights,))
    options = {"weights": weights, "heads": heads, "null_class": null_class}
    return _save(import_compvis(source, config, **options, allow_partial=allow_partial, registry=registry), folder)  # type: ignore[arg-type]


def _save(found: Imported, folder: Path) -> Written:
    found.model.save(folder, found.raw)
    return Written(found.report, found.notes, ("ema", "raw") if found.raw else ("one",))
