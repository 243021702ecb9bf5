"""Which options a sampling runs with: what is asked for, what the model was saved with, checked by the sampler's own schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.messages import problems_of
from ldmkit.plugins import options as schemas
from ldmkit.samplers import Sampler
from ldmkit.samplers.spacing import Given

# Parameters that `sample` fills: no options, though keyword-only.
FILLED = ("generators", "callback", "known", "mask")
# Where timesteps lie and the last step ends: the model's, whatever samples it.
GRID = ("spacing", "clean")


def completed(
    name: str,
    saved_name: str,
    find: Callable[[str], Sampler],
    given: Mapping[str, Any],
    saved: Mapping[str, Any],
) -> dict[str, Any]:
    """The options `given` to the sampler `name`, read by its schema; what is left out as the model was saved.

    The saved sampler's options stay while its name does. Its grid stays for every sampler, unless it is only what the saved
    one takes by default: then each has its own. Raises UsageError for options that the sampler does not take.
    """
    sampler = find(name)
    checked = read(name, sampler, given)
    if name == saved_name:
        return {**read(name, sampler, saved), **checked}
    names = schema_of(sampler).names()
    default = {str(field.alias): field.default for field in schema_of(find(saved_name)).model_fields.values()}
    grid = {key: saved[key] for key in GRID if key in saved and key in names and saved[key] != default.get(key)}
    return {**read(name, sampler, grid), **checked}


def read(name: str, sampler: Sampler, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the sampler takes them. Raises UsageError, in the words that a recipe's options are refused with."""
    schema = schema_of(sampler)
    plain = {key: dataclasses.asdict(value) if _is_record(value) else value for key, value in given.items()}
    for key, value in plain.items():
        if isinstance(value, Tensor) or callable(value):
            raise UsageError(
                f"option {key} of sampler {name} is a {type(value).__name__}: options are numbers, text and lists"
            )
    try:
        arguments = schema.read(plain).arguments()
    except ValidationError as error:
        problems = problems_of(error, plain, lambda path: () if path else schema.names())
        raise UsageError(
            "; ".join(f"option {problem.key} of sampler {name}: {problem.text}" for problem in problems),
            hint=f"`ldmkit plugins show {name}` tells its options",
        ) from error
    return {key: arguments[key] for key in given}


def schema_of(sampler: Sampler) -> type[schemas.Options]:
    """The schema of a sampler's own options."""
    return schemas.model(sampler, skipped=FILLED)


def listed_steps(options: Mapping[str, Any]) -> int | None:
    """How many steps a spacing that was given as a list has."""
    spacing = options.get("spacing")
    return len(spacing) if isinstance(spacing, Given) else None


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
