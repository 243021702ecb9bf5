"""Whose is a foreign conditioning stage? Every registered conditioner is asked; the core knows none by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ldmkit.conditioning import Conditioner, ForeignStage, precomputed
from ldmkit.errors import PluginError
from ldmkit.latent_diffusion import Slot
from ldmkit.plugins import Registry
from ldmkit.plugins.options import derived

CLASSES = "ldm.modules.encoders.modules.ClassEmbedder"  # what a table of classes is called in the original


# Models and pipelines whose UNet reads channels beside the latent and text: the slot's name, and what lies in the channels.
BESIDE_LATENT = {
    "Inpaint": ("masked_image", "the mask (1: repainted), then the latent of the masked image"),
    "Depth": ("depth", "the depth map, in [-1, 1]"),
    "InstructPix2Pix": ("image", "the latent of the image, not scaled"),
    "Upscale": ("low_resolution", "the low-resolution image, noised to noise_level"),
}


@dataclass(frozen=True)
class Found:
    """A conditioner for a foreign stage: its slot's name, where it came from, its weights; and what a person should know."""

    name: str
    slot: Slot
    conditioner: Conditioner
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    read: frozenset[str] = frozenset()  # which of the stage's tensors the conditioner looked at
    encoded: bool = False  # nobody reads the stage: values are what it would have given


class Watched(Mapping[str, Tensor]):
    """A stage's tensors, remembering which of them were looked at; asking whether one is there is no look."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.read = tensors, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def find(stage: ForeignStage, registry: Registry) -> Found | None:
    """The first registered conditioner, by name, that says the stage is its own; None where nobody does.

    Raises:
        PluginError: a conditioner that returns something that cannot be made again from options.
    """
    notes = []
    for name in registry.conditioners.names():
        try:
            kind = registry.conditioners.load(name)
        except PluginError as error:
            notes.append(f"`from_foreign` of the conditioner {name} failed: {error.message}")
            continue
        watched = Watched(stage.tensors)
        claimed = _claim(kind, replace(stage, tensors=watched))
        if claimed is not None:
            conditioner, options = claimed
            slot = Slot(name, _plain(name, kind, options, registry), {}, _origin(name, registry))
            tensors = conditioner.state_dict()
            read = frozenset(watched.read)
            return Found(name.replace("-", "_"), slot, conditioner.eval(), tuple(notes), tensors, read)
    return None


def stand_in(stage: ForeignStage, *, tokens: int = 0, length: int = 0, vector: int = 0, registry: Registry) -> Found:
    """The condition as tensors that somebody else encodes: the core works, and what is missing is said."""
    options = {"tokens": tokens, "length": length if tokens else 0, "vector": vector, "concat": stage.channels}
    conditioner = precomputed.PrecomputedConditioner(**options)
    slot = Slot(precomputed.NAME, options, {"value": stage.key}, _origin(precomputed.NAME, registry))
    takes = " and ".join(
        text
        for text in (
            f"tokens (up to {length}, {tokens})" if tokens else "",
            f"vector ({vector},)" if vector else "",
            f"concat ({stage.channels}, h, w)" if stage.channels else "",
        )
        if text
    )
    note = (
        f"no installed plugin reads the conditioning stage {stage.target} ({stage.key}): autoencoder, UNet and schedule are "
        f"here, and the slot takes what that stage would give, {takes}; install a plugin for it and import again"
    )
    return Found(slot_name(stage.key), slot, conditioner.eval(), (note,), encoded=True)


def beside_latent(model: str, channels: int, registry: Registry) -> Found:
    """A slot for channels that a model or pipeline of this name joins to the latent: of the conditioner that reads them, else its
    value is what that would join."""
    name, what = next((value for key, value in BESIDE_LATENT.items() if key in model), ("concat", ""))
    stage = ForeignStage(model, {}, name, "concat", channels)
    if (claimed := find(stage, registry)) is not None:
        return claimed
    found = stand_in(stage, registry=registry)
    return replace(found, notes=(*found.notes, f"the channels of {found.name}: {what}")) if what else found


def class_table(table: Tensor, name: str, registry: Registry) -> Found:
    """A table (rows, width) inside a UNet, added to its time embedding, as a slot `name` by the vector port."""
    params = {"n_classes": table.shape[0], "null_class": None}
    stage = ForeignStage(CLASSES, params, name, "vector", 0, {"embedding.weight": table})
    found = find(stage, registry) or stand_in(stage, vector=table.shape[1], registry=registry)
    note = f"{name} has {table.shape[0]} rows and none for no class: without a value the mean of all rows is used"
    return replace(found, name=name, notes=found.notes if found.encoded else (*found.notes, note))


def slot_name(key: str) -> str:
    """A foreign field's name as a slot's."""
    name = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")
    name = name if name[:1].isalpha() else f"condition_{name}".rstrip("_")
    return f"{name}_" if name in ("null", "none", "all", "training") else name


def _claim(kind: type[Conditioner], stage: ForeignStage) -> tuple[Conditioner, dict[str, Any]] | None:
    """The conditioner that `kind` makes of the stage, and the options it made it with.

    `from_foreign` is called on a subclass whose constructor writes its arguments down.
    """
    recorded: list[dict[str, Any]] = []

    def remember(self: Conditioner, **options: Any) -> None:
        recorded.append(options)
        kind.__init__(self, **options)

    recording: Any = type(kind.__name__, (kind,), {"__init__": remember, "__module__": kind.__module__})
    found = recording.from_foreign(stage)
    if found is None:
        return None
    if type(found) is not recording:
        raise PluginError(
            f"{kind.__module__}.{kind.__name__}.from_foreign returned a {type(found).__name__} not made with `cls(...)`",
            hint="from_foreign is a classmethod and makes its result with cls(**options)",
        )
    found.__class__ = kind
    skipped = derived(kind)
    return found, {name: value for name, value in recorded[-1].items() if name not in skipped}


def _plain(name: str, kind: type[Conditioner], options: dict[str, Any], registry: Registry) -> dict[str, Any]:
    try:
        return registry.conditioners.options(name).read(json.loads(json.dumps(options))).plain()
    except (ValidationError, TypeError, ValueError) as error:
        raise PluginError(
            f"{kind.__name__}.from_foreign makes a conditioner with options that no file can hold: {error}"
        ) from error


def _origin(name: str, registry: Registry) -> dict[str, Any]:
    origin = registry.conditioners.entry(name).origin
    return {key: value for key, value in vars(origin).items() if value is not None}
