"""What a person does next with a run, as commands that work as they stand. The one place for console and report. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmkit.evaluation.results import Results

# What any trained run can be written as. Other formats hold some models only; `ldmkit export` says which.
EXPORTS = ("hub",)


@dataclass(frozen=True)
class Command:
    """A line for a shell, and what it is for."""

    command: str
    why: str


def next_commands(place: str, recipe: Mapping[str, Any], results: Results | None) -> list[Command]:
    """The commands for the run at `place`, of which `recipe` is the resolved one."""
    run = shlex.quote(place)
    again = Command(f"ldmkit run {shlex.quote(place + '/recipe.resolved.yaml')} --out runs/again", "the same once more")
    if "train" not in recipe and (recipe.get("autoencoder") or {}).get("train"):  # an autoencoder alone
        return [Command(f"ldmkit evaluate {run}", "adds figures; nothing is overwritten"), again]
    return [
        Command(f"ldmkit sample {run}{_conditions(recipe, results)}", "more images"),
        Command(f"ldmkit evaluate {run} --sweep guidance=1,1.5,2,3", "adds figures; nothing is overwritten"),
        Command(f"ldmkit report {run}", "the page again"),
        *(Command(f"ldmkit export {run} --format {form} --to exported", "with a model card") for form in EXPORTS),
        again,
    ]


def _conditions(recipe: Mapping[str, Any], results: Results | None) -> str:
    """A value for each slot, as the data have them; the held-out samples' own where that is no word or number."""
    slots = recipe.get("conditioners")
    if not isinstance(slots, Mapping) or not slots:
        return " -n 4"
    examples = (results.data.get("examples") if results else None) or {}
    given = {slot: examples.get(slot) for slot in slots}
    if any(value is None or str(value).endswith(".png") for value in given.values()):
        return " --held-out 4"
    return "".join(f" --condition {shlex.quote(f'{slot}={value}')}" for slot, value in given.items()) + " -n 4"
