"""Writes `core_schema.py`: the options of the core's own components, for recipes that are checked without torch.

    python -m ldmkit.recipe.generate

Constructors say what the options are; this reads them as `ldmkit.plugins.options` does for anybody's components, and writes them
down as pydantic models. A test compares the file with what is written today.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ldmkit import plugins
from ldmkit.plugins import options

PLACE = Path(__file__).with_name("core_schema.py")
HEAD = '''"""The options of the core's own components. Written by `python -m ldmkit.recipe.generate`: change the constructors."""

# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ldmkit.recipe.base import Section
'''
# Sections that one function or class of the core reads: name -> (object, parameters that are no keys of a recipe).
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "DataKeys": ("ldmkit.data:Dataset", ("seed", "aligned")),
    "ScheduleKeys": ("ldmkit.schedules:make", ("schedules",)),
    "DiffusionKeys": (
        "ldmkit.diffusion:make",
        ("schedule", "loss", "weighting", "timestep_sampling", "schedules"),
    ),
    "AutoencoderLoss": ("ldmkit.autoencoder:AutoencoderLoss", ("image_channels",)),
    "RuntimeKeys": ("ldmkit.training.runtime:resolve", ()),
}
# Parameters that a recipe has no key for, of dataclasses inside these.
NO_KEYS = {"AdversarialOptions": ("condition_channels",)}
# What a recipe chooses by name and no hook adds to: kind -> table of the core.
TABLES = {
    "distances": "ldmkit.diffusion:DISTANCES",
    "weightings": "ldmkit.diffusion:WEIGHTINGS",
    "timestep_samplings": "ldmkit.diffusion:TIMESTEP_SAMPLINGS",
}
SUFFIXES = {
    "conditioners": "Conditioner",
    "denoisers": "Denoiser",
    "autoencoders": "Autoencoder",
    "losses": "Loss",
    "optimizers": "Optimizer",
    "schedules": "Schedule",
    "guidance": "Guidance",
    "data_sources": "Source",
    "samplers": "Sampler",
    "metrics": "Metric",
    "distances": "Distance",
    "weightings": "Weighting",
    "timestep_samplings": "TimestepSampling",
}
Option = tuple[str, Any, Any]


def text() -> str:
    """What `core_schema.py` should hold. Imports every component of the core."""
    writer = _Writer()
    for name, (target, left_out) in SECTIONS.items():
        made = _object(target)
        function = made.__init__ if inspect.isclass(made) else made  # what stands before the `*` is no key
        writer.write(name, made, list(options.declared(function, left_out)))
    tables: dict[str, dict[str, str]] = {}
    for kind, named in components().items():
        tables[kind] = {}
        for name, (loaded, declared) in named.items():
            title = "".join(word.capitalize() for word in name.split("-")) + SUFFIXES[kind]
            tables[kind][name] = title
            writer.write(title, loaded, declared)
    lines = ["# Kind -> registered name -> its options.", "COMPONENTS: dict[str, dict[str, type[Section]]] = {"]
    for kind, titles in tables.items():
        lines.append(f'    "{kind}": {{')
        lines += [f'        "{name}": {title},' for name, title in titles.items()]
        lines.append("    },")
    return "\n".join([HEAD, *writer.parts, *lines, "}", ""])


def components() -> dict[str, dict[str, tuple[Any, list[Option]]]]:
    """Kind -> name -> (object, its options) of everything that the core registers, and of its tables."""
    found: dict[str, dict[str, tuple[Any, list[Option]]]] = {}
    for kind, catalog in plugins.load(only=()).catalogs.items():
        found[kind] = {}
        for entry in catalog.entries():
            loaded = catalog.load(entry.name)
            found[kind][entry.name] = loaded, _fill(options.declared(loaded, catalog.kind.skipped), catalog.kind.filled)
    for kind, target in TABLES.items():
        table: Mapping[str, Any] = _object(target)
        found[kind] = {name: (loaded, list(options.declared(loaded))) for name, loaded in table.items()}
    return found


def _fill(declared: Iterator[Option], filled: Collection[str]) -> list[Option]:
    return [
        (name, annotation | None, None) if name in filled else (name, annotation, default)
        for name, annotation, default in declared
    ]


def _object(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class _Writer:
    """Classes as source text, those that others mention first."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._written: dict[type, str] = {}

    def write(self, title: str, target: Callable[..., Any], declared: Sequence[Option]) -> None:
        """A class `title` of these options, with what the docstrings say of each."""
        said, lines = options.helps(target), []
        for name, annotation, default in declared:
            source = self._annotation(annotation)
            if name in said:
                source = f"Annotated[{source}, Field(description={said[name]!r})]"
            lines.append(f"    {name}: {source}" + ("" if default is ... else f" = {self._default(default)}"))
        about = (inspect.getdoc(target) or title).splitlines()[0]
        self.parts.append(f'\nclass {title}(Section):\n    """{about}"""\n\n' + "\n".join(lines) + "\n")

    def _nested(self, kind: type) -> str:
        if kind not in self._written:
            self._written[kind] = kind.__name__
            left_out = NO_KEYS.get(kind.__name__, ())
            self.write(kind.__name__, kind, [o for o in options.keywords(kind) if o[0] not in left_out])
        return self._written[kind]

    def _default(self, value: Any) -> str:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return f"Field(default_factory={self._nested(type(value))})"
        return repr(tuple(value)) if isinstance(value, list | tuple) else repr(value)

    def _annotation(self, annotation: Any) -> str:
        origin, arms = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            constraints = ", ".join(filter(None, (_constraint(part) for part in arms[1:])))
            inner = self._annotation(arms[0])
            return f"Annotated[{inner}, Field({constraints})]" if constraints else inner
        if origin is Literal:
            return f"Literal[{', '.join(map(repr, arms))}]"
        if origin in (Union, types.UnionType):
            return " | ".join(self._annotation(arm) for arm in arms)
        if origin is not None:
            name = _CONTAINERS.get(origin)
            if name is None:
                raise TypeError(f"an option is annotated {annotation}, which no recipe can hold")
            inside = ["..." if arm is Ellipsis else self._annotation(arm) for arm in arms]
            if origin in _SEQUENCES:
                inside.append("...")
            return f"{name}[{', '.join(inside)}]"
        if annotation in (None, type(None)):
            return "None"
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return self._nested(annotation)
        if annotation in (int, float, str, bool, list, dict):
            return str(annotation.__name__)
        return "str"  # a path, which a recipe writes as text


_SEQUENCES = tuple(get_origin(kind) for kind in (Sequence[int], Collection[int]))
_CONTAINERS: dict[Any, str] = {
    tuple: "tuple",
    list: "list",
    dict: "dict",
    get_origin(Mapping[str, int]): "dict",
    **dict.fromkeys(_SEQUENCES, "tuple"),
}
_BOUNDS = ("gt", "ge", "lt", "le", "min_length", "max_length")


def _constraint(part: object) -> str:
    parts = part.metadata if isinstance(part, FieldInfo) else [part]
    found = {key: getattr(bound, key) for bound in parts for key in _BOUNDS if getattr(bound, key, None) is not None}
    return ", ".join(f"{key}={value!r}" for key, value in found.items())


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
