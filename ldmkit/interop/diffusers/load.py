"""Folders of diffusers as ldmkit models. diffusers itself is not needed: the folders are JSON and safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit import autoencoder as autoencoders
from ldmkit import plugins
from ldmkit.autoencoder import Autoencoder
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError
from ldmkit.interop.assembling import assemble, finish_autoencoder, latent_buffers, on_meta
from ldmkit.interop.compvis.reader import NULL_RATE, Imported, own
from ldmkit.interop.diffusers import conditions, keys
from ldmkit.interop.diffusers import config as configs
from ldmkit.interop.diffusers.component import Component
from ldmkit.interop.diffusers.conditions import SUPER_RESOLUTION, Widths
from ldmkit.interop.diffusers.defaults import complete
from ldmkit.interop.diffusers.folders import read_json
from ldmkit.interop.diffusers.schedule import Read, scheduler_from
from ldmkit.interop.report import KeyReport, match
from ldmkit.interop.safe_reading.tensors import check_finite
from ldmkit.interop.sanity import sane
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
SIDE = 64  # of the latent grid, where the UNet does not say one: it is the size of sampling when none is given, no more
TABLE = "class_embedding.weight"


def load_diffusers(folder: str | Path, *, registry: Registry | None = None) -> LatentDiffusion:
    """A pipeline folder of diffusers (LDM, Stable Diffusion v1, v2 and XL) as an ordinary ldmkit model, in eval mode on the CPU.

    Reads UNet2DModel, UNet2DConditionModel, AutoencoderKL, VQModel, the schedulers of `diffusers_defaults.SCHEDULERS`,
    CLIPTextModel and LDMBertModel where a plugin takes them; what no plugin takes becomes a slot of tensors (`given`). `sample`
    follows the scheduler's options.

    Raises:
        CheckpointError: no such folder, a component or an option that ldmkit does not have, weights that do not fit.
    """
    return import_diffusers(folder, registry=registry).model


def import_diffusers(
    folder: str | Path, *, allow_partial: Sequence[str] = (), registry: Registry | None = None
) -> Imported:
    """`load_diffusers`, with the report of keys and notes for a person.

    `allow_partial`: patterns of names that may be missing (they get fresh weights), left over, or of another shape.

    Raises CheckpointError as `load_diffusers` does.
    """
    path = Path(folder).expanduser()
    if not (path / INDEX).is_file():
        raise _incomplete(path, folder)
    return _Folder(path, registry or plugins.load(), allow_partial).read()


def is_pipeline(folder: str | Path) -> bool:
    """Whether the folder is a pipeline, or what is left of one without its index."""
    path = Path(folder).expanduser()
    return (path / INDEX).is_file() or (path / "unet" / "config.json").is_file()


def _incomplete(path: Path, folder: str | Path) -> CheckpointError:
    parts = sorted(file.parent.name for file in path.glob("*/*config.json")) if path.is_dir() else []
    hint = None
    if "unet" in parts:
        hint = (
            f"it has {', '.join(parts)}: add a {INDEX} that says which pipeline they are, for example "
            '{"_class_name": "StableDiffusionPipeline"} or {"_class_name": "LDMPipeline"}'
        )
    return CheckpointError(f"{folder} is not a diffusers pipeline: it has no {INDEX}", hint=hint)


def import_diffusers_autoencoder(
    folder: str | Path, *, allow_partial: Sequence[str] = ()
) -> tuple[Autoencoder, KeyReport]:
    """An AutoencoderKL or VQModel in a folder of its own, in eval mode on the CPU, and the report of keys.

    Raises CheckpointError as `load_diffusers` does.
    """
    component = Component.of(Path(folder).expanduser())
    with sane(), on_meta():
        options, scale, shift = configs.autoencoder_from(component.config, component.where)
        model = autoencoders.make(**options)
    if shift:
        raise CheckpointError(
            f"an autoencoder alone with a shift_factor ({shift}) is not supported", where=component.where
        )
    expected = own(model.state_dict())
    found, report = _read(keys.autoencoder_rules(model), component.tensors(), expected, "")
    report.require(allow_partial, where=str(component.path))
    check_finite(found, str(component.path))
    return finish_autoencoder(model, found, options, scale=scale), report


def is_component(folder: str | Path) -> bool:
    """Whether the folder holds one model of diffusers, and no pipeline."""
    config = Path(folder).expanduser() / "config.json"
    return config.is_file() and "_class_name" in read_json(config)


class _Folder:
    """One pipeline folder on its way to a model."""

    def __init__(self, path: Path, registry: Registry, allow_partial: Sequence[str]) -> None:
        self.path, self.registry, self.allow_partial = path, registry, allow_partial
        self.pipeline = str(read_json(path / INDEX).get("_class_name"))
        self.notes: list[str] = []

    def read(self) -> Imported:
        unet, first = self._component("unet"), self._component("vae", "vqvae")
        with sane():
            denoiser = configs.unet_from(unet.config, unet.where)
            first_stage, scale, shift = self._first_stage(first)
            scheduler = self._scheduler()
            size = self._size(unet, int(first_stage["downsample"]))
        if scheduler.time is not None:
            denoiser["variant"]["time"] = scheduler.time
        weights = unet.tensors()
        table = weights.pop(TABLE, None) if denoiser["variant"].pop("classes") is not None else None
        self._check_table(table, unet)
        found = conditions.slots(
            self.path, self.pipeline, self._widths(denoiser, table), int(first_stage["downsample"]), self.registry
        )
        config = {
            "size": size,
            "autoencoder": first_stage,
            "denoiser": denoiser,
            "diffusion": scheduler.diffusion,
            "conditioners": {slot.name: vars(slot.slot) for slot in found},
            # Guidance may drop what was dropped in training: tokens, as every pipeline's own guidance does.
            "dropout": {slot.name: NULL_RATE for slot in found if slot.conditioner.emits.tokens},
            "sampling": scheduler.sampling,
        }
        with sane():
            tensors, report = self._tensors(config, unet, weights, first, scale * scheduler.scale, shift)
        if scheduler.turned:
            tensors |= {
                name: -tensors[name] for name in ("denoiser.out.2.weight", "denoiser.out.2.bias") if name in tensors
            }
        for slot in found:
            report = report + KeyReport(matched=tuple(f"{slot.name}.{name}" for name in sorted(slot.read)))
            tensors |= {f"conditioners.{slot.name}.{name}": value for name, value in slot.tensors.items()}
        report.require(self.allow_partial, where=str(self.path))
        check_finite(tensors, str(self.path))
        notes = (*self.notes, *unet.notes, *first.notes, *(note for slot in found for note in slot.notes))
        return Imported(assemble(config, tensors, self.registry), report, notes)

    def _component(self, *names: str) -> Component:
        for name in names:
            if (self.path / name / "config.json").is_file():
                component = Component.of(self.path / name)
                if unknown := complete(component.config, component.where).unknown:
                    self.notes.append(f"{name} says {', '.join(unknown)}, which ldmkit does not know")
                return component
        raise CheckpointError(
            f"the pipeline has no {' or '.join(names)}",
            where=str(self.path),
            hint=f"add {names[0]}/config.json and its weights",
        )

    def _scheduler(self) -> Read:
        file = self.path / SCHEDULER
        if not file.is_file():
            raise CheckpointError(
                f"the pipeline has no {SCHEDULER}: which noise its UNet was trained with is not known",
                where=str(self.path),
                hint="add the file that was saved with the UNet; Stable Diffusion's says scaled_linear, 0.00085 to 0.012",
            )
        found = scheduler_from(read_json(file), str(file))
        self.notes.extend(found.notes)
        return found

    def _size(self, unet: Component, factor: int) -> list[int]:
        side = complete(unet.config, unet.where)["sample_size"]
        if side is None:
            self.notes.append(
                f"the UNet has no sample_size: images of {SIDE * factor} pixels are sampled unless asked otherwise"
            )
            side = SIDE
        height, width = (side, side) if isinstance(side, int) else side
        return [int(height) * factor, int(width) * factor]

    def _first_stage(self, first: Component) -> tuple[dict[str, Any], float, float]:
        options, scale, shift = configs.autoencoder_from(first.config, first.where)
        if self.pipeline == SUPER_RESOLUTION:
            return options, 1.0, 0.0  # this pipeline scales nothing, whatever the config says
        if options["type"] == "vq" and "scaling_factor" not in first.config:
            self.notes.append("the VQModel has no scaling_factor: 1 is used, as the paper's VQ models have it")
            scale = 1.0
        return options, scale, shift

    def _widths(self, denoiser: Mapping[str, Any], table: Tensor | None) -> Widths:
        added = int(denoiser["in_channels"]) - int(denoiser["out_channels"])
        if added < 0:
            raise CheckpointError(f"the UNet reads {-added} channels fewer than it returns", where=str(self.path))
        return Widths(int(denoiser["context_width"] or 0), added, int(denoiser["variant"].get("vector") or 0), table)

    def _check_table(self, table: Tensor | None, unet: Component) -> None:
        count, width = (
            complete(unet.config, unet.where)["num_class_embeds"],
            4 * int(unet.config["block_out_channels"][0]),
        )
        if table is not None and tuple(table.shape) != (count, width):
            raise CheckpointError(
                f"{TABLE} is {tuple(table.shape)}; num_class_embeds {count} makes it ({count}, {width})",
                where=unet.where,
            )

    def _tensors(
        self,
        config: Mapping[str, Any],
        unet: Component,
        weights: Mapping[str, Tensor],
        first: Component,
        scale: float,
        shift: float,
    ) -> tuple[dict[str, Tensor], KeyReport]:
        with on_meta():
            denoiser = UNet.of_widths(**config["denoiser"])
            autoencoder = autoencoders.make(**config["autoencoder"])
        kept = {name: value for name, value in autoencoder.state_dict().items() if not name.startswith("latent_")}
        rules = keys.unet_rules(denoiser, configs.vector_layers(unet.config, unet.where))
        found, report = _read(rules, weights, denoiser.state_dict(), "denoiser.")
        second, other = _read(keys.autoencoder_rules(autoencoder), first.tensors(), kept, "autoencoder.")
        moved = torch.full((autoencoder.latent_channels,), shift)
        buffers = latent_buffers(autoencoder, scale, moved)
        return {**found, **second, **{f"autoencoder.{n}": v for n, v in buffers.items()}}, report + other


def _read(
    rules: list[keys.Rule], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], KeyReport]:
    ours = keys.read(rules, tensors, expected)
    taken, report = match(expected, {name: name for name in expected}, ours)
    report = report + KeyReport(unexpected=tuple(name for name in ours if name not in expected))
    return {prefix + name: value for name, value in taken.items()}, report
