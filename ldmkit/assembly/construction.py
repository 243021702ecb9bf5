"""A model from what `config.json` holds; widths follow from the autoencoder and the conditioners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ldmkit import diffusion as objectives
from ldmkit.assembly.inheritance import DERIVED_WIDTHS
from ldmkit.autoencoder import Autoencoder
from ldmkit.conditioning import Conditioner, ConditionerSet, Dropout, LatentSpec, Ports, StoredNull
from ldmkit.conditioning.checks import called, check_state
from ldmkit.denoiser import Denoiser
from ldmkit.errors import LdmkitError, PluginError
from ldmkit.fields import Field
from ldmkit.latent_diffusion import LatentDiffusion, Sampler, Slot
from ldmkit.plugins import Registry
from ldmkit.plugins.catalog import Catalog
from ldmkit.plugins.options import fill

_FILLING = {"normal_", "uniform_", "trunc_normal_"}


def assemble(
    config: Mapping[str, Any], registry: Registry, left_out: Mapping[str, StoredNull] | None = None
) -> LatentDiffusion:
    """A model from what `config.json` holds; widths follow from the autoencoder and the conditioners.

    `left_out` holds what stands in for the slots whose plugins are not asked for.
    """
    first_stage = autoencoder_of(config["autoencoder"], registry)
    size = (int(config["size"][0]), int(config["size"][1]))
    spec = LatentSpec(first_stage.latent_channels, first_stage.factor, size)
    slots = {name: Slot.read(name, slot) for name, slot in config["conditioners"].items()}
    stored = left_out or {}
    conditioners = {n: stored[n] if n in stored else conditioner_of(n, s, spec, registry) for n, s in slots.items()}
    with torch.device("cpu"):  # a schedule is numbers, also where the networks are built on meta
        objective = objectives.make(**config["diffusion"], schedules=registry.schedules)
    denoiser = denoiser_of(config["denoiser"], registry, spec, joined([c.emits for c in conditioners.values()]))
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
        guidance=registry.guidance,
        sampling=config["sampling"],
        slots=slots,
        parts={
            "autoencoder": {
                **_described(registry.autoencoders, config["autoencoder"]),
                "image_channels": first_stage.image_channels,
            },
            "denoiser": _described(registry.denoisers, {"type": "unet", **config["denoiser"]}),
        },
        origins=config.get("origins"),
    )


def _described(catalog: Catalog, config: Mapping[str, Any]) -> dict[str, Any]:
    """Type and every option, defaults written out."""
    options = {key: value for key, value in config.items() if key not in ("type", *DERIVED_WIDTHS)}
    return {"type": config["type"], **catalog.options(config["type"]).read(options).plain()}


def latent_spec(model: LatentDiffusion) -> LatentSpec:
    """The latent space of a model."""
    return LatentSpec(model.autoencoder.latent_channels, model.autoencoder.factor, model.size)


def joined(emits: Sequence[Ports]) -> Ports:
    """What the conditioners feed together: tokens of the widest, all concat channels, the vectors' sum."""
    return Ports(
        tokens=max((ports.tokens for ports in emits), default=0),
        vector=max((ports.vector for ports in emits), default=0),
        concat=sum(ports.concat for ports in emits),
        length=sum(ports.length for ports in emits),
    )


def autoencoder_of(config: Mapping[str, Any], registry: Registry) -> Autoencoder:
    """The autoencoder of a configuration, `type` and options, fresh. Raises PluginError where nobody registers it."""
    options = {key: value for key, value in config.items() if key != "type"}
    kind = registry.autoencoders.load(config["type"])
    arguments = _arguments(registry.autoencoders, kind, options)
    made: Autoencoder = called(f"the autoencoder {config['type']}", "__init__", lambda: kind(**arguments))
    return made


def denoiser_of(config: Mapping[str, Any], registry: Registry, spec: LatentSpec, ports: Ports) -> Denoiser:
    """The denoiser of a configuration, `type` and options, fresh; without a type the UNet."""
    name = str(config.get("type", "unet"))
    options = {key: value for key, value in config.items() if key not in ("type", *DERIVED_WIDTHS)}
    kind = registry.denoisers.load(name)
    arguments = _arguments(registry.denoisers, kind, options) | fill(kind, LatentSpec=spec, Ports=ports)
    made: Denoiser = called(f"the denoiser {name}", "__init__", lambda: kind(**arguments))
    return made


def _arguments(catalog: Catalog, kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments; options that are null and that the core fills in are left to the constructor."""
    arguments = catalog.options_of(kind).read(options).arguments()
    return {name: value for name, value in arguments.items() if value is not None or name not in catalog.kind.filled}


def conditioner_of(name: str, slot: Slot, spec: LatentSpec, registry: Registry) -> Conditioner:
    """A slot's conditioner, fresh. Raises PluginError where its constructor fails or sets no ports."""
    kind = registry.conditioners.load(registered_type(slot, registry))
    arguments = registry.conditioners.options_of(kind).read(dict(slot.options)).arguments()
    who = f"the conditioner of slot {name} ({', '.join(filter(None, (kind.__name__, slot.plugin)))})"
    try:
        made: Conditioner = called(who, "__init__", lambda: kind(**arguments, **fill(kind, LatentSpec=spec)))
    except PluginError:
        raise
    except LdmkitError as error:  # of its options, which it does not know to be a slot's
        raise type(error)(f"slot {name}: {error.message}", hint=error.hint, where=error.where) from error
    if not isinstance(vars(made).get("emits"), Ports):
        raise PluginError(
            f"{who} has no ports: emits is {vars(made).get('emits')!r}",
            hint="set it in __init__: self.emits = Ports(...)",
        )
    check_state(who, made)
    made.known_fields = {field: Field.read(described) for field, described in slot.known.items()}
    return made


def registered_type(slot: Slot, registry: Registry) -> str:
    """The slot's type; where two plugins claim it, that of the plugin it was trained with."""
    distribution = slot.origin.get("distribution")
    twice = registry.conditioners.claims(slot.type) > 1
    return f"{distribution}:{slot.type}" if twice and distribution else slot.type


def samplers(registry: Registry) -> dict[str, Sampler]:
    """Every registered sampler that can be loaded."""
    return {name: _Lazy(name, registry.samplers.only(name)) for name in registry.samplers.names()}


class _Lazy:
    """A sampler that is imported when it is first called. It holds names alone, so that a model can be copied and pickled."""

    def __init__(self, name: str, catalog: Catalog) -> None:
        self.name, self.catalog = name, catalog

    @property
    def __wrapped__(self) -> Sampler:
        """The sampler itself, for whoever reads its options."""
        loaded: Sampler = self.catalog.load(self.name)
        return loaded

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = self.__wrapped__(*args, **options)
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
