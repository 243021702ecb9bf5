"""The constructor is the schema: keyword-only, annotated parameters become a strict pydantic model. Loads no torch."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, create_model

from ldmkit.errors import PluginError
from ldmkit.plugins.ranges import InRecipe

# A parameter annotated so is filled by `build` and is no recipe key. Known by name: its class lives beside torch.
DERIVED = ("LatentSpec", "Ports")
# The class attribute that names the dataclass whose fields are the keywords of a constructor's `**options: Unpack[...]`.
PASSED_ON = "passes_on"
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
    target: Callable[..., Any],
    *,
    reserved: Collection[str] = (),
    skipped: Collection[str] = (),
    filled: Collection[str] = (),
) -> type[Options]:
    """The pydantic model of a class's or function's options.

    `reserved` names may not be options (a recipe uses them for something else); `skipped` parameters are not options; `filled`
    ones may be left out, whatever their default, because the core knows their value.
    Raises PluginError naming the parameter and what to write instead.
    """
    name = getattr(target, "__qualname__", repr(target))
    said = helps(target)
    fields: dict[str, Any] = {}
    for option, annotation, default in declared(target, skipped):
        if option in reserved:
            raise PluginError(
                f"{name} has an option `{option}`, a name that recipes use themselves",
                hint=f"Rename the parameter; taken are: {', '.join(sorted(reserved))}",
            )
        if option in filled:
            annotation, default = annotation | None, None
        fields[f"option_{option}"] = annotation, Field(default, alias=option, description=said.get(option))
    try:
        return create_model(f"{name}Options", __base__=Options, __module__=__name__, **fields)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise PluginError(
            f"{name}: an option's annotation is nothing a recipe can hold: {str(error).splitlines()[0]}",
            hint="Options are numbers, text, booleans, paths, and lists or mappings of them",
        ) from error


def declared(target: Callable[..., Any], skipped: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(name, annotation, default or ...) of every option, in the constructor's order. Raises PluginError for what is none."""
    name, function = getattr(target, "__qualname__", repr(target)), _constructor(target)
    if function is None:
        return
    for parameter in _parameters(function, name, target):
        if parameter.name in skipped or is_derived(parameter.annotation):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        yield parameter.name, _in_recipe(_annotation(parameter, function, name)), default
    if passed_on := getattr(target, PASSED_ON, None):
        for option, annotation, default in keywords(passed_on):
            if option not in skipped:
                yield option, annotation, default


def keywords(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, annotation, default or ...) of a dataclass's fields.

    Raises PluginError for a field without an annotation, or whose default no recipe can hold.
    """
    for parameter in inspect.signature(kind).parameters.values():
        default = ... if parameter.default is parameter.empty else parameter.default
        yield parameter.name, _in_recipe(_annotation(parameter, vars(kind)["__init__"], kind.__qualname__)), default


def _in_recipe(annotation: Any) -> Any:
    if get_origin(annotation) is not Annotated:
        return annotation
    return next((part.annotation for part in get_args(annotation) if isinstance(part, InRecipe)), annotation)


_HELP = re.compile(r"^(?P<names>\w+(?:(?:, | or | and )\w+)*): (?P<text>.+)$")


def helps(target: Any) -> dict[str, str]:
    """Option -> what the docstring says of it: the lines `name: text` of a class, its constructor and what it passes on."""
    passed_on = getattr(target, PASSED_ON, None)
    texts = [getattr(part, "__doc__", None) for part in (passed_on, target, getattr(target, "__init__", None))]
    found: dict[str, str] = {}
    for text in filter(None, texts):
        current: tuple[str, ...] = ()
        for line in inspect.cleandoc(text).splitlines():
            if match := _HELP.match(line.strip()):
                current = tuple(re.split(r", | or | and ", match["names"]))
                found |= dict.fromkeys(current, match["text"].strip())
            elif line.strip() and current and line.startswith(" "):
                found |= {name: f"{found[name]} {line.strip()}" for name in current}
            else:
                current = ()
    return found


def derived(target: Callable[..., Any]) -> dict[str, str]:
    """The constructor's parameters that `build` fills -> the type that each is annotated with: `LatentSpec` or `Ports`."""
    function = _constructor(target)
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.name: _derived(parameter.annotation) for parameter in parameters}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def fill(target: Callable[..., Any], **values: object) -> dict[str, object]:
    """The derived parameters of a constructor with their values: `fill(kind, LatentSpec=spec)`.

    Raises PluginError for a parameter of a type that is not there for what the constructor makes.
    """
    found = derived(target)
    if unknown := [f"{name}: {kind}" for name, kind in found.items() if kind not in values]:
        raise PluginError(
            f"{getattr(target, '__qualname__', target)} wants {', '.join(unknown)}, which is not there when it is made",
            hint=f"what the core fills in here is {', '.join(values)}",
        )
    return {name: values[kind] for name, kind in found.items()}


def is_derived(annotation: object) -> bool:
    """Whether an annotation, evaluated or still a string, is `LatentSpec` or `Ports` (or one of them and None)."""
    return _derived(annotation) is not None


def _derived(annotation: object) -> str | None:
    if isinstance(annotation, str):
        parts = annotation.replace("Optional[", "").replace("]", "").split("|")
        names = [part.strip().strip("\"'").rpartition(".")[2] for part in parts]
    else:
        names = [str(getattr(arm, "__name__", "")) for arm in get_args(annotation) or (annotation,)]
    return next((name for name in names if name in DERIVED), None)


def _constructor(target: Callable[..., Any]) -> Callable[..., Any] | None:
    if not inspect.isclass(target):
        function: Callable[..., Any] = inspect.unwrap(target)
        return function
    owner = next(base for base in target.__mro__ if "__init__" in vars(base))
    if owner.__module__.partition(".")[0] in _FOREIGN_BASES:
        return None
    constructor: Callable[..., Any] = inspect.unwrap(vars(owner)["__init__"])
    return constructor


def _parameters(function: Callable[..., Any], name: str, target: object) -> list[inspect.Parameter]:
    """The keyword-only parameters. A class that wants others would have options that no recipe can give: refused."""
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[1:] if inspect.isclass(target) else []:
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if parameter.kind is parameter.VAR_KEYWORD and getattr(target, PASSED_ON, None):
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


def _annotation(parameter: inspect.Parameter, function: Callable[..., Any], name: str) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        raise PluginError(
            f"{name}: the option `{parameter.name}` has no annotation",
            hint=f"Write its type, for example `{parameter.name}: {type(parameter.default).__name__}`",
        )
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, _names(function))
        except Exception as error:
            raise PluginError(
                f"{name}: the annotation `{annotation}` of `{parameter.name}` cannot be evaluated: {error}",
                hint="Import the type at the module's top level, outside `if TYPE_CHECKING`",
            ) from error
    default = parameter.default
    if not (default is parameter.empty or _is_plain(default)):
        raise PluginError(
            f"{name}: the default of `{parameter.name}` is {default!r} ({type(default).__name__}), which no recipe can hold",
            hint="Write a finite number, text, true or false, None, or a tuple of them; compute the rest in `__init__`",
        )
    return annotation


def _is_plain(value: object) -> bool:
    """Whether a recipe and `config.json` can hold a value and read it again: plain Python, finite."""
    if isinstance(value, BaseModel | Path | Enum) or value is None:
        return True
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _names(function: Callable[..., Any]) -> dict[str, Any]:
    """What the annotations of a function may name. A dataclass's `__init__` is made by the library, elsewhere."""
    known = dict(getattr(function, "__globals__", {}))
    module = inspect.getmodule(function)
    return known if module is None else {**known, **vars(module)}


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds(metadata: Iterable[object]) -> str:
    """Ranges as people read them: `>= 1, < 10`."""
    found = [
        f"{sign} {bound:g}"
        for part in metadata
        for key, sign in _SIGNS.items()
        if (bound := getattr(part, key, None)) is not None
    ]
    return ", ".join(found)


def describe(annotation: Any) -> str:
    """A type as people read it: `int`, `'vq' | 'kl'`, `list of int`, `int (>= 1)`."""
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        within = bounds(each for part in metadata for each in getattr(part, "metadata", (part,)))
        return describe(inner) + (f" ({within})" if within else "")
    if not (arms := get_args(annotation)):
        return str(getattr(annotation, "__name__", annotation))
    if getattr(annotation, "__origin__", None) is Literal:
        return " | ".join(json.dumps(arm) for arm in arms)
    origin = getattr(annotation, "__origin__", None)
    if origin is None or "Union" in str(origin):
        return " | ".join(describe(arm) for arm in arms)
    inner = ", ".join("..." if arm is Ellipsis else describe(arm) for arm in arms)
    return f"{getattr(origin, '__name__', origin)}[{inner}]"
