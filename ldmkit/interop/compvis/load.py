"""Checkpoints of the paper's code, and of what grew out of it, as ldmkit models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldmkit import autoencoder as autoencoders
from ldmkit import plugins
from ldmkit.autoencoder import Autoencoder
from ldmkit.errors import UsageError
from ldmkit.interop.assembling import finish_autoencoder, on_meta
from ldmkit.interop.compvis import config as original
from ldmkit.interop.compvis.reader import EMA, Imported, Reader, Weights, flat, own, with_leftovers, without_prefix
from ldmkit.interop.report import KeyReport, match
from ldmkit.interop.safe_reading.tensors import check_finite, read_tensors
from ldmkit.interop.sanity import sane
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry


def load_compvis(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any],
    *,
    weights: Weights = "ema",
    heads: int | None = None,
    null_class: int | None = None,
    registry: Registry | None = None,
) -> LatentDiffusion:
    """A checkpoint of the paper's code as an ordinary ldmkit model, in eval mode on the CPU.

    Args:
        checkpoint: `.ckpt` or safetensors; nothing in it is executed.
        config: the original YAML, or what is in it.
        weights: the averaged ones, or those the optimizer left. A checkpoint without an average has one kind.
        heads: attention heads at every level, in place of what the YAML says. Three released models need it, and are recognised.
        null_class: the class that training used for "no class"; guidance is refused without it.
        registry: the plugins to ask for the conditioning stage; default: all that are installed.

    Its one slot is named like the conditioner that reads the stage; `sample` is the original's DDIM unless told otherwise.

    Raises:
        CheckpointError: the file cannot be read safely, or does not fit the configuration.
        UsageError: an option that this model has no use for.
    """
    return import_compvis(
        checkpoint, config, weights=weights, heads=heads, null_class=null_class, registry=registry
    ).model


def import_compvis(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any],
    *,
    weights: Weights = "ema",
    heads: int | None = None,
    null_class: int | None = None,
    allow_partial: Sequence[str] = (),
    registry: Registry | None = None,
) -> Imported:
    """`load_compvis`, with the report of keys, notes for a person and, beside averaged weights, the raw ones.

    `allow_partial`: patterns of names that may be missing (they get fresh weights), left over, or of another shape.

    Raises CheckpointError and UsageError as `load_compvis` does.
    """
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights is {weights!r}; allowed are ema and raw")
    target = original.read(config)
    if original.is_autoencoder(target):
        raise UsageError(
            f"the configuration is of an autoencoder alone ({target.short})", hint="use load_compvis_autoencoder"
        )
    tensors = without_prefix(read_tensors(checkpoint))
    reader = Reader(target, tensors, str(checkpoint), registry or plugins.load())
    return reader.read(weights, heads, null_class, tuple(allow_partial))


def load_compvis_autoencoder(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any],
    *,
    weights: Weights = "ema",
    allow_partial: Sequence[str] = (),
) -> Autoencoder:
    """A first stage that was trained alone, in eval mode on the CPU; discriminator and perceptual network are left behind.

    Raises CheckpointError as `load_compvis` does.
    """
    return import_compvis_autoencoder(checkpoint, config, weights=weights, allow_partial=allow_partial)[0]


def import_compvis_autoencoder(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any],
    *,
    weights: Weights = "ema",
    allow_partial: Sequence[str] = (),
) -> tuple[Autoencoder, KeyReport]:
    """`load_compvis_autoencoder`, with the report of keys.

    Raises UsageError where the configuration is of no autoencoder.
    """
    target = original.read(config)
    if not original.is_autoencoder(target):
        raise UsageError(f"{target.short} is not an autoencoder", hint="use load_compvis")
    found = read_tensors(checkpoint)
    with sane(), on_meta():
        model = autoencoders.make(**original.autoencoder(target))
    expected = own(model.state_dict())
    averaged = weights == "ema" and any(name.startswith(EMA + "encoder") for name in found)
    taken, report = match(expected, {name: flat(name) if averaged else name for name in expected}, found)
    report = with_leftovers(report, found, known=set(expected))
    report.require(allow_partial, where=str(checkpoint))
    check_finite(taken, str(checkpoint))
    return finish_autoencoder(model, taken, original.autoencoder(target)), report
