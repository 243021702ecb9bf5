"""The Python of docs/how-to/sample.md runs, and its table of methods is complete."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

import ldmkit
from ldmkit.guidance import METHODS
from ldmkit.samplers import ddim, make_grid

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "sample.md").read_text(encoding="utf-8")


def test_the_examples_run(linear, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in.png", "new.png"):
        Image.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(name)
    model = linear(slots=("text", "low_res"))
    model.samplers["ddim"] = lambda denoiser, noise, schedule, steps, **rest: ddim(
        denoiser, noise, schedule, make_grid(schedule, min(steps, 3)) if isinstance(steps, int) else steps, **rest
    )
    monkeypatch.setattr(ldmkit, "load", lambda path: model)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 6
    found: dict[str, object] = {}
    for block in blocks:
        exec(block, found)
    assert len(found["pictures"]) == 4
    assert len(found["seen"]) == 3


def test_every_method_is_in_the_table():
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", PAGE, re.M)
    assert [name for name, _ in rows] == list(METHODS)
