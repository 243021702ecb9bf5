"""The original's YAML as ldmkit's options: what `config.json` would say of the same networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.errors import CheckpointError, LdmkitError
from ldmkit.interop.sanity import bounded, grouped
from ldmkit.recipe import strict_yaml

Json = dict[str, Any]
GROUPS = 32  # the original has 32 groups in every norm, whatever the width
AUTOENCODERS = {"AutoencoderKL": "kl", "VQModel": "vq", "VQModelInterface": "vq", "IdentityFirstStage": "identity"}
SCHEDULES = {"linear": "linear", "sqrt_linear": "plain-linear", "cosine": "cosine", "sqrt": "sqrt"}
UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"

# Options of the original that ldmkit's networks do not have, with the value that leaves them off.
_UNET_OFF: Json = {
    "dims": 2,
    "conv_resample": True,
    "use_new_attention_order": False,
    "n_embed": None,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
    "disable_middle_transformer": False,
}
_NETWORK_OFF: Json = {"tanh_out": False, "resamp_with_conv": True, "give_pre_end": False}


@dataclass(frozen=True)
class Target:
    """A class of the original and the arguments it is made with."""

    name: str
    params: Json

    @property
    def short(self) -> str:
        """The class without its module."""
        return self.name.rpartition(".")[2]

    @classmethod
    def of(cls, section: Any, what: str) -> Target:
        """From ``{target: ..., params: {...}}``, or one of the original's words (``__is_first_stage__``)."""
        if isinstance(section, str):
            return cls(section, {})
        if not isinstance(section, Mapping) or not isinstance(section.get("target"), str):
            raise CheckpointError(f"the configuration's {what} names no target")
        params = section.get("params") or {}
        if not isinstance(params, Mapping):
            raise CheckpointError(f"the params of the configuration's {what} are no mapping")
        return cls(section["target"], dict(params))


def read(config: str | Path | Mapping[str, Any]) -> Target:
    """The `model` of an original YAML, given as a file or as what is in it.

    Raises:
        CheckpointError: not there, no YAML, or no configuration of the original.
    """
    value: Any = config
    if not isinstance(config, Mapping):
        file = Path(config).expanduser()
        if not file.is_file():
            raise CheckpointError(f"there is no configuration at {config}", hint="give the model's own YAML")
        try:
            value = strict_yaml.parse_file(file).value
        except LdmkitError as error:
            raise CheckpointError(error.message, where=error.where) from error
    if not isinstance(value, Mapping) or "model" not in value:
        raise CheckpointError("the configuration has no `model`", hint="give the YAML that came with the weights")
    return Target.of(value["model"], "model")


def is_autoencoder(model: Target) -> bool:
    """Whether the configuration describes an autoencoder alone."""
    return model.short in AUTOENCODERS


def autoencoder(stage: Target) -> Json:
    """`ldmkit.autoencoder.make(**options)` of a first stage."""
    if stage.short not in AUTOENCODERS:
        raise CheckpointError(
            f"no autoencoder of ldmkit is like {stage.name}; read are {', '.join(AUTOENCODERS)}",
        )
    kind = AUTOENCODERS[stage.short]
    if kind == "identity":
        return {"type": kind}
    network = stage.params.get("ddconfig")
    if not isinstance(network, Mapping):
        raise CheckpointError(f"{stage.name} has no ddconfig in the configuration")
    _refuse(network, _NETWORK_OFF, "autoencoder")
    bounded(network, ("num_res_blocks", "ch_mult"), "ddconfig")
    width = _need(network, "z_channels", "ddconfig")
    if stage.params.get("embed_dim", width) != width:
        raise CheckpointError(
            f"embed_dim {stage.params['embed_dim']} differs from z_channels {width}; ldmkit has one latent width"
        )
    if bool(network.get("double_z", True)) != (kind == "kl"):
        raise CheckpointError(f"double_z {network.get('double_z', True)} does not go with {stage.short}")
    if stage.params.get("remap") is not None:
        raise CheckpointError("a codebook with `remap` (a used subset of codes) is not read")
    if network.get("out_ch", network.get("in_channels", 3)) != network.get("in_channels", 3):
        raise CheckpointError("an autoencoder whose output has other channels than its input is not read")
    options: Json = {"type": kind, "latent_channels": width, **_network(network)}
    if kind == "vq":
        # The released code weights the codebook term by beta and the commitment term by 1 ("legacy").
        options |= {"codebook": _need(stage.params, "n_embed", "first stage"), "swapped": True}
    return options


def _network(network: Mapping[str, Any]) -> Json:
    multipliers = list(network.get("ch_mult", (1, 2, 4, 8)))
    grouped([_need(network, "ch", "ddconfig") * factor for factor in (1, *multipliers)], GROUPS, "autoencoder")
    resolution = int(_need(network, "resolution", "ddconfig"))
    sides = [resolution // 2**level for level in range(len(multipliers))]
    kind = "linear" if network.get("use_linear_attn") else network.get("attn_type", "vanilla")
    kind = "vanilla" if kind == "vanilla-xformers" else kind
    attends = kind != "none"
    return {
        "image_channels": network.get("in_channels", 3),
        "downsample": 2 ** (len(multipliers) - 1),
        "channels": _need(network, "ch", "ddconfig"),
        "multipliers": multipliers,
        "blocks": _need(network, "num_res_blocks", "ddconfig"),
        # Sides that no level has are without effect in the original.
        "attention": [side for side in network.get("attn_resolutions", ()) if side in sides] if attends else [],
        "resolution": resolution,
        "attention_type": kind,
        "middle_attention": attends,
        "dropout": float(network.get("dropout", 0.0)),
        "groups": GROUPS,
    }


def denoiser(network: Target, heads: int | None = None) -> Json:
    """`UNet.of_widths(**options)` of a `unet_config`, its three widths among them; `heads` instead of what the YAML says."""
    params = network.params
    if network.short != "UNetModel":
        raise CheckpointError(f"no UNet of ldmkit is like {network.name}; UNetModel is read")
    _refuse(params, _UNET_OFF, "UNet")
    bounded(params, ("num_res_blocks", "transformer_depth", "channel_mult"), "unet_config")
    multipliers = list(params.get("channel_mult", (1, 2, 4, 8)))
    grouped([_need(params, "model_channels", "unet_config") * factor for factor in (1, *multipliers)], GROUPS, "UNet")
    factors = [2**level for level in range(len(multipliers))]
    classes = params.get("num_classes")
    if classes is not None and not isinstance(classes, int):
        raise CheckpointError(f"a UNet with num_classes {classes!r} is not read; a number is")
    transformer = bool(params.get("use_spatial_transformer", False))
    context = params.get("context_dim") if transformer else None
    context = context[0] if isinstance(context, list) and len(context) == 1 else context
    return {
        "in_channels": _need(params, "in_channels", "unet_config"),
        "out_channels": _need(params, "out_channels", "unet_config"),
        "context_width": context,
        "channels": _need(params, "model_channels", "unet_config"),
        "multipliers": multipliers,
        "blocks": _need(params, "num_res_blocks", "unet_config"),
        # Factors of down-sampling that no level has are without effect in the original.
        "attention": [
            int(factor) for factor in _need(params, "attention_resolutions", "unet_config") if factor in factors
        ],
        **_heads(params, heads),
        "transformer_depth": params.get("transformer_depth", 1),
        "dropout": float(params.get("dropout", 0.0)),
        "variant": {
            "scale_shift": bool(params.get("use_scale_shift_norm", False)),
            "resample_blocks": bool(params.get("resblock_updown", False)),
            "linear_projection": bool(params.get("use_linear_in_transformer", False)),
            "self_transformer": transformer and context is None,
            "groups": GROUPS,
            "classes": classes,
        },
    }


def _heads(params: Mapping[str, Any], heads: int | None) -> Json:
    if heads is not None:
        return {"heads": heads}
    width, count = params.get("num_head_channels", -1), params.get("num_heads", -1)
    if width != -1:
        return {"head_width": width}
    if count == -1:
        raise CheckpointError("the unet_config has neither num_heads nor num_head_channels", hint="give heads=")
    return {"heads": count}


def diffusion(params: Mapping[str, Any]) -> Json:
    """`ldmkit.diffusion.make(**options)` of the original's LatentDiffusion."""
    prediction = params.get("parameterization", "eps")
    if prediction not in ("eps", "x0", "v"):
        raise CheckpointError(f"parameterization {prediction!r} is not read; eps, x0 and v are")
    return {
        "schedule": _schedule(params),
        "prediction": prediction,
        "loss": params.get("loss_type", "l2"),
        "elbo": float(params.get("original_elbo_weight", 0.0)),
        "learn_logvar": bool(params.get("learn_logvar", False)),
        "logvar": float(params.get("logvar_init", 0.0)),
    }


def _schedule(params: Mapping[str, Any]) -> Json:
    if (betas := params.get("given_betas")) is not None:
        return {"type": "given", "betas": list(betas)}
    name, timesteps = params.get("beta_schedule", "linear"), int(params.get("timesteps", 1000))
    if name not in SCHEDULES:
        raise CheckpointError(f"no schedule is called {name!r} in the original; it has {', '.join(SCHEDULES)}")
    if name == "cosine":
        return {"type": "cosine", "offset": float(params.get("cosine_s", 8e-3)), "timesteps": timesteps}
    start, end = float(params.get("linear_start", 1e-4)), float(params.get("linear_end", 2e-2))
    return {"type": SCHEDULES[name], "start": start, "end": end, "timesteps": timesteps}


def _refuse(params: Mapping[str, Any], off: Mapping[str, Any], what: str) -> None:
    for name, value in off.items():
        if name in params and params[name] != value and (params[name] or value):
            raise CheckpointError(f"the {what}'s option {name}: {params[name]!r} is not what ldmkit can represent")


def _need(params: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in params:
        raise CheckpointError(f"the configuration's {where} has no {name}")
    return params[name]
