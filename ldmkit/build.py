"""Recipe + Registry -> LatentDiffusion: the only place where names become objects."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode

from ldmkit import autoencoder as autoencoders
from ldmkit import diffusion as objectives
from ldmkit import plugins, random
from ldmkit.conditioning import Conditioner, ConditionerSet, Dropout, LatentSpec, Ports, StoredNull
from ldmkit.conditioning.examination import called
from ldmkit.data import Dataset, Source
from ldmkit.errors import CheckpointError, OfflineError, PluginError, RecipeError, UsageError
from ldmkit.latent_diffusion import LatentDiffusion, Sampler, Slot, read_config, read_nulls, read_weights
from ldmkit.options import derived
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.unet import UNet

FIT_SAMPLES = 4096  # of an endless source, for `fit`
NOT_OPTIONS = {
    "type",
    "from",
    "scale",
    "train",
    "loss",
}  # keys of the autoencoder's section that its constructor does not take


def datasets(recipe: Recipe, registry: Registry | None = None) -> tuple[Dataset, Dataset]:
    """The training data and the held-out data of a recipe, cut as its `data` section says."""
    registry = registry or plugins.load()
    recipe = recipe.validate_components(registry)
    source = source_of(recipe, registry)
    data = recipe.data
    aligned = frozenset(
        slot.fields_.get(name, name)
        for slot in recipe.conditioners.values()
        for name in registry.conditioners.load(slot.type).aligned
    )
    cut = partial(Dataset, size=data.shape, channels=data.channels, crop=data.crop, zoom=data.zoom, aligned=aligned)
    train = cut(source.split("train"), flip=data.flip, views=data.views, seed=recipe.seed)
    # Held-out pictures are seen in fixed views, never mirrored.
    seed = random.key(recipe.seed, "validation", 0)
    validation = cut(source.split("validation"), flip=False, views=data.views or 1, seed=seed)
    return train, validation


def source_of(recipe: Recipe, registry: Registry) -> Source:
    """The recipe's data source."""
    kind = registry.data_sources.load(recipe.data.type)
    options = registry.data_sources.options(recipe.data.type).read(recipe.data.options)
    # A source that draws its pictures takes the size they are wanted at; it is the section's own key, and no option.
    drawn = {"size": recipe.data.shape} if "size" in inspect.signature(kind).parameters else {}
    source: Source = kind(**options.arguments(), **drawn)
    return source


def fit(recipe: Recipe, registry: Registry | None = None) -> Recipe:
    """The recipe with what its conditioners learn from the training data (class lists, vocabularies) written into their slots.

    A value that the recipe gives wins. An endless source is read for its first samples.
    """
    registry = registry or plugins.load()
    recipe = recipe.validate_components(registry)
    changes: dict[str, Any] = {}
    source: Source | None = None
    for name, slot in recipe.conditioners.items():
        kind = registry.conditioners.load(slot.type)
        if kind.fit.__func__ is Conditioner.fit.__func__:  # type: ignore[attr-defined]  # learns nothing
            continue
        source = source or source_of(recipe, registry).split("train")
        given = _given(recipe, name)
        learned = _learned(name, slot.type, registry, given, _samples(source, slot.fields_))
        for key, value in learned.items():
            if key not in given:
                changes[f"conditioners.{name}.{key}"] = value
    return recipe.updated(changes).validate_components(registry) if changes else recipe


def _learned(
    slot: str, type_: str, registry: Registry, given: Mapping[str, Any], samples: Iterator[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the slot's `fit` returned, if it is a mapping of options to JSON values."""
    kind = registry.conditioners.load(type_)
    who = f"the conditioner of slot {slot} ({kind.__name__}, {registry.conditioners.entry(type_).origin})"
    learned = called(who, "fit", lambda: kind.fit(given, samples))
    known = registry.conditioners.options_of(kind).names()
    if not isinstance(learned, Mapping) or not set(learned) <= set(known):
        got = ", ".join(map(str, learned)) if isinstance(learned, Mapping) else type(learned).__name__
        raise PluginError(
            f"{who} learned {got}; `fit` returns a mapping of options: {', '.join(known) or 'there are none'}"
        )
    try:
        json.dumps(dict(learned))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{who} learned what no file can hold: {error}", hint="return numbers, text, lists and mappings from `fit`"
        ) from error
    return dict(learned)


def _given(recipe: Recipe, slot: str) -> dict[str, Any]:
    """The options that were written down: neither null nor a default that `validate_components` filled in is one."""
    written = recipe.document.value.get("conditioners", {}).get(slot) or {}
    options = recipe.conditioners[slot].options
    return {key: value for key, value in options.items() if value is not None and written.get(key) is not None}


def _samples(source: Source, fields: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The source's samples as a conditioner sees them: its own field names, nothing decoded that is not read."""
    count = source.info().count
    for index in range(FIT_SAMPLES if count is None else count):
        yield _Renamed(source[index], fields)


class _Renamed(Mapping[str, Any]):
    """A sample under other field names; fields load on access, as in the sample itself."""

    def __init__(self, sample: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        self._sample, self._fields = sample, fields

    def __getitem__(self, name: str) -> Any:
        return self._sample[self._fields.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter({*self._sample, *self._fields})

    def __len__(self) -> int:
        return len({*self._sample, *self._fields})


def build(recipe: Recipe, registry: Registry | None = None) -> LatentDiffusion:
    """The model of a recipe on the CPU, with fresh weights drawn from the recipe's seed.

    Raises:
        RecipeError: an option that `fit` learns from data is missing; the error names slot and option.
    """
    registry = registry or plugins.load()
    recipe = recipe.validate_components(registry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.key(recipe.seed, "init", 0))
        model = _assemble(_description(recipe, registry), registry)
        if not any(parameter.is_meta for parameter in model.parameters()):
            for conditioner in model.conditioners.values():
                conditioner.load_pretrained()
    return model


def _description(recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """What `config.json` of the recipe's model says."""
    resolved = recipe.resolved(redact=False)
    channels = recipe.data.channels or source_of(recipe, registry).info().channels
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
    }


def _dropout(recipe: Recipe) -> Dropout:
    slots = tuple(recipe.conditioners)
    if recipe.dropout is not None:
        return Dropout.from_table(slots, recipe.dropout)
    return Dropout.independent({name: slot.dropout for name, slot in recipe.conditioners.items()})


def _assemble(
    config: Mapping[str, Any], registry: Registry, nulls: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> LatentDiffusion:
    """A model from what `config.json` holds; widths follow from the autoencoder and the conditioners.

    `nulls` holds the stored nulls of the slots that are left out.
    """
    first_stage = autoencoders.make(**config["autoencoder"])
    size = (int(config["size"][0]), int(config["size"][1]))
    spec = LatentSpec(first_stage.latent_channels, first_stage.factor, size)
    slots = {name: Slot.read(name, slot) for name, slot in config["conditioners"].items()}
    left_out = {name: StoredNull(slot=name, tensors=tensors) for name, tensors in (nulls or {}).items()}
    conditioners = {n: left_out.get(n) or conditioner_of(n, slot, spec, registry) for n, slot in slots.items()}
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


DERIVED_WIDTHS = ("in_channels", "out_channels", "context_width")


def conditioner_of(name: str, slot: Slot, spec: LatentSpec, registry: Registry) -> Conditioner:
    """A slot's conditioner, fresh. Raises PluginError where its constructor fails or sets no ports."""
    kind = registry.conditioners.load(_registered(slot, registry))
    arguments = registry.conditioners.options_of(kind).read(dict(slot.options)).arguments()
    who = f"the conditioner of slot {name} ({', '.join(filter(None, (kind.__name__, slot.plugin)))})"
    made: Conditioner = called(who, "__init__", lambda: kind(**arguments, **dict.fromkeys(derived(kind), spec)))
    if not isinstance(vars(made).get("emits"), Ports):
        raise PluginError(
            f"{who} has no ports: emits is {vars(made).get('emits')!r}",
            hint="set it in __init__: self.emits = Ports(...)",
        )
    return made


def _registered(slot: Slot, registry: Registry) -> str:
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


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    *,
    without: Sequence[str] = (),
    registry: Registry | None = None,
) -> LatentDiffusion:
    """A trained model in eval mode on the CPU: from a run's directory, a saved model's, or a hub repository ("owner/name").

    The slots in `without` need no plugin: they are null, as the saved model keeps it, and take no value. Such a model samples;
    it is not saved again.

    Raises:
        CheckpointError: nothing that can be read is there, or its weights do not fit.
        PluginError: a conditioner's plugin is not installed; the error names distribution and version.
        OfflineError: a hub repository that is not in the local cache and cannot be fetched.
    """
    if weights not in ("ema", "raw"):
        raise CheckpointError(f"weights is {weights!r}; allowed are ema and raw")
    folder = model_folder(path)
    config = read_config(folder)
    nulls = {slot: read_nulls(folder, slot) for slot in _left_out(config, without)}
    registry = registry or plugins.load(files=_plugin_files(config, nulls))
    for name, slot in config["conditioners"].items():
        if name not in nulls:
            _require(name, slot, registry)
    with torch.device("meta"), _Uninitialised():
        model = _assemble(config, registry, nulls)
    skipped = tuple(f"conditioners.{slot}." for slot in nulls)
    tensors = {name: value for name, value in read_weights(folder, weights).items() if not name.startswith(skipped)}
    _check_fit(model, tensors, folder)
    model.load_state_dict(tensors, assign=True)
    _reset_meta_buffers(model, config, registry, nulls)
    model.autoencoder.requires_grad_(False)
    return model.eval()


class _Uninitialised(TorchFunctionMode):
    """Inside, `nn.init` does nothing: on meta there is nothing to fill, and trying imports the compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


_FILLING = {"normal_", "uniform_", "trunc_normal_"}


def _left_out(config: Mapping[str, Any], without: Sequence[str]) -> tuple[str, ...]:
    slots = config["conditioners"]
    if unknown := [slot for slot in without if slot not in slots]:
        raise UsageError(
            f"no slot is called {', '.join(unknown)}", hint=f"the slots of this model are {', '.join(slots) or 'none'}"
        )
    return tuple(dict.fromkeys(without))


def _require(name: str, described: Mapping[str, Any], registry: Registry) -> None:
    """The slot's plugin is here and takes the options that were saved. Raises PluginError naming what was trained with."""
    slot = Slot.read(name, described)
    pinned = "=={version}".format(**slot.origin) if "version" in slot.origin else ""
    get = (
        f"pip install {slot.origin['distribution']}{pinned}"
        if "distribution" in slot.origin
        else "give its file with -p"
    )
    instead = f"or leave it out: --without {name}, ldmkit.load(..., without=({name!r},)); it is null then"
    try:
        kind = registry.conditioners.load(_registered(slot, registry))
    except PluginError as error:
        raise PluginError(
            f"slot {name} needs the conditioner '{slot.type}' of {slot.plugin or 'a plugin'}, which cannot be loaded: "
            f"{error.message}",
            hint=f"{get}; {instead}",
        ) from error
    try:
        registry.conditioners.options_of(kind).read(dict(slot.options))
    except ValidationError as error:
        now = registry.conditioners.entry(_registered(slot, registry)).origin
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise PluginError(
            f"slot {name} was trained with {slot.plugin or 'a plugin'}, whose options {now} does not take: {wrong}",
            hint=f"{get}; {instead}",
        ) from error


def _plugin_files(config: Mapping[str, Any], left_out: Collection[str] = ()) -> list[str]:
    files = {slot["origin"].get("file") for name, slot in config["conditioners"].items() if name not in left_out}
    return sorted(file for file in files if file is not None and Path(file).is_file())


def _check_fit(model: LatentDiffusion, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not in the model" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            "the weights do not fit the configuration: " + "; ".join(wrong[:5]) + more, where=str(folder)
        )


def _reset_meta_buffers(
    model: LatentDiffusion,
    config: Mapping[str, Any],
    registry: Registry,
    nulls: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Buffers that are not saved were made on meta: taken from a model built on the CPU, where there are any."""
    if not any(buffer.is_meta for buffer in model.buffers()):
        return
    real = dict(_assemble(config, registry, nulls).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = real[name]


def model_folder(path: str | Path) -> Path:
    """Where `config.json` is: the directory itself, a run's `model`, or a snapshot of a hub repository."""
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "~", "/")):
        raise CheckpointError(
            f"there is no trained model in {path}",
            hint="give a finished run, a directory that `model.save` wrote, or owner/name",
        )
    return _snapshot(str(path))


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's errors have no common base, and say the same to a person
        raise OfflineError(
            f"{name} is neither a local directory nor a hub repository that can be fetched: {str(error).splitlines()[0]}",
            hint="check the path, or fetch the repository where there is a network and give its local directory",
        ) from error


__all__ = ["RecipeError", "build", "datasets", "fit", "load", "model_folder", "source_of"]
