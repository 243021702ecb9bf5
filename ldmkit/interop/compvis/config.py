"""The original's YAML as ldmkit's options: what `config.json` would say of the same networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.errors import CheckpointError, LdmkitError
from ldmkit.interop.compvis import defaults
from ldmkit.interop.compvis.defaults import Params
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
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
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
        """From ``{target: ..., params: {...}}``, or one of the original's words (``__is_first_stage__``).

        Raises CheckpointError for a section without a target, or whose params are no mapping.
        """
        if isinstance(section, str):
            return cls(section, {})
        if not isinstance(section, Mapping) or not isinstance(section.get("target"), str):
            raise CheckpointError(f"the configuration's {what} names no target")
        params = section.get("params") or {}
        if not isinstance(params, Mapping):
            raise CheckpointError(f"the params of the configuration's {what} are not a mapping")
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
    """`ldmkit.autoencoder.make(**options)` of a first stage.

    Raises CheckpointError, naming the option, for an autoencoder that ldmkit does not have.
    """
    if stage.short not in AUTOENCODERS:
        raise CheckpointError(
            f"ldmkit has no autoencoder like {stage.name}; supported are {', '.join(AUTOENCODERS)}",
        )
    kind = AUTOENCODERS[stage.short]
    if kind == "identity":
        return {"type": kind}
    params = Params(stage.params, defaults.FIRST_STAGE, "first stage")
    if not isinstance(params["ddconfig"], Mapping):
        raise CheckpointError(f"the ddconfig of {stage.name} in the configuration is not a mapping")
    network = Params(params["ddconfig"], defaults.NETWORK, "ddconfig")
    _refuse(network, _NETWORK_OFF, "autoencoder")
    bounded(network, ("num_res_blocks", "ch_mult"), "ddconfig")
    width = network["z_channels"]
    if params["embed_dim"] != width:
        raise CheckpointError(
            f"embed_dim {params['embed_dim']} differs from z_channels {width}; ldmkit has one latent width"
        )
    if bool(network["double_z"]) != (kind == "kl"):
        raise CheckpointError(f"double_z {network['double_z']} does not go with {stage.short}")
    if params["remap"] is not None:
        raise CheckpointError("a codebook with `remap` (a used subset of codes) is not supported")
    if network["out_ch"] != network["in_channels"]:
        raise CheckpointError("an autoencoder whose output has other channels than its input is not supported")
    options: Json = {"type": kind, "latent_channels": width, **_network(network)}
    if kind == "vq":
        # The released code weights the codebook term by beta and the commitment term by 1 ("legacy").
        options |= {"codebook": params["n_embed"], "swapped": True}
    return options


def _network(network: Params) -> Json:
    multipliers = list(network["ch_mult"])
    grouped([network["ch"] * factor for factor in (1, *multipliers)], GROUPS, "autoencoder")
    resolution = int(network["resolution"])
    sides = [resolution // 2**level for level in range(len(multipliers))]
    kind = "linear" if network["use_linear_attn"] else network["attn_type"]
    kind = "vanilla" if kind == "vanilla-xformers" else kind
    attends = kind != "none"
    return {
        "image_channels": network["in_channels"],
        "downsample": 2 ** (len(multipliers) - 1),
        "channels": network["ch"],
        "multipliers": multipliers,
        "blocks": network["num_res_blocks"],
        # Sides that no level has are without effect in the original.
        "attention": [side for side in network["attn_resolutions"] if side in sides] if attends else [],
        "resolution": resolution,
        "attention_type": kind,
        "middle_attention": attends,
        "dropout": float(network["dropout"]),
        "groups": GROUPS,
    }


def denoiser(network: Target, heads: int | None = None) -> Json:
    """`UNet.of_widths(**options)` of a `unet_config`, its three widths among them.

    `heads` is taken instead of what the YAML says. Raises CheckpointError, naming the option, for a network that ldmkit
    does not have.
    """
    params = network.params
    if network.short != "UNetModel":
        raise CheckpointError(f"ldmkit has no UNet like {network.name}; UNetModel is supported")
    params = Params(network.params, defaults.UNET, "unet_config")
    known = {*defaults.UNET, *defaults.UNET_NEEDED, *defaults.UNET_WITHOUT_EFFECT}
    if unknown := sorted(set(params) - known):
        raise CheckpointError(
            f"the unet_config says {', '.join(unknown)}, which the original's UNetModel does not have"
        )
    _refuse(params, _UNET_OFF, "UNet")
    if params["num_heads_upsample"] not in (-1, params["num_heads"]):
        raise CheckpointError("a UNet with other heads on the way up (num_heads_upsample) is not supported")
    bounded(params, ("num_res_blocks", "transformer_depth", "channel_mult"), "unet_config")
    multipliers = list(params["channel_mult"])
    grouped([params["model_channels"] * factor for factor in (1, *multipliers)], GROUPS, "UNet")
    factors = [2**level for level in range(len(multipliers))]
    transformer = bool(params["use_spatial_transformer"])
    context = params["context_dim"] if transformer else None
    context = context[0] if isinstance(context, list) and len(context) == 1 else context
    # Factors of down-sampling that no level has are without effect in the original.
    attention = [int(factor) for factor in params["attention_resolutions"] if factor in factors]
    return {
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "context_width": context,
        "channels": params["model_channels"],
        "multipliers": multipliers,
        "blocks": params["num_res_blocks"],
        "attention": attention,
        **_heads(params, heads),
        "transformer_depth": params["transformer_depth"],
        "dropout": float(params["dropout"]),
        "variant": {
            "scale_shift": bool(params["use_scale_shift_norm"]),
            "resample_blocks": bool(params["resblock_updown"]),
            "linear_projection": bool(params["use_linear_in_transformer"]),
            "self_transformer": transformer and context is None,
            "groups": GROUPS,
            "only_cross_attention": _only_cross(params, factors, attention),
            **_labels(params),
        },
    }


def _only_cross(params: Params, factors: list[int], attention: list[int]) -> list[int]:
    """The levels whose transformers read tokens twice (`disable_self_attentions`, one entry a level)."""
    said = params["disable_self_attentions"]
    if said is None:
        return []
    if not isinstance(said, list) or len(said) != len(factors):
        raise CheckpointError(
            f"disable_self_attentions is {said!r}; it has one entry for each of {len(factors)} levels"
        )
    return [factor for factor, disabled in zip(factors, said, strict=True) if disabled and factor in attention]


def _labels(params: Params) -> Json:
    """`num_classes`: rows of a table, or `sequential` for a vector that two layers map."""
    match params["num_classes"]:
        case None:
            return {"classes": None}
        case bool():
            pass
        case int() as rows:
            return {"classes": rows}
        case "sequential":
            return {"classes": None, "vector": params["adm_in_channels"]}
    raise CheckpointError(
        f"a UNet with num_classes {params['num_classes']!r} is not supported; a number and sequential are"
    )


def _heads(params: Params, heads: int | None) -> Json:
    if heads is not None:
        return {"heads": heads}
    width, count = params["num_head_channels"], params["num_heads"]
    if width != -1:
        return {"head_width": width}
    if count == -1:
        raise CheckpointError("the unet_config has neither num_heads nor num_head_channels", hint="give heads=")
    return {"heads": count}


def diffusion(given: Mapping[str, Any]) -> Json:
    """`ldmkit.diffusion.make(**options)` of the original's LatentDiffusion.

    Raises CheckpointError for a parameterization or a schedule that is not supported.
    """
    params = Params(given, defaults.LATENT_DIFFUSION, "params")
    prediction = params["parameterization"]
    if prediction not in ("eps", "x0", "v"):
        raise CheckpointError(f"parameterization {prediction!r} is not supported; eps, x0 and v are")
    return {
        "schedule": _schedule(params),
        "prediction": prediction,
        "loss": params["loss_type"],
        "elbo": float(params["original_elbo_weight"]),
        "learn_logvar": bool(params["learn_logvar"]),
        "logvar": float(params["logvar_init"]),
    }


def _schedule(params: Params) -> Json:
    if (betas := params["given_betas"]) is not None:
        return {"type": "given", "betas": list(betas)}
    name, timesteps = params["beta_schedule"], int(params["timesteps"])
    if name not in SCHEDULES:
        raise CheckpointError(f"no schedule is called {name!r} in the original; it has {', '.join(SCHEDULES)}")
    if name == "cosine":
        return {"type": "cosine", "offset": float(params["cosine_s"]), "timesteps": timesteps}
    start, end = float(params["linear_start"]), float(params["linear_end"])
    return {"type": SCHEDULES[name], "start": start, "end": end, "timesteps": timesteps}


def _refuse(params: Params, off: Mapping[str, Any], what: str) -> None:
    for name, value in off.items():
        if params[name] != value and (params[name] or value):
            raise CheckpointError(f"the {what}'s option {name}: {params[name]!r} is not what ldmkit can represent")
