"""The constructor is the schema: keyword-only, annotated parameters become a strict pydantic model. Loads no torch."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, create_model

from ldmkit.errors import PluginError

# A parameter annotated so is filled by `build` and is no recipe key. Known by name: its class lives beside torch.
DERIVED = "LatentSpec"
# Bases whose `__init__` says nothing about options: a class without one of its own has none.
_FOREIGN_BASES = ("builtins", "torch", "abc", "typing")


class Options(BaseModel):
    """The options of one component. Fields carry a prefix, so that an option may have any name; the alias is the option's."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options, in the constructor's order."""
        return tuple(str(field.alias) for field in cls.model_fields.values())

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """The options without a default."""
        return tuple(str(field.alias) for field in cls.model_fields.values() if field.is_required())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Options:
        """Validate JSON-like values: lists stand for tuples and text for paths, but nothing else is converted.

        Raises pydantic.ValidationError.
        """
        return cls.model_validate_json(json.dumps(values))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the constructor."""
        return {str(field.alias): getattr(self, name) for name, field in type(self).model_fields.items()}

    def plain(self) -> dict[str, Any]:
        """JSON values, for recipes and `config.json`."""
        return self.model_dump(mode="json", by_alias=True, warnings=False)


def model(
    target: Callable[..., Any], *, reserved: Collection[str] = (), skipped: Collection[str] = ()
) -> type[Options]:
    """The pydantic model of a class's or function's options.

    `reserved` names may not be options (a recipe uses them for something else); `skipped` parameters are not options.
    Raises PluginError naming the parameter and what to write instead.
    """
    name = getattr(target, "__qualname__", repr(target))
    function = _constructor(target)
    fields: dict[str, Any] = {}
    if function is not None:
        for parameter in _parameters(function, name, is_class=inspect.isclass(target)):
            if parameter.name in skipped or is_derived(parameter.annotation):
                continue
            if parameter.name in reserved:
                raise PluginError(
                    f"{name} has an option `{parameter.name}`, a name that recipes use themselves",
                    hint=f"Rename the parameter; taken are: {', '.join(sorted(reserved))}",
                )
            fields[f"option_{parameter.name}"] = _field(parameter, function, name)
    try:
        return create_model(f"{name}Options", __base__=Options, __module__=__name__, **fields)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise PluginError(
            f"{name}: an option's annotation is nothing a recipe can hold: {str(error).splitlines()[0]}",
            hint="Options are numbers, text, booleans, paths, and lists or mappings of them",
        ) from error


def derived(target: Callable[..., Any]) -> tuple[str, ...]:
    """The constructor's parameters that `build` fills: those annotated `LatentSpec`."""
    function = _constructor(target)
    if function is None:
        return ()
    parameters = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in parameters if is_derived(parameter.annotation))


def is_derived(annotation: object) -> bool:
    """Whether an annotation, evaluated or still a string, is `LatentSpec` (or `LatentSpec | None`)."""
    if isinstance(annotation, str):
        parts = annotation.replace("Optional[", "").replace("]", "").split("|")
        return any(part.strip().strip("\"'").rpartition(".")[2] == DERIVED for part in parts)
    arms = get_args(annotation) or (annotation,)
    return any(getattr(arm, "__name__", None) == DERIVED for arm in arms)


def _constructor(target: Callable[..., Any]) -> Callable[..., Any] | None:
    if not inspect.isclass(target):
        function: Callable[..., Any] = inspect.unwrap(target)
        return function
    owner = next(base for base in target.__mro__ if "__init__" in vars(base))
    if owner.__module__.partition(".")[0] in _FOREIGN_BASES:
        return None
    constructor: Callable[..., Any] = inspect.unwrap(vars(owner)["__init__"])
    return constructor


def _parameters(function: Callable[..., Any], name: str, *, is_class: bool) -> list[inspect.Parameter]:
    """The keyword-only parameters. A class that wants others would have options that no recipe can give: refused."""
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[1:] if is_class else []:
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            raise PluginError(
                f"{name} takes `**{parameter.name}`, so its options are unknown",
                hint="Write the options out, keyword-only and annotated",
            )
        raise PluginError(
            f"{name}: the parameter `{parameter.name}` is not keyword-only",
            hint=f"Write `def __init__(self, *, {parameter.name}: ...)`",
        )
    return [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _field(parameter: inspect.Parameter, function: Callable[..., Any], name: str) -> tuple[Any, Any]:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        raise PluginError(
            f"{name}: the option `{parameter.name}` has no annotation",
            hint=f"Write its type, for example `{parameter.name}: {type(parameter.default).__name__}`",
        )
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}))
        except Exception as error:
            raise PluginError(
                f"{name}: the annotation `{annotation}` of `{parameter.name}` cannot be evaluated: {error}",
                hint="Import the type at the module's top level, outside `if TYPE_CHECKING`",
            ) from error
    default = ... if parameter.default is parameter.empty else parameter.default
    if not (default is ... or _is_plain(default)):
        raise PluginError(
            f"{name}: the default of `{parameter.name}` is {default!r} ({type(default).__name__}), which no recipe can hold",
            hint="Write a finite number, text, true or false, None, or a tuple of them; compute the rest in `__init__`",
        )
    return annotation, Field(default, alias=parameter.name)


def _is_plain(value: object) -> bool:
    """Whether a recipe and `config.json` can hold a value and read it again: plain Python, finite."""
    if isinstance(value, BaseModel | Path | Enum) or value is None:
        return True
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def describe(annotation: object) -> str:
    """A type as people read it: `int`, `'vq' | 'kl'`, `list of int`."""
    if annotation is type(None):
        return "null"
    if not (arms := get_args(annotation)):
        return str(getattr(annotation, "__name__", annotation))
    if getattr(annotation, "__origin__", None) is Literal:
        return " | ".join(json.dumps(arm) for arm in arms)
    origin = getattr(annotation, "__origin__", None)
    if origin is None or "Union" in str(origin):
        return " | ".join(describe(arm) for arm in arms)
    inner = ", ".join("..." if arm is Ellipsis else describe(arm) for arm in arms)
    return f"{getattr(origin, '__name__', origin)}[{inner}]"
