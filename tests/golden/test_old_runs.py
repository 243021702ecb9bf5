"""Runs that version 0.1 wrote load, sample what they sampled, and go on.

Each archive is a finished run of three steps with networks of a few channels, and in `latents.npz` what
`ldmkit.load(run).sample(values, count=2, steps=3, output="latent", seed=5)` returned then.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldmkit

HERE = Path(__file__).parent
VALUES: dict[str, dict[str, Any]] = {"class": {"class": 3}, "joint": {"text": "a red circle on sand", "class": 3}}


@pytest.fixture(params=sorted(VALUES))
def old_run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name = f"{request.param}-0.1"
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return request.param, tmp_path / name


def test_it_samples_what_it_sampled(old_run: tuple[str, Path]) -> None:
    name, folder = old_run
    expected = torch.from_numpy(np.load(folder / "latents.npz")["latents"])
    latents = ldmkit.load(folder).sample(VALUES[name], count=2, steps=3, output="latent", seed=5).double()
    # Three evaluations in float32, whose sums another CPU takes in another order.
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-3 * float(expected.std()))


def test_it_goes_on(old_run: tuple[str, Path]) -> None:
    _, folder = old_run
    before = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    recipe = ldmkit.load_recipe(folder / "recipe.resolved.yaml", ("train.steps=5",))
    run = ldmkit.run(recipe, folder)
    after = json.loads((run.path / "status.json").read_text(encoding="utf-8"))
    assert (before["step"], after["step"], after["state"]) == (3, 5, "finished")
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(row["step"] for row in steps if row.get("stage") == "diffusion") == 5
