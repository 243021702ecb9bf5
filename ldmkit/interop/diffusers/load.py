"""Folders of diffusers as ldmkit models. diffusers itself is not needed: the folders are JSON and safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit import autoencoder as autoencoders
from ldmkit import plugins
from ldmkit.autoencoder import Autoencoder
from ldmkit.conditioning import ForeignStage
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError
from ldmkit.interop import foreign
from ldmkit.interop.assembling import assemble, finish_autoencoder, latent_buffers, on_meta
from ldmkit.interop.compvis import text_stages
from ldmkit.interop.compvis.reader import NULL_RATE, Imported, own
from ldmkit.interop.diffusers import config as configs
from ldmkit.interop.diffusers import keys
from ldmkit.interop.diffusers.folders import read_json
from ldmkit.interop.diffusers.schedule import scheduler_from
from ldmkit.interop.report import KeyReport, match
from ldmkit.interop.safe_reading.tensors import check_finite, read_tensors
from ldmkit.interop.sanity import sane
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry

WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".bin")
SUPER_RESOLUTION = "LDMSuperResolutionPipeline"


def load_diffusers(folder: str | Path, *, registry: Registry | None = None) -> LatentDiffusion:
    """A pipeline folder of diffusers (LDM, Stable Diffusion v1 and v2) as an ordinary ldmkit model, in eval mode on the CPU.

    Reads UNet2DModel, UNet2DConditionModel, AutoencoderKL, VQModel, the schedule of any scheduler of betas (sampling as
    DDIM's or PNDM's), CLIPTextModel and LDMBertModel where a plugin takes them. `sample` follows the scheduler's options.

    Raises:
        CheckpointError: no such folder, a component or an option that ldmkit does not have, weights that do not fit.
    """
    return import_diffusers(folder, registry=registry).model


def import_diffusers(
    folder: str | Path, *, allow_partial: Sequence[str] = (), registry: Registry | None = None
) -> Imported:
    """`load_diffusers`, with the report of keys and notes for a person.

    `allow_partial`: patterns of names that may be missing (they get fresh weights), left over, or of another shape.
    """
    path = Path(folder).expanduser()
    if not (path / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is no pipeline of diffusers: it has no model_index.json")
    return _Folder(path, registry or plugins.load(), allow_partial).read()


def import_diffusers_autoencoder(
    folder: str | Path, *, allow_partial: Sequence[str] = ()
) -> tuple[Autoencoder, KeyReport]:
    """An AutoencoderKL or VQModel in a folder of its own, in eval mode on the CPU, and the report of keys.

    Raises CheckpointError as `load_diffusers` does.
    """
    path = Path(folder).expanduser()
    component = Component(path, read_json(path / "config.json"))
    with sane(), on_meta():
        options, scale, shift = configs.autoencoder_from(component.config)
        model = autoencoders.make(**options)
    if shift:
        raise CheckpointError(f"an autoencoder alone with a shift_factor ({shift}) is not read", where=str(path))
    expected = own(model.state_dict())
    found, report = _read(keys.autoencoder_rules(model), component, expected, "")
    report.require(allow_partial, where=str(path))
    check_finite(found, str(path))
    return finish_autoencoder(model, found, options, scale=scale), report


def is_component(folder: str | Path) -> bool:
    """Whether the folder holds one model of diffusers, and no pipeline."""
    config = Path(folder).expanduser() / "config.json"
    return config.is_file() and "_class_name" in read_json(config)


@dataclass(frozen=True)
class Component:
    """One directory of a pipeline."""

    path: Path
    config: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, as float32."""
        for stem in WEIGHTS:
            for ending in ENDINGS:
                if (self.path / f"{stem}{ending}").is_file():
                    return read_tensors(self.path / f"{stem}{ending}")
        raise CheckpointError("there are no weights in this folder", where=str(self.path))


class _Folder:
    """One pipeline folder on its way to a model."""

    def __init__(self, path: Path, registry: Registry, allow_partial: Sequence[str]) -> None:
        self.path, self.registry, self.allow_partial = path, registry, allow_partial
        self.index = read_json(path / "model_index.json")
        self.notes: list[str] = []

    def read(self) -> Imported:
        unet = self._component("unet")
        first = self._component("vae", "vqvae")
        with sane():
            denoiser = configs.unet_from(unet.config)
            first_stage, scale, shift = self._first_stage(first)
            objective, sampling, notes = scheduler_from(read_json(self.path / "scheduler" / "scheduler_config.json"))
            side = unet.config.get("sample_size") or 64
            height, width = (side, side) if isinstance(side, int) else side
            size = [int(height) * first_stage["downsample"], int(width) * first_stage["downsample"]]
        self.notes.extend(notes)
        condition = self._condition(denoiser, first_stage)
        config = {
            "size": size,
            "autoencoder": first_stage,
            "denoiser": denoiser,
            "diffusion": objective,
            "conditioners": {} if condition is None else {condition.name: vars(condition.slot)},
            "dropout": {condition.name: NULL_RATE} if condition is not None and denoiser["context_width"] else {},
            "sampling": sampling,
        }
        with sane():
            tensors, report = self._tensors(config, unet, first, scale, shift)
        if condition is not None:
            report = report + KeyReport(matched=tuple(f"{condition.name}.{name}" for name in sorted(condition.read)))
            tensors |= {f"conditioners.{condition.name}.{name}": value for name, value in condition.tensors.items()}
        report.require(self.allow_partial, where=str(self.path))
        check_finite(tensors, str(self.path))
        return Imported(assemble(config, tensors, self.registry), report, tuple(self.notes))

    def _component(self, *names: str) -> Component:
        for name in names:
            if (self.path / name / "config.json").is_file():
                return Component(self.path / name, read_json(self.path / name / "config.json"))
        raise CheckpointError(f"the pipeline has no {' or '.join(names)}", where=str(self.path))

    def _first_stage(self, first: Component) -> tuple[dict[str, Any], float, float]:
        options, scale, shift = configs.autoencoder_from(first.config)
        if self.index.get("_class_name") == SUPER_RESOLUTION:
            return options, 1.0, 0.0  # this pipeline scales nothing, whatever the config says
        if options["type"] == "vq" and "scaling_factor" not in first.config:
            self.notes.append("the VQModel says no scaling_factor: 1 is used, as the paper's VQ models have it")
            scale = 1.0
        return options, scale, shift

    def _condition(self, denoiser: Mapping[str, Any], first_stage: Mapping[str, Any]) -> foreign.Found | None:
        added = int(denoiser["in_channels"]) - int(denoiser["out_channels"])
        tokens = int(denoiser["context_width"] or 0)
        if not added and not tokens:
            return None
        stage = self._text_stage() if tokens else None
        if self.index.get("_class_name") == SUPER_RESOLUTION:
            stage = ForeignStage("torch.nn.Identity", {"scale": first_stage["downsample"]}, "LR_image", "concat", added)
        stage = stage or ForeignStage(
            str(self.index.get("_class_name")), {}, "condition", "tokens" if tokens else "concat", added
        )
        found = foreign.find(stage, self.registry)
        if found is None:
            length = int(stage.params.get("max_length", 77))
            found = foreign.stand_in(stage, tokens=tokens, length=length, registry=self.registry)
        _check_architecture(stage.params.get("architecture", {}), found)
        self.notes.extend(found.notes)
        return found

    def _text_stage(self) -> ForeignStage | None:
        """The text encoder of the pipeline, described as the original's."""
        for name in ("text_encoder", "bert"):
            if not (self.path / name / "config.json").is_file():
                continue
            encoder = self._component(name)
            tokenizer = self.path / "tokenizer"
            params = {
                "max_length": int(encoder.config.get("max_position_embeddings", 77)),
                "architecture": encoder.config,
                **({"tokenizer": str(tokenizer)} if tokenizer.is_dir() else {}),
            }
            kind = (encoder.config.get("architectures") or [""])[0]
            if kind == "LDMBertModel":
                target, tensors = "ldm.modules.encoders.modules.BERTEmbedder", text_stages.bert_from(encoder.tensors())
            elif kind == "CLIPTextModel":
                target, tensors = (
                    "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                    text_stages.clip_from(encoder.tensors()),
                )
                params["architecture"] = {**UNSEEN, **encoder.config}
            else:
                return ForeignStage(kind, params, "caption", "tokens", 0)
            return ForeignStage(target, params, "caption", "tokens", 0, tensors)
        return None

    def _tensors(
        self, config: Mapping[str, Any], unet: Component, first: Component, scale: float, shift: float
    ) -> tuple[dict[str, Tensor], KeyReport]:
        with on_meta():
            denoiser = UNet(**config["denoiser"])
            autoencoder = autoencoders.make(**config["autoencoder"])
        kept = {name: value for name, value in autoencoder.state_dict().items() if not name.startswith("latent_")}
        found, report = _read(keys.unet_rules(denoiser), unet, denoiser.state_dict(), "denoiser.")
        second, other = _read(keys.autoencoder_rules(autoencoder), first, kept, "autoencoder.")
        moved = torch.full((autoencoder.latent_channels,), shift)
        buffers = latent_buffers(autoencoder, scale, moved)
        return {**found, **second, **{f"autoencoder.{n}": v for n, v in buffers.items()}}, report + other


# Of a text encoder: no tensor's shape tells them, and other values are other numbers. Value: what a file without it means.
UNSEEN: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8}
UNSEEN_LDM_BERT: dict[str, Any] = {"head_dim": 64, "activation_function": "gelu", "scale_embedding": False}


def _check_architecture(wanted: Mapping[str, Any], found: foreign.Found) -> None:
    """That the conditioner built the text encoder which the folder describes."""
    if wanted.get("model_type") == "ldmbert":
        got, unseen = UNSEEN_LDM_BERT, UNSEEN_LDM_BERT
    else:
        values = found.slot.options.values()
        got = next((dict(value) for value in values if isinstance(value, Mapping) and "hidden_size" in value), {})
        unseen = UNSEEN if got else {}
    for name, default in unseen.items():
        if (theirs := wanted.get(name, default)) != (ours := got.get(name, default)):
            raise CheckpointError(
                f"the text encoder has {name} {theirs!r}, and {found.slot.type} reads it with {ours!r}",
                hint="a newer version of the plugin may know this encoder",
            )


def _read(
    rules: list[keys.Rule], component: Component, expected: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], KeyReport]:
    ours = keys.read(rules, component.tensors(), expected)
    taken, report = match(expected, {name: name for name in expected}, ours)
    report = report + KeyReport(unexpected=tuple(name for name in ours if name not in expected))
    return {prefix + name: value for name, value in taken.items()}, report
