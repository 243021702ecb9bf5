"""One full checkpoint of the paper's code on its way to a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ldmkit import autoencoder as autoencoders
from ldmkit.conditioning import ForeignStage, Ports
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop import foreign
from ldmkit.interop.assembling import assemble, latent_buffers, on_meta
from ldmkit.interop.compvis import config as original
from ldmkit.interop.compvis import released
from ldmkit.interop.compvis.config import Target
from ldmkit.interop.compvis.defaults import LATENT_DIFFUSION, Params
from ldmkit.interop.report import KeyReport, match
from ldmkit.interop.safe_reading.tensors import check_finite
from ldmkit.interop.sanity import sane
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.schedules import make as make_schedule

Weights = Literal["ema", "raw"]
UNET, FIRST, COND, EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
# Recomputed, or of use in training only.
IGNORED = (
    "alphas_cumprod",
    "betas",
    "ddim_",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "log_one_minus_",
    "lvlb_weights",
    "logvar",
    "loss.",
    "model_ema.decay",
    "model_ema.num_updates",
    "posterior_",
    "scale_factor",
    "sqrt_",
)
# What files of Stable Diffusion carry and no network needs; and markers that its user interfaces look for.
UNUSED = (".position_ids", "cond_stage_model.logit_scale", "cond_stage_model.text_projection")
MARKERS = ("v_pred", "ztsnr")
TABLE = "label_emb.weight"
# A schedule stored in float32 agrees with one rebuilt in float64 to about 1e-7 of each value.
SCHEDULE_TOLERANCE = 1e-5
# Given to a model that has a null, so that guidance is possible, and trained on when it is fine-tuned.
NULL_RATE = 0.1


@dataclass(frozen=True)
class Imported:
    """A model read from elsewhere; in `raw` the denoiser as the optimizer left it, where the model has its average."""

    model: LatentDiffusion
    report: KeyReport
    notes: tuple[str, ...] = ()
    raw: Mapping[str, Tensor] | None = None


def flat(name: str) -> str:
    """What the original calls the average of a parameter: all dots removed. It cannot be undone, so maps are made forward."""
    return EMA + name.replace(".", "")


class Reader:
    """One checkpoint on its way to a model.

    `read` raises CheckpointError where checkpoint, configuration and ldmkit do not fit.
    """

    def __init__(self, target: Target, tensors: Mapping[str, Tensor], where: str, registry: Registry) -> None:
        self.target, self.params, self.tensors, self.where, self.registry = (
            target,
            Params(target.params, LATENT_DIFFUSION, "params"),
            tensors,
            where,
            registry,
        )
        self.notes: list[str] = []
        self.null_class: int | None = None

    def read(
        self, weights: Weights, heads: int | None, null_class: int | None, allow_partial: tuple[str, ...]
    ) -> Imported:
        if "unet_config" not in self.params:
            raise CheckpointError(
                f"the configuration is of a {self.target.name} with no unet_config: it is not a LatentDiffusion"
            )
        with sane():
            first_stage = original.autoencoder(Target.of(self.params.get("first_stage_config"), "first_stage_config"))
            network = Target.of(self.params["unet_config"], "unet_config")
            denoiser = original.denoiser(network, heads or self._true_heads(network))
        averaged = weights == "ema" and self._averaged
        classes = denoiser["variant"].pop("classes")
        slots = self._slots(denoiser, null_class, None if classes is None else self._table(averaged))
        with sane():
            config = self._config(first_stage, denoiser, slots)
            found, report = self._collect(config, slots, weights)
        raw = self._raw(denoiser) if averaged else None
        for slot in slots:
            report = report + KeyReport(matched=self._matched(slot, averaged))
        report = with_leftovers(report, self.tensors, known=self._other_names(denoiser, slots))
        report.require(allow_partial, where=self.where)
        check_finite(found, self.where)
        self._check_schedule(config["diffusion"]["schedule"])
        self._apply_markers(config)
        model = assemble(config, found, self.registry)
        return Imported(model, report, tuple(self.notes), raw)

    @property
    def _averaged(self) -> bool:
        return any(name.startswith(EMA + "diffusion_model") for name in self.tensors)

    def _true_heads(self, network: Target) -> int | None:
        """1 for the released models whose YAML is wrong about it."""
        if "num_head_channels" not in network.params or not network.params.get("use_spatial_transformer"):
            return None
        with on_meta():
            count = sum(p.numel() for p in UNet.of_widths(**original.denoiser(network)).parameters())
        if (known := released.wrong_heads(network.params, count)) is None:
            return None
        self.notes.append(
            f"this is {known.name}: its YAML says num_head_channels 32, its weights were trained with 1 head, which is used; "
            "give heads to decide otherwise"
        )
        return 1

    # conditions

    def _slots(self, denoiser: Mapping[str, Any], null_class: int | None, table: Tensor | None) -> list[foreign.Found]:
        """The conditioning stage's, and stand-ins for what the UNet reads beside it."""
        first = self._condition(denoiser, null_class)
        found = [] if first is None else [first]
        added, tokens = (
            int(denoiser["in_channels"]) - int(denoiser["out_channels"]),
            int(denoiser["context_width"] or 0),
        )
        emits = Ports() if first is None else first.conditioner.emits
        if emits.tokens != tokens or emits.concat not in (0, added):
            raise CheckpointError(
                f"the UNet reads tokens of width {tokens} and {added} channels beside the latent; the conditioning stage "
                f"gives {emits.tokens} and {emits.concat}",
                where=self.where,
            )
        if added != emits.concat:
            found.append(foreign.beside_latent(self.target.name, added, self.registry))
        if table is not None:
            found.append(
                foreign.class_table(table, "noise_level" if "Upscale" in self.target.short else "class", self.registry)
            )
        if vector := int(denoiser["variant"].get("vector") or 0):
            described = ForeignStage(self.target.name, {}, "vector", "vector", 0)
            found.append(foreign.stand_in(described, vector=vector, registry=self.registry))
        self.notes.extend(note for slot in found if slot is not first for note in slot.notes)
        return found

    def _table(self, averaged: bool) -> Tensor:
        """The UNet's own table of classes."""
        name = flat(f"diffusion_model.{TABLE}") if averaged else UNET + TABLE
        if name not in self.tensors:
            raise CheckpointError(f"the configuration has num_classes, and the checkpoint no {name}", where=self.where)
        return self.tensors[name]

    def _condition(self, denoiser: Mapping[str, Any], null_class: int | None) -> foreign.Found | None:
        stage = Target.of(self.params.get("cond_stage_config", original.UNCONDITIONAL), "cond_stage_config")
        if stage.name == original.UNCONDITIONAL:
            if null_class is not None:
                raise UsageError("null_class is given, and this model is unconditional")
            return None
        params = dict(stage.params)
        if released.counts_classes(stage.short, params):
            null_class = released.null_row(params) if null_class is None else null_class
            params["null_class"] = self.null_class = null_class
        elif null_class is not None:
            raise UsageError(f"null_class is given, and the conditioning stage {stage.name} knows no classes")
        added = int(denoiser["in_channels"]) - int(denoiser["out_channels"])
        tokens = int(denoiser["context_width"] or 0)
        described = ForeignStage(
            target=stage.name,
            params=params,
            key=str(self.params["cond_stage_key"]),
            port="hybrid" if tokens and added else "tokens" if tokens else "concat",
            channels=added,
            tensors=self._stage_tensors() if stage.name != original.FIRST_STAGE else {},
        )
        try:
            found = foreign.find(described, self.registry)
        except CheckpointError as error:
            raise CheckpointError(error.message, where=error.where or self.where, hint=error.hint) from error
        if found is None:
            length = int(params.get("max_seq_len", params.get("max_length", 77 if tokens else 0)) or 1)
            found = foreign.stand_in(described, tokens=tokens, length=length, registry=self.registry)
        self.notes.extend(found.notes)
        return found

    def _dropout(self, condition: foreign.Found | None, denoiser: Mapping[str, Any]) -> dict[str, float]:
        """What guidance may drop. Concatenated conditions were never dropped; of classes, only where a row stands for none."""
        if condition is None or not denoiser["context_width"]:
            return {}
        stage = Target.of(self.params["cond_stage_config"], "cond_stage_config")
        if released.counts_classes(stage.short, stage.params) and not condition.encoded and self.null_class is None:
            self.notes.append("no null class is known, so this model cannot be guided; give null_class if it has one")
            return {}
        return {condition.name: NULL_RATE}

    def _stage_tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in _below(COND, self.tensors).items() if not name.endswith(".position_ids")}

    # the whole

    def _config(
        self, first_stage: Mapping[str, Any], denoiser: Mapping[str, Any], slots: Sequence[foreign.Found]
    ) -> dict[str, Any]:
        factor = int(first_stage.get("downsample", 1))  # the identity has no factor
        side = self.params["image_size"]
        height, width = (side, side) if isinstance(side, int) else side
        self._check_latent(first_stage, denoiser)
        return {
            "size": [int(height) * factor, int(width) * factor],
            "autoencoder": dict(first_stage),
            "denoiser": dict(denoiser),
            "diffusion": original.diffusion(self.params),
            "conditioners": {slot.name: vars(slot.slot) for slot in slots},
            "dropout": self._dropout(next((slot for slot in slots if slot.conditioner.emits.tokens), None), denoiser),
            "sampling": {"sampler": "ddim", "steps": 50, "guidance": 1.0, "spacing": "compvis", "eta": 0.0},
        }

    def _check_latent(self, first_stage: Mapping[str, Any], denoiser: Mapping[str, Any]) -> None:
        channels = first_stage.get("latent_channels", first_stage.get("image_channels", 3))
        if denoiser["out_channels"] != channels:
            raise CheckpointError(
                f"the UNet gives {denoiser['out_channels']} channels and the latent has {channels}", where=self.where
            )

    def _collect(
        self, config: Mapping[str, Any], slots: Sequence[foreign.Found], weights: Weights
    ) -> tuple[dict[str, Tensor], KeyReport]:
        with on_meta():
            autoencoder = autoencoders.make(**config["autoencoder"])
            unet = UNet.of_widths(**config["denoiser"])
        if weights == "ema" and not self._averaged:
            self.notes.append("the checkpoint holds no average: its weights are the only ones")
        averaged = weights == "ema" and self._averaged
        expected = unet.state_dict()
        names = {name: flat(f"diffusion_model.{name}") if averaged else UNET + name for name in expected}
        denoiser, report = match(expected, names, self.tensors)
        kept = own(autoencoder.state_dict())
        first, second_report = match(kept, {name: FIRST + name for name in kept}, self.tensors)
        found = {f"denoiser.{name}": value for name, value in denoiser.items()}
        found |= {f"autoencoder.{name}": value for name, value in first.items()}
        found |= {f"autoencoder.{name}": v for name, v in latent_buffers(autoencoder, self._scale()).items()}
        if config["diffusion"]["learn_logvar"] and "logvar" in self.tensors:
            found["diffusion.logvar"] = self.tensors["logvar"]
        for slot in slots:
            found |= {f"conditioners.{slot.name}.{name}": value for name, value in slot.tensors.items()}
        return found, report + second_report

    def _scale(self) -> float:
        """The factor on latents: stored where it was measured (`scale_by_std`), else the configuration's."""
        if "scale_factor" in self.tensors:
            return float(self.tensors["scale_factor"])
        if self.params["scale_by_std"]:
            raise CheckpointError(
                "the configuration says scale_by_std, and the checkpoint has no scale_factor: how its latents are scaled is "
                "not known",
                where=self.where,
                hint="write the factor that was measured in training into the YAML: scale_by_std: false, scale_factor: NUMBER",
            )
        return float(self.params["scale_factor"])

    def _apply_markers(self, config: dict[str, Any]) -> None:
        """Empty tensors that say how the model was trained, beside a YAML that may not."""
        diffusion = config["diffusion"]
        if "v_pred" in self.tensors and diffusion["prediction"] != "v":
            self.notes.append(
                f"the file is marked v_pred: it predicts v, and not {diffusion['prediction']} as the YAML has it"
            )
            diffusion["prediction"] = "v"
        if "ztsnr" in self.tensors:
            self.notes.append("the file is marked ztsnr: the schedule ends on noise alone (zero terminal SNR)")
            diffusion["schedule"] = {**diffusion["schedule"], "zero_snr": True}
        if unused := sorted(name for name in self.tensors if name.endswith(UNUSED)):
            self.notes.append(f"not needed, and left out: {', '.join(unused)}")

    def _raw(self, denoiser: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The denoiser as the optimizer left it, where the checkpoint has it whole."""
        with on_meta():
            expected = UNet.of_widths(**denoiser).state_dict()
        taken, report = match(expected, {name: UNET + name for name in expected}, self.tensors)
        if not report.complete:
            if report.matched:
                self.notes.append("the weights before averaging are incomplete, and are left out")
            return None
        try:
            check_finite(taken, self.where)
        except CheckpointError as error:
            self.notes.append(f"the weights before averaging are left out: {error.message}")
            return None
        return {f"denoiser.{name}": value for name, value in taken.items()}

    def _matched(self, slot: foreign.Found, averaged: bool) -> tuple[str, ...]:
        """The tensors that a slot's conditioner took; it raised where one was missing or of another shape."""
        if slot.conditioner.emits.vector:
            return (flat(f"diffusion_model.{TABLE}") if averaged else UNET + TABLE,) if slot.read else ()
        return tuple(COND + name for name in sorted(slot.read))

    def _other_names(self, denoiser: Mapping[str, Any], slots: Sequence[foreign.Found]) -> set[str]:
        """The UNet's weights of both kinds; and the conditioning stage's, where nobody reads it or it is there twice."""
        with on_meta():
            names = [*UNet.of_widths(**denoiser).state_dict(), TABLE]
        known = {UNET + name for name in names} | {flat(f"diffusion_model.{name}") for name in names}
        twice = self.params.get("cond_stage_config") == original.FIRST_STAGE
        stage = next((slot for slot in slots if slot.slot.options.get("vector", 0) == 0), None)
        if stage is None or stage.encoded or twice:
            known |= {name for name in self.tensors if name.startswith(COND)}
        return known

    def _check_schedule(self, options: Mapping[str, Any]) -> None:
        """The rebuilt schedule against the one the model was trained with, where the checkpoint stores it."""
        stored = self.tensors.get("alphas_cumprod")
        if stored is None:
            self.notes.append("the checkpoint stores no schedule: the configuration's could not be checked")
            return
        rebuilt = getattr(make_schedule(**options), "alphas_cumprod", None)
        assert rebuilt is not None
        if len(stored) != len(rebuilt):
            raise CheckpointError(
                f"the configuration has {len(rebuilt)} timesteps, the checkpoint {len(stored)}", where=self.where
            )
        difference = float(((stored.double() - rebuilt) / rebuilt).abs().max())
        if difference > max(SCHEDULE_TOLERANCE, _rounding(stored)):
            raise CheckpointError(
                f"the configuration's noise schedule is not the checkpoint's: alphas_cumprod differs by {difference:.2g}",
                where=self.where,
                hint="look at linear_start, linear_end, beta_schedule and timesteps",
            )


def _rounding(values: Tensor) -> float:
    """How far the values may be from what was stored: two units in the last place where all of them are of half precision."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return 2 * torch.finfo(dtype).eps
    return 0.0


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what a training program put before the whole model (``pl_module.model.diffusion_model...``)."""
    found = {name[: name.index(UNET)] for name in tensors if UNET in name}
    if len(found) != 1 or "" in found:
        return dict(tensors)
    (prefix,) = found
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what ldmkit keeps of the latent's scale."""
    return {name: value for name, value in state.items() if not name.startswith("latent_")}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def with_leftovers(report: KeyReport, found: Mapping[str, Tensor], *, known: Collection[str]) -> KeyReport:
    """Adds the names that nothing took; `known` ones, and those of training, were left on purpose."""
    seen = {*report.matched, *report.shapes, *report.kinds}
    left = [name for name in found if name not in seen]
    ignored = tuple(
        name for name in left if name in known or name in MARKERS or name.startswith(IGNORED) or name.endswith(UNUSED)
    )
    return report + KeyReport(unexpected=tuple(name for name in left if name not in set(ignored)), ignored=ignored)
