"""Whether the data have the fields that the slots read: found out before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.assembly.sources import source_of
from ldmkit.errors import LdmkitError
from ldmkit.messages import did_you_mean
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe


def check_fields(recipe: Recipe, registry: Registry) -> str | None:
    """Looks at the first sample's fields, loading none. Returns why the data could not be looked at, None where they were.

    Raises RecipeError for a slot that reads a field which the data have not.
    """
    if not recipe.conditioners:
        return None
    try:
        sample: Mapping[str, Any] = source_of(recipe, registry).split("train")[0]
        there = sorted(sample)
    except (LdmkitError, OSError, LookupError) as error:
        return str(error).splitlines()[0]
    for name, slot in recipe.conditioners.items():
        for own in registry.conditioners.load(slot.type).reads:
            field = slot.fields_.get(own, own)
            if field not in there:
                raise recipe.error(
                    f"reads the field '{field}', and the data have {', '.join(there)}{did_you_mean(field, there)}",
                    "conditioners",
                    name,
                    hint=f"choose data that have it, or map another field: conditioners.{name}.fields: {{{own}: ...}}",
                )
    return None
