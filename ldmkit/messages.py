"""What is wrong, in words: keys and values as pydantic found them, with the nearest valid name; tensors that differ. No torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

KeyPath = tuple[str | int, ...]

# pydantic's error type -> what was expected.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dataclass_type": "a mapping of keys",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: at which key, and what. `plugin` if a plugin, not the recipe, has to be fixed."""

    path: KeyPath
    text: str
    plugin: bool = False

    @property
    def key(self) -> str:
        return dotted(self.path)


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(step) for step in path)


def nearest(given: object, names: Iterable[str]) -> str | None:
    """The name that somebody who wrote `given` may have meant. A number is near to no other: 3 is as far from 32 as from 4."""
    if not isinstance(given, str):
        return None
    return next(iter(difflib.get_close_matches(str(given), list(names), n=1)), None)


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """`; did you mean 'lr'?`, or nothing."""
    near = nearest(given, names)
    return "" if near is None else f"; did you mean '{near}'?"


class Shaped(Protocol):
    """A tensor, as far as it is compared here."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> Any: ...


def tensor_differences(expected: Mapping[str, Shaped], given: Mapping[str, Shaped]) -> str:
    """Names, shapes and kinds of numbers of `given` that are not those a model expects, the first five; empty where all fit.

    Floating-point numbers of any precision are of one kind: a copy rounds them, and makes no nonsense of them.
    """
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is not in the model" for name in given if name not in expected]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and tuple(given[name].shape) != tuple(value.shape)
    ]
    wrong += [
        f"{name} holds {given[name].dtype}, the model {value.dtype}"
        for name, value in expected.items()
        if name in given and given[name].dtype.is_floating_point != value.dtype.is_floating_point
    ]
    return "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")


def shown(value: object) -> str:
    """A value as it stands in YAML, cut to one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problems_of(error: ValidationError, data: Any, allowed: Any, prefix: KeyPath = ()) -> list[Problem]:
    """A pydantic error about `data` as problems, one a key, in the order of the data.

    pydantic names the arms of unions inside its locations; only steps that exist in `data` are keys. `allowed` is called
    with the path of a mapping and returns the keys it may have.
    """
    found: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_real(item["loc"], data, item["type"]), []).append(item)
    # Of a union's arms, the one that got furthest into the data is the one that was meant.
    deepest = [path for path in found if not any(other != path and other[: len(path)] == path for other in found)]
    kept = [path for path in found if path in deepest or not _is_union(found[path])]
    return [Problem(prefix + path, _explained(found[path], path, allowed)) for path in kept]


def _real(location: Sequence[str | int], data: Any, kind: str) -> KeyPath:
    """The location without the names of unions' arms."""
    path: list[str | int] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        inside = (isinstance(data, dict) and step in data) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data)
        )
        if inside:
            data = data[step]
            path.append(step)
        elif last and kind == "missing":
            path.append(step)
    return (*path, "type") if kind == "union_tag_invalid" else tuple(path)


def _is_union(items: Sequence[Any]) -> bool:
    return all(item["type"] in _EXPECTED for item in items)


def _explained(items: Sequence[Any], path: KeyPath, allowed: Any) -> str:
    expected = list(dict.fromkeys(_EXPECTED[item["type"]] for item in items if item["type"] in _EXPECTED))
    texts = [_sentence(item, path, allowed) for item in items if item["type"] not in _EXPECTED]
    if expected:
        texts.append(f"expected {' or '.join(expected)}, got {shown(items[0]['input'])}{_remark(items)}")
    return "; ".join(dict.fromkeys(texts))


def _sentence(item: Any, path: KeyPath, allowed: Any) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        names = allowed(path[:-1])
        return f"unknown key{did_you_mean(path[-1], names)}; allowed: {', '.join(names) or 'none'}"
    if kind == "missing":
        return "too few values" if isinstance(path[-1], int) else "missing; it has no default"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}, got {shown(given)}"
    if kind in ("literal_error", "enum"):
        names = [word.strip().strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"must be one of {', '.join(names)}, got {shown(given)}{did_you_mean(given, names)}"
    if kind == "union_tag_invalid":
        names = [word.strip().strip("'") for word in str(context["expected_tags"]).split(",")]
        tag = context["tag"]
        return f"must be one of {', '.join(names)}, got {shown(tag)}{did_you_mean(tag, names)}"
    if kind in ("too_long", "too_short"):
        bound = context.get("max_length", context.get("min_length"))
        return f"expected a list of {bound}, got {context.get('actual_length')} values"
    if kind == "value_error":
        return str(context["error"])
    return str(item["msg"])


def _remark(items: Sequence[Any]) -> str:
    given, kinds = items[0]["input"], {item["type"] for item in items}
    if (
        isinstance(given, float)
        and given.is_integer()
        and "a whole number" in {_EXPECTED[k] for k in kinds if k in _EXPECTED}
    ):
        return f" (write {int(given)})"
    if isinstance(given, str) and kinds & {"bool_type", "bool_parsing"}:
        return " (YAML 1.2 has true and false; yes, no, on and off are text)"
    if kinds == {"string_type"} and isinstance(given, (int, float)):
        return " (put it in quotes)"
    return ""
