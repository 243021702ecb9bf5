"""Every row of the table in docs/how-to/your-data.md, on files made on the spot: its lines are a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ldmkit
from ldmkit.assembly import datasets
from ldmkit.recipe import Recipe
from tests.data.layouts import COUNT, Writer, also, deep, images, maps, noise, rows, save, table, text

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "your-data.md"
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], np.uint8)
REST = {
    "name": "row",
    "autoencoder": {"type": "identity"},
    "denoiser": {"type": "unet", "channels": 16, "multipliers": [1], "blocks": 1, "attention": [1], "head_width": 16},
    "train": {"steps": 1, "batch": 4},
    "sample": {"steps": 1, "count": 1},
    "evaluate": [],
}


def lines() -> dict[str, str]:
    """What a person has -> the lines of a recipe."""
    found = re.findall(r"^\| ([^|]+) \| (`data: \{.*?\}`(?:<br>`[^|]*`)?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return {have: "\n".join(re.findall(r"`([^`]+)`", code)) for have, code in found}


def pairs(root: Path) -> None:
    images()(root)
    for index in range(COUNT):
        save(root / "in" / f"{index}.png", noise(index))
    rows(lambda i: {"file_name": f"{i}.png", "source_file_name": f"in/{i}.png"})(root)


def title(i: int) -> dict[str, Any]:
    return {"file_name": f"{i}.png", "title": f"thing {i}"}


def masked(i: int) -> dict[str, Any]:
    return {"file_name": f"{i}.png", "mask_file_name": f"masks/{i}.png"}


# what a person has, by its first words -> the files, and what `fit` then knows of the slot's fields
FILES: dict[str, tuple[Writer, dict[str, Any]]] = {
    "images, in any": (images("", "more/deep"), {}),
    "folders `cat/`": (images("cat", "dog"), {"kind": "label", "names": ["cat", "dog"]}),
    "folders `train/`": (images("train", "val"), {}),
    "folders `day/`": (images("day", "night"), {}),
    "`x.txt`": (also(images(), text(".txt")), {"kind": "text"}),
    "`metadata.jsonl`": (also(images(), rows(lambda i: {"file_name": f"{i}.png", "caption": "a"})), {"kind": "text"}),
    "`captions.csv`": (
        also(images(), table("captions.csv", "image;caption", lambda i: f"{i}.png;a cat")),
        {"kind": "text"},
    ),
    "a number in a column": (
        also(images(), rows(lambda i: {"file_name": f"{i}.png", "height_m": i + 0.5})),
        {"kind": "number"},
    ),
    "captions in a column": (also(images(), rows(title)), {"kind": "text"}),
    "label maps in a parallel": (also(images(), maps("../maps", lambda m: m)), {"kind": "map", "classes": 3}),
    "masks of 0": (
        also(images(), maps("", lambda m: m * 255, "_mask.png", 2)),
        {"kind": "map", "classes": 2, "values": [0, 255]},
    ),
    "label maps in colours": (
        also(images(), maps("../maps", lambda m: COLOURS[m])),
        {"kind": "map", "palette": COLOURS.tolist()},
    ),
    "label maps named": (also(images(), maps("masks", lambda m: m), rows(masked)), {"kind": "map", "classes": 3}),
    "pairs": (pairs, {"kind": "image", "aligned": True}),
    "microscopy": (deep(12), {}),
    "few images": (images(), {}),
}


def test_every_row_has_its_files() -> None:
    assert [next((key for key in FILES if have.startswith(key)), have) for have in lines()] == list(FILES)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Writer], None]:
    monkeypatch.chdir(tmp_path)

    def write(files: Writer) -> None:
        (tmp_path / "photos").mkdir()
        files(tmp_path / "photos")

    return write


@pytest.mark.parametrize("key", FILES)
def test_a_row_does_what_it_says(here: Callable[[Writer], None], key: str) -> None:
    files, expected = FILES[key]
    here(files)
    code = next(code for have, code in lines().items() if have.startswith(key))
    recipe = ldmkit.fit(Recipe.parse({**REST, **yaml.safe_load(code)}))
    for slot in recipe.conditioners.values():
        (known,) = (slot.known or {}).values()
        assert {name: known[name] for name in expected} == expected
    assert bool(recipe.conditioners) == bool(expected)
    train, validation = datasets(recipe)
    assert train.source.holds_out() == (key != "few images")
    json.dumps(recipe.resolved())
    model = ldmkit.build(recipe)
    batch = model.batch([train.sample(0), validation.sample(0)])
    assert all(bool(present.all()) for present in batch.present.values())
