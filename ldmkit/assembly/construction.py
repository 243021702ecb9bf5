"""A model from a recipe, or from what `config.json` holds; widths follow from the autoencoder and the conditioners."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ldmkit import autoencoder as autoencoders
from ldmkit import diffusion as objectives
from ldmkit import plugins, random
from ldmkit.assembly.inheritance import inherited
from ldmkit.assembly.sources import source_of
from ldmkit.conditioning import Conditioner, ConditionerSet, Dropout, LatentSpec, Ports, StoredNull
from ldmkit.conditioning.checks import called
from ldmkit.data import Source
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import PluginError, UsageError
from ldmkit.fields import Field
from ldmkit.guidance import parse
from ldmkit.latent_diffusion import LatentDiffusion, Sampler, Slot
from ldmkit.plugins import Registry
from ldmkit.plugins.options import derived
from ldmkit.recipe import Recipe

# Keys of the autoencoder's section that its constructor does not take.
NOT_OPTIONS = {"type", "from", "scale", "train", "loss"}
DERIVED_WIDTHS = ("in_channels", "out_channels", "context_width")
_FILLING = {"normal_", "uniform_", "trunc_normal_"}


def build(recipe: Recipe, registry: Registry | None = None, *, source: Source | None = None) -> LatentDiffusion:
    """The model of a recipe on the CPU, with fresh weights drawn from the recipe's seed.

    Args:
        source: the recipe's data source, where it was made before.

    Raises:
        RecipeError: an option that `fit` learns from data is missing; the error names slot and option.
    """
    registry = registry or plugins.load()
    recipe = inherited(recipe.validate_components(registry), registry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.key(recipe.seed, "init", 0))
        model = assemble(_description(recipe, registry, source), registry)
        if not any(parameter.is_meta for parameter in model.parameters()):
            for slot, conditioner in model.conditioners.items():
                called(model.conditioners.examiner(slot).who, "load_pretrained", conditioner.load_pretrained)
    _check_guidance(recipe, model)
    from ldmkit.assembly.restoration import load  # it is made of what is here

    model.loader = partial(load, registry=registry)
    return model


def _check_guidance(recipe: Recipe, model: LatentDiffusion) -> None:
    """What the recipe samples with is possible: found out before anything is trained. Raises RecipeError."""
    section = recipe.sample
    kind = section.guidance_options.type
    # Autoguidance needs no null; two others need one whatever the scale is.
    asked = {"autoguidance": (), "plus-plus": (0.0,), "perp-neg": (0.0,)}.get(kind, (section.guidance,))
    try:
        for guidance in asked:
            parse(guidance, tuple(model.conditioners), model.conditioners.dropout.trained)
    except UsageError as error:
        raise recipe.error(error.message, "sample", "guidance", hint=error.hint) from error


def _description(recipe: Recipe, registry: Registry, source: Source | None) -> dict[str, Any]:
    """What `config.json` of the recipe's model says."""
    resolved = recipe.resolved(redact=False)
    channels = recipe.data.channels or (source or source_of(recipe, registry)).info().channels
    first_stage = {key: value for key, value in resolved["autoencoder"].items() if key not in NOT_OPTIONS}
    first_stage["image_channels"] = first_stage.get("image_channels") or channels
    _check_channels(recipe, first_stage["image_channels"], channels)
    sampling = {key: value for key, value in resolved["sample"].items() if key not in ("type", "count", "seed")}
    return {
        "size": list(recipe.data.shape),
        "autoencoder": {"type": recipe.autoencoder.type, **first_stage},
        "denoiser": {key: value for key, value in resolved["denoiser"].items() if key != "type"},
        "diffusion": resolved["diffusion"],
        "conditioners": {name: _slot(recipe, name, registry) for name in recipe.conditioners},
        "dropout": _dropout(recipe).to_json(),
        "sampling": {"sampler": recipe.sample.type, **sampling},
    }


def _check_channels(recipe: Recipe, given: int, found: int) -> None:
    if given != found:
        raise recipe.error(
            f"is {given}, and the pictures have {found} channels",
            "autoencoder",
            "image_channels",
            hint="leave it out, or set data.channels",
        )


def _slot(recipe: Recipe, name: str, registry: Registry) -> dict[str, Any]:
    slot = recipe.conditioners[name]
    model = registry.conditioners.options(slot.type)
    missing = [option for option in model.required() if option not in slot.options]
    if missing:
        raise recipe.error(
            f"{', '.join(missing)} is not known yet: it is learned from the data",
            "conditioners",
            name,
            hint="call ldmkit.fit(recipe) before ldmkit.build, or give the option in the recipe",
        )
    origin = registry.conditioners.entry(slot.type).origin
    return {
        "type": slot.type,
        "options": model.read(slot.options).plain(),
        "fields": dict(slot.fields_),
        "origin": {key: value for key, value in vars(origin).items() if value is not None},
        "known": slot.known or {},
    }


def _dropout(recipe: Recipe) -> Dropout:
    slots = tuple(recipe.conditioners)
    if recipe.dropout is not None:
        return Dropout.from_table(slots, recipe.dropout)
    return Dropout.independent({name: slot.dropout for name, slot in recipe.conditioners.items()})


def assemble(
    config: Mapping[str, Any], registry: Registry, left_out: Mapping[str, StoredNull] | None = None
) -> LatentDiffusion:
    """A model from what `config.json` holds; widths follow from the autoencoder and the conditioners.

    `left_out` holds what stands in for the slots whose plugins are not asked for.
    """
    first_stage = autoencoders.make(**config["autoencoder"])
    size = (int(config["size"][0]), int(config["size"][1]))
    spec = LatentSpec(first_stage.latent_channels, first_stage.factor, size)
    slots = {name: Slot.read(name, slot) for name, slot in config["conditioners"].items()}
    stored = left_out or {}
    conditioners = {n: stored[n] if n in stored else conditioner_of(n, s, spec, registry) for n, s in slots.items()}
    with torch.device("cpu"):  # a schedule is numbers, also where the networks are built on meta
        objective = objectives.make(**config["diffusion"])
    network = {key: value for key, value in config["denoiser"].items() if key not in DERIVED_WIDTHS}
    denoiser = UNet(
        in_channels=spec.channels + sum(c.emits.concat for c in conditioners.values()),
        out_channels=spec.channels,
        context_width=max((c.emits.tokens for c in conditioners.values()), default=0) or None,
        **network,
    )
    return LatentDiffusion(
        first_stage,
        denoiser,
        ConditionerSet(
            conditioners,
            vector_width=denoiser.vector_width,
            fields={name: slot.fields for name, slot in slots.items()},
            dropout=Dropout.from_table(tuple(slots), config["dropout"]),
            origins={name: slot.plugin for name, slot in slots.items()},
        ),
        objective,
        size=size,
        samplers=samplers(registry),
        sampling=config["sampling"],
        slots=slots,
    )


def conditioner_of(name: str, slot: Slot, spec: LatentSpec, registry: Registry) -> Conditioner:
    """A slot's conditioner, fresh. Raises PluginError where its constructor fails or sets no ports."""
    kind = registry.conditioners.load(registered_type(slot, registry))
    arguments = registry.conditioners.options_of(kind).read(dict(slot.options)).arguments()
    who = f"the conditioner of slot {name} ({', '.join(filter(None, (kind.__name__, slot.plugin)))})"
    made: Conditioner = called(who, "__init__", lambda: kind(**arguments, **dict.fromkeys(derived(kind), spec)))
    if not isinstance(vars(made).get("emits"), Ports):
        raise PluginError(
            f"{who} has no ports: emits is {vars(made).get('emits')!r}",
            hint="set it in __init__: self.emits = Ports(...)",
        )
    made.known_fields = {field: Field.read(described) for field, described in slot.known.items()}
    return made


def registered_type(slot: Slot, registry: Registry) -> str:
    """The slot's type; where two plugins claim it, that of the plugin it was trained with."""
    distribution = slot.origin.get("distribution")
    twice = registry.conditioners.claims(slot.type) > 1
    return f"{distribution}:{slot.type}" if twice and distribution else slot.type


def samplers(registry: Registry) -> dict[str, Sampler]:
    """Every registered sampler that can be loaded."""
    return {name: _Lazy(name, registry) for name in registry.samplers.names()}


class _Lazy:
    """A sampler that is imported when it is first called."""

    def __init__(self, name: str, registry: Registry) -> None:
        self.name, self.registry = name, registry

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = self.registry.samplers.load(self.name)(*args, **options)
        return result


class Uninitialised(TorchFunctionMode):
    """Inside, `nn.init` does nothing: on meta there is nothing to fill, and trying imports the compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def reset_meta_buffers(
    model: LatentDiffusion,
    config: Mapping[str, Any],
    registry: Registry,
    left_out: Mapping[str, StoredNull] | None = None,
) -> None:
    """Buffers that are not saved were made on meta: taken from a model built on the CPU, where there are any."""
    if not any(buffer.is_meta for buffer in model.buffers()):
        return
    real = dict(assemble(config, registry, left_out).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = real[name]
