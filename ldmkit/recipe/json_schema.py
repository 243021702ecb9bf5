"""The JSON schema of recipe files, for editors and for the reference page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ldmkit.recipe.components import CHOICES
from ldmkit.recipe.core_schema import COMPONENTS

OPEN = {"type": "string", "description": "A recipe to build on: a file or a bundled name."}


def json_schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The schema of a recipe's model: a section that names a component takes that one's options, if the core has it."""
    schema = recipe.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    schema["properties"]["extends"] = OPEN
    for kind, section in dict.fromkeys((choice.kind, choice.section) for choice in CHOICES):
        described = definitions[section.__name__]
        described["additionalProperties"] = True
        if section.__name__ in ("Slot", "ExtraLoss"):
            described["required"] = []  # the slot's name says the type
        described["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"$ref": f"#/$defs/{title}"},
            }
            for name, title in _defined(kind, section, definitions)
        ]
    schema["required"] = []  # a recipe that extends another one may leave everything to it
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return _with_names(schema)


def _defined(kind: str, section: type[BaseModel], definitions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Adds the options of every component of a kind to the definitions; (name, title) of each."""
    for name, model in COMPONENTS[kind].items():
        own = model.model_json_schema(by_alias=True)
        definitions |= own.pop("$defs", {})
        core = definitions[section.__name__]["properties"]
        own.pop("additionalProperties", None)
        own["properties"] = {"type": {"const": name}, **own.get("properties", {})}
        own["propertyNames"] = {"enum": [*core, *(key for key in own["properties"] if key not in core)]}
        definitions[model.__name__] = own
        yield name, model.__name__


def _with_names(schema: dict[str, Any]) -> dict[str, Any]:
    """A component may be given by its name alone."""
    named = {f"#/$defs/{choice.section.__name__}" for choice in CHOICES}

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if value.get("$ref") in named:
            return {"anyOf": [{"type": "string"}, {"$ref": value["$ref"]}]} | {
                key: inner for key, inner in value.items() if key != "$ref"
            }
        return {key: walk(inner) for key, inner in value.items()}

    result: dict[str, Any] = walk(schema)
    return result
