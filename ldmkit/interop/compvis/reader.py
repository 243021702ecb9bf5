"""One full checkpoint of the paper's code on its way to a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ldmkit import autoencoder as autoencoders
from ldmkit.conditioning import ForeignStage
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop import foreign
from ldmkit.interop.assembling import assemble, latent_buffers, on_meta
from ldmkit.interop.compvis import config as original
from ldmkit.interop.compvis import released
from ldmkit.interop.compvis.config import Target
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
    """One checkpoint on its way to a model."""

    def __init__(self, target: Target, tensors: Mapping[str, Tensor], where: str, registry: Registry) -> None:
        self.target, self.params, self.tensors, self.where, self.registry = (
            target,
            target.params,
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
                f"the configuration is of a {self.target.name} with no unet_config: it is no LatentDiffusion"
            )
        with sane():
            first_stage = original.autoencoder(Target.of(self.params.get("first_stage_config"), "first_stage_config"))
            network = Target.of(self.params["unet_config"], "unet_config")
            denoiser = original.denoiser(network, heads or self._true_heads(network))
        condition = self._condition(denoiser, null_class)
        with sane():
            config = self._config(first_stage, denoiser, condition)
            found, report = self._collect(config, condition, weights)
        raw = self._raw(denoiser) if weights == "ema" and self._averaged else None
        report = report + self._condition_report(condition)
        report = with_leftovers(report, self.tensors, known=self._other_names(denoiser, condition))
        report.require(allow_partial, where=self.where)
        check_finite(found, self.where)
        self._check_schedule(config["diffusion"]["schedule"])
        model = assemble(config, found, self.registry)
        return Imported(model, report, tuple(self.notes), raw)

    @property
    def _averaged(self) -> bool:
        return any(name.startswith(EMA + "diffusion_model") for name in self.tensors)

    def _true_heads(self, network: Target) -> int | None:
        """1 for the released models whose YAML is wrong about it."""
        if network.params.get("num_head_channels", -1) == -1 or not network.params.get("use_spatial_transformer"):
            return None
        with on_meta():
            count = sum(p.numel() for p in UNet(**original.denoiser(network)).parameters())
        if (known := released.wrong_heads(network.params, count)) is None:
            return None
        self.notes.append(
            f"this is {known.name}: its YAML says num_head_channels 32, its weights were trained with 1 head, which is used; "
            "give heads to decide otherwise"
        )
        return 1

    # the conditioning stage

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
            key=str(self.params.get("cond_stage_key", "image")),
            port="hybrid" if tokens and added else "tokens" if tokens else "concat",
            channels=added,
            tensors=_below(COND, self.tensors) if stage.name != original.FIRST_STAGE else {},
        )
        try:
            found = foreign.find(described, self.registry)
        except CheckpointError as error:
            raise CheckpointError(error.message, where=error.where or self.where, hint=error.hint) from error
        if found is None:
            length = int(params.get("max_seq_len", params.get("max_length", 77 if tokens else 0)) or 1)
            found = foreign.stand_in(described, tokens=tokens, length=length, registry=self.registry)
        self.notes.extend(found.notes)
        self._check_widths(found, tokens, added)
        return found

    def _check_widths(self, found: foreign.Found, tokens: int, added: int) -> None:
        emits = found.conditioner.emits
        if (emits.tokens, emits.concat) != (tokens, added):
            raise CheckpointError(
                f"the UNet reads tokens of width {tokens} and {added} channels beside the latent; the conditioning stage "
                f"gives {emits.tokens} and {emits.concat}",
                where=self.where,
            )

    def _dropout(self, condition: foreign.Found | None, denoiser: Mapping[str, Any]) -> dict[str, float]:
        """What guidance may drop. Concatenated conditions were never dropped; of classes, only where a row stands for none."""
        if condition is None or not denoiser["context_width"]:
            return {}
        stage = Target.of(self.params["cond_stage_config"], "cond_stage_config")
        if released.counts_classes(stage.short, stage.params) and not condition.encoded and self.null_class is None:
            self.notes.append("no null class is known, so this model cannot be guided; give null_class if it has one")
            return {}
        return {condition.name: NULL_RATE}

    # the whole

    def _config(
        self, first_stage: Mapping[str, Any], denoiser: Mapping[str, Any], condition: foreign.Found | None
    ) -> dict[str, Any]:
        factor = int(first_stage.get("downsample", 1))
        side = self.params.get("image_size", 256 // factor)
        height, width = (side, side) if isinstance(side, int) else side
        self._check_latent(first_stage, denoiser)
        return {
            "size": [int(height) * factor, int(width) * factor],
            "autoencoder": dict(first_stage),
            "denoiser": dict(denoiser),
            "diffusion": original.diffusion(self.params),
            "conditioners": {} if condition is None else {condition.name: vars(condition.slot)},
            "dropout": self._dropout(condition, denoiser),
            "sampling": {"sampler": "ddim", "steps": 50, "guidance": 1.0, "spacing": "compvis", "eta": 0.0},
        }

    def _check_latent(self, first_stage: Mapping[str, Any], denoiser: Mapping[str, Any]) -> None:
        channels = first_stage.get("latent_channels", first_stage.get("image_channels", 3))
        if denoiser["out_channels"] != channels:
            raise CheckpointError(
                f"the UNet gives {denoiser['out_channels']} channels and the latent has {channels}", where=self.where
            )

    def _collect(
        self, config: Mapping[str, Any], condition: foreign.Found | None, weights: Weights
    ) -> tuple[dict[str, Tensor], KeyReport]:
        with on_meta():
            autoencoder = autoencoders.make(**config["autoencoder"])
            unet = UNet(**config["denoiser"])
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
        scale = self.tensors.get("scale_factor", torch.tensor(float(self.params.get("scale_factor", 1.0))))
        found |= {f"autoencoder.{name}": v for name, v in latent_buffers(autoencoder, float(scale)).items()}
        if config["diffusion"]["learn_logvar"] and "logvar" in self.tensors:
            found["diffusion.logvar"] = self.tensors["logvar"]
        if condition is not None:
            found |= {f"conditioners.{condition.name}.{name}": value for name, value in condition.tensors.items()}
        return found, report + second_report

    def _raw(self, denoiser: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The denoiser as the optimizer left it, where the checkpoint has it whole."""
        with on_meta():
            expected = UNet(**denoiser).state_dict()
        taken, report = match(expected, {name: UNET + name for name in expected}, self.tensors)
        if not report.complete:
            if report.matched:
                self.notes.append("the weights before averaging are not whole, and are left out")
            return None
        try:
            check_finite(taken, self.where)
        except CheckpointError as error:
            self.notes.append(f"the weights before averaging are left out: {error.message}")
            return None
        return {f"denoiser.{name}": value for name, value in taken.items()}

    def _condition_report(self, condition: foreign.Found | None) -> KeyReport:
        """The conditioning stage's tensors that its conditioner took; it raised where one was missing or of another shape."""
        return KeyReport(matched=tuple(COND + name for name in sorted(condition.read))) if condition else KeyReport()

    def _other_names(self, denoiser: Mapping[str, Any], condition: foreign.Found | None) -> set[str]:
        """The UNet's weights of both kinds; and the conditioning stage's, where nobody reads it or it is there twice."""
        with on_meta():
            names = UNet(**denoiser).state_dict()
        known = {UNET + name for name in names} | {flat(f"diffusion_model.{name}") for name in names}
        twice = self.params.get("cond_stage_config") == original.FIRST_STAGE
        if condition is None or condition.encoded or twice:
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


def own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what ldmkit keeps of the latent's scale."""
    return {name: value for name, value in state.items() if not name.startswith("latent_")}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def with_leftovers(report: KeyReport, found: Mapping[str, Tensor], *, known: Collection[str]) -> KeyReport:
    """Adds the names that nothing took; `known` ones, and those of training, were left on purpose."""
    seen = {*report.matched, *report.shapes, *report.kinds}
    left = [name for name in found if name not in seen]
    ignored = tuple(name for name in left if name in known or name.startswith(IGNORED))
    return report + KeyReport(unexpected=tuple(name for name in left if name not in set(ignored)), ignored=ignored)
