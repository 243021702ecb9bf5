"""Guidance from a recipe through a whole run: previews, evaluation, the saved model, a worse model by its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.assembly import build, fit, load
from ldmkit.errors import RecipeError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.run import run


def test_a_recipes_method_of_guidance_is_used_and_kept(
    tmp_path: Path, recipe: Callable[..., Recipe], registry: Registry
) -> None:
    options = {"type": "apg", "threshold": 2.0, "interval": [0.0, 0.9]}
    changed = recipe(
        sample={"steps": 2, "count": 2, "guidance": 3.0, "guidance_options": options, "negative": {"place": 1}},
        evaluate=[{"type": "variational-bound", "steps": 3, "count": 2}],
    )
    found = run(changed, out=tmp_path / "better", registry=registry)
    results = json.loads((found.path / "evaluation.json").read_text())
    assert results["sampling"]["guidance_options"]["type"] == "apg"
    assert results["sampling"]["negative"] == {"place": 1}
    assert [figure["name"] for figure in results["figures"]] == ["variational-bound"]

    model = load(found.path, registry=registry)
    settings: dict[str, Any] = {"output": "tensor", "seed": 4}
    as_saved = model.sample({"place": 2}, **settings)
    said = {"steps": 2, "guidance": 3.0, "guidance_options": options, "negative": {"place": 1}}
    assert torch.equal(as_saved, model.sample({"place": 2}, **said, **settings))
    assert not torch.equal(as_saved, model.sample({"place": 2}, guidance_options="plain", **settings))

    # The run's own raw weights are a worse model of the same latents.
    worse = {"type": "autoguidance", "model": str(found.path), "weights": "raw"}
    guided = model.sample({"place": 2}, guidance=1.5, guidance_options=worse, negative={}, **settings)
    plain, bad = (
        m.sample({"place": 2}, guidance=1.0, guidance_options="plain", negative={}, **settings)
        for m in (model, load(found.path, "raw", registry=registry))
    )
    assert not torch.equal(guided, plain)
    assert not torch.equal(plain, bad)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"guidance": "null + 2*(palce - null)"}, "sample.guidance: guidance names the slot 'palce'"),
        ({"guidance": "2*null"}, "sum to 2"),
        ({"guidance": 3.0}, "training drops no condition"),
        ({"guidance": 0.5, "guidance_options": {"type": "plus-plus"}}, "sample.guidance: .*training never dropped"),
    ],
)
def test_guidance_that_cannot_be_is_refused_before_anything_is_trained(
    recipe: Callable[..., Recipe], registry: Registry, sample: dict[str, Any], message: str
) -> None:
    rate = 0.0 if isinstance(sample["guidance"], float) else 0.2
    with pytest.raises(RecipeError, match=message):
        build(fit(recipe(sample=sample, conditioners__place={"dropout": rate}), registry), registry)
