"""A trained model from a run, a saved model or the hub, with or without some of its conditioners' plugins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from ldmkit import plugins
from ldmkit.assembly.construction import Uninitialised, assemble, registered_type, reset_meta_buffers
from ldmkit.assembly.locations import model_folder
from ldmkit.conditioning import StoredNull
from ldmkit.errors import CheckpointError, PluginError, UsageError
from ldmkit.latent_diffusion import LatentDiffusion, Slot, read_config, read_nulls, read_weights
from ldmkit.messages import problems_of, tensor_differences
from ldmkit.plugins import Discovery, Registry


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    *,
    without: Sequence[str] = (),
    registry: Registry | None = None,
    reader: Callable[..., LatentDiffusion] | None = None,
) -> LatentDiffusion:
    """A trained model in eval mode on the CPU: from a run's directory, a saved model's, a name, or a hub repository.

    A name is that of a model which a plugin ships ("digits"); a hub repository is "owner/name"; what is on disk goes before both.

    The slots in `without` need no plugin: they are null, as the saved model keeps it, and take no value. Such a model samples
    and is evaluated; saved again it is whole, with the weights of these slots as they were. `reader` is what the model reads
    another one with (autoguidance by a path), a function as this one, which is the default.

    Raises:
        CheckpointError: nothing that can be read is there, or its weights do not fit.
        PluginError: a conditioner's plugin is not installed; the error names distribution and version.
        OfflineError: a hub repository that is not in the local cache and cannot be fetched.
    """
    if weights not in ("ema", "raw"):
        raise CheckpointError(f"weights is {weights!r}; allowed are ema and raw")
    folder = model_folder(path, registry)
    config = read_config(folder)
    if "denoiser" not in config:
        raise CheckpointError(
            f"{path} holds an autoencoder alone, and no model", hint="use it in a recipe, with autoencoder.from"
        )
    names = _left_out(config, without)
    # What comes from the hub is somebody else's, and may not say which files of this machine are run.
    files = plugin_files(config, names) if Path(path).expanduser().exists() else []
    registry = registry or plugins.load(files=files)
    require_parts(config, registry)
    for name, slot in config["conditioners"].items():
        if name not in names:
            _require(name, slot, registry)
    tensors = read_weights(folder, weights)
    left_out = {name: _stored_null(name, folder, tensors) for name in names}
    model = restore(config, tensors, registry, left_out, where=str(folder))
    model.loader = Reader(registry.discovery, reader or load)
    return model


@dataclass(frozen=True)
class Reader:
    """(path, weights) -> another model, by the same plugins: what a model reads the one to guide away from with.

    It holds how the plugins are found and no plugin, so that the model can be copied, pickled and sent.
    """

    discovery: Discovery
    read: Callable[..., LatentDiffusion] = load

    def __call__(self, path: str, weights: str) -> LatentDiffusion:
        return self.read(path, weights, registry=self.discovery.again())


def _stored_null(slot: str, folder: Path, tensors: dict[str, torch.Tensor]) -> StoredNull:
    """What stands in for a slot that is left out; its weights go from `tensors` into it, so that saving loses none."""
    prefix = f"conditioners.{slot}."
    weights = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    return StoredNull(slot=slot, tensors=read_nulls(folder, slot), weights=weights)


def _left_out(config: Mapping[str, Any], without: Sequence[str]) -> tuple[str, ...]:
    slots = config["conditioners"]
    if unknown := [slot for slot in without if slot not in slots]:
        raise UsageError(
            f"no slot is called {', '.join(unknown)}", hint=f"the slots of this model are {', '.join(slots) or 'none'}"
        )
    return tuple(dict.fromkeys(without))


def require_parts(config: Mapping[str, Any], registry: Registry) -> None:
    """What the model's networks and its schedule are registered as is here. Raises PluginError naming what was trained with."""
    origins = config.get("origins", {})
    named = {
        "autoencoder": (registry.autoencoders, config["autoencoder"]["type"]),
        "denoiser": (registry.denoisers, config["denoiser"].get("type", "unet")),
        "schedule": (registry.schedules, config["diffusion"]["schedule"].get("type", "linear")),
    }
    for part, (catalog, kind) in named.items():
        try:
            catalog.load(kind)
        except PluginError as error:
            origin = origins.get(part, {})
            raise PluginError(
                f"the model's {part} is '{kind}' of {_words(origin)}, which cannot be loaded: {error.message}",
                hint=_remedy(origin),
            ) from error


def _words(origin: Mapping[str, str]) -> str:
    return " ".join(filter(None, (origin.get("distribution"), origin.get("version")))) or origin.get("file", "a plugin")


def _remedy(origin: Mapping[str, str]) -> str:
    pinned = f"=={origin['version']}" if "version" in origin else ""
    return f"pip install {origin['distribution']}{pinned}" if "distribution" in origin else "give its file with -p"


def _require(name: str, described: Mapping[str, Any], registry: Registry) -> None:
    """The slot's plugin is here and takes the options that were saved. Raises PluginError naming what was trained with."""
    slot = Slot.read(name, described)
    get = _remedy(slot.origin)
    instead = f"or leave it out: --without {name}, ldmkit.load(..., without=({name!r},)); it is null then"
    try:
        kind = registry.conditioners.load(registered_type(slot, registry))
    except PluginError as error:
        raise PluginError(
            f"slot {name} needs the conditioner '{slot.type}' of {slot.plugin or 'a plugin'}, which cannot be loaded: "
            f"{error.message}",
            hint=f"{get}; {instead}",
        ) from error
    try:
        registry.conditioners.options_of(kind).read(dict(slot.options))
    except ValidationError as error:
        now = registry.conditioners.entry(registered_type(slot, registry)).origin
        names = registry.conditioners.options_of(kind).names()
        problems = problems_of(error, dict(slot.options), lambda path: () if path else names)
        wrong = "; ".join(f"{problem.key}: {problem.text}" for problem in problems)
        raise PluginError(
            f"slot {name} was trained with {slot.plugin or 'a plugin'}, whose options {now} does not take: {wrong}",
            hint=f"{get}; {instead}",
        ) from error


def restore(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    registry: Registry,
    left_out: Mapping[str, StoredNull] | None = None,
    *,
    where: str,
) -> LatentDiffusion:
    """The model that `config` describes with exactly these weights, in eval mode; no weight is drawn first.

    Raises CheckpointError, of `where`, for tensors that are not the model's.
    """
    with torch.device("meta"), Uninitialised():
        model = assemble(config, registry, left_out)
    if wrong := tensor_differences(model.state_dict(), tensors):
        raise CheckpointError(f"the weights do not fit the configuration: {wrong}", where=where)
    tied = _tied(model)
    # Of a parameter's names, only the one it is trained under has raw weights beside the average.
    same = {name: tensors[first] for first, *others in tied for name in others}
    model.load_state_dict({**tensors, **same}, assign=True)
    for first, *others in tied:
        for name in others:
            _set(model, name, model.get_parameter(first))
    reset_meta_buffers(model, config, registry, left_out)
    model.autoencoder.requires_grad_(False)
    return model.eval()


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, the one it is trained and averaged under first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = parameter


def plugin_files(config: Mapping[str, Any], left_out: Collection[str] = ()) -> list[str]:
    """The files that a model's conditioners and networks were trained from with `-p`, where they are still on this machine.

    They are code, and run. A relative path would be whatever lies in the working directory, so only absolute ones count.
    """
    files = {slot["origin"].get("file") for name, slot in config["conditioners"].items() if name not in left_out}
    files |= {origin.get("file") for origin in config.get("origins", {}).values()}
    return sorted(file for file in files if file is not None and Path(file).is_absolute() and Path(file).is_file())
