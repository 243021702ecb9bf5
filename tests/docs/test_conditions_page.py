"""The table of docs/how-to/conditions.md: its lines are slots of a recipe, for every conditioner that is installed."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ldmkit import plugins
from ldmkit.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "conditions.md").read_text("utf-8")
ROWS = re.findall(r"^\| .* \| .* \| .* \| `(\w+: \{.*?\})`<br>`ldmkit sample RUN -c ([^`]+)` \|$", PAGE, re.MULTILINE)

REST = {
    "name": "row",
    "data": {"type": "scenes", "size": 32},
    "autoencoder": {"type": "kl", "downsample": 4, "latent_channels": 4, "train": {"steps": 1, "batch": 1}},
    "denoiser": {"channels": 32, "multipliers": [1, 2], "attention": [2], "head_width": 32},
    "train": {"steps": 1, "batch": 1},
}


def test_every_row_is_a_slot_and_its_command_names_it() -> None:
    assert len(ROWS) == PAGE.count("\n| ") - 1
    registry = plugins.load()
    seen = set()
    for line, command in ROWS:
        ((slot, options),) = yaml.safe_load(line).items()
        assert command.lstrip("'\"").startswith(f"{slot}=")
        kind = options.get("type", slot.replace("_", "-"))
        if kind in registry.conditioners.names():
            seen.add(kind)
            Recipe.parse({**REST, "conditioners": {slot: options}}).validate_components(registry)
    assert seen >= {"class", "text", "semantic-map", "low-res", "numbers", "attributes", "image"}
