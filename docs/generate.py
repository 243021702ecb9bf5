"""Writes the generated pages of the documentation: `uv run python docs/generate.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmkit.recipe import Recipe

PLACE = Path(__file__).parent / "reference" / "recipes.md"
HEAD = """# Recipes

A recipe is a YAML file (YAML 1.2 scalars, no duplicate keys, no tags). `ldmkit recipe check FILE` validates one,
`ldmkit recipe show FILE` prints it with every default, `ldmkit recipe schema` gives this page as a JSON schema.
`extends: other.yaml` builds on another recipe, `--set a.b=c` changes a key. Sections with a `type` also take the options of
what the type names: `ldmkit plugins show NAME` lists them.

This page is generated from the models by `docs/generate.py`.
"""


def page() -> str:
    """The reference of every core section, from the pydantic models' JSON schema."""
    schema = Recipe.json_schema()
    parts = [HEAD, _table("The recipe", schema)]
    parts += [_table(name, section) for name, section in sorted(schema["$defs"].items()) if "properties" in section]
    return "\n".join(parts)


def _table(name: str, section: dict[str, Any]) -> str:
    lines = [f"## {name}", ""]
    if section.get("description") and name != "The recipe":
        lines += [section["description"].replace("\n\n", "\n"), ""]
    lines += ["| key | values | default |", "|---|---|---|"]
    required = section.get("required", [])
    for key, field in section["properties"].items():
        default = "required" if key in required and "default" not in field else _default(field)
        lines.append(f"| `{key}` | {_values(field)} | {default} |")
    return "\n".join([*lines, ""])


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return ""
    value = field["default"]
    return "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: dict[str, Any]) -> str:
    for several in ("anyOf", "oneOf"):
        if several in field:
            return " or ".join(dict.fromkeys(_values(arm) for arm in field[several]))
    if "$ref" in field:
        return f"[{(target := field['$ref'].rpartition('/')[2])}](#{target.lower()})"
    if "const" in field or "enum" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_values(field['items'])}" if isinstance(field.get("items"), dict) else "list"
    return kind + _range(field)


def _range(field: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" ({', '.join(bounds)})" if bounds else ""


if __name__ == "__main__":
    PLACE.write_text(page(), encoding="utf-8")
