"""Every bundled recipe is built, stepped, sampled, judged and reported: the whole job in small."""

from __future__ import annotations

import json

import pytest

import ldmkit
from ldmkit.recipe import bundled

SMALL = (
    "autoencoder.train.steps=2",
    "autoencoder.train.batch=2",
    "train.steps=2",
    "train.batch=2",
    "sample.steps=2",
    "sample.count=2",
)
FEWER = {
    "photos": ("data.views=2",),
    "scenes": ("data.count=6", "data.held_out=6"),
    "digits": ("autoencoder.train.batch=32", "train.batch=32"),  # all that are held out are read, a batch at a time
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(bundled()))
def test_a_recipe_runs_from_end_to_end(name, tmp_path):
    whole = ldmkit.load_recipe(name)
    metrics = [metric for metric in whole.evaluate if metric.type not in ("judge", "nearest")]
    chosen = [
        {"type": metric.type, **metric.options} | ({"count": 8} if "count" in metric.options else {})
        for metric in metrics[:3]
    ]
    game = ("autoencoder.loss.adversarial.start=1",) if whole.autoencoder.loss.adversarial is not None else ()
    recipe = ldmkit.load_recipe(name, (*SMALL, *FEWER[whole.data.type], *game, f"evaluate={json.dumps(chosen)}"))
    run = ldmkit.run(recipe, tmp_path / name)
    status = json.loads((run.path / "status.json").read_text())
    assert status["state"] == "finished"
    assert (run.path / "samples" / "latest.png").stat().st_size > 0
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert recipe.name in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    again = ldmkit.load(run.path)
    pictures = again.sample(count=1, steps=1) if _may_be_left_out(again) else []
    assert all(picture.size == (again.size[1], again.size[0]) for picture in pictures)


def _may_be_left_out(model: ldmkit.LatentDiffusion) -> bool:
    """Whether training also showed the model pictures without any condition."""
    return frozenset(model.conditioners) in model.conditioners.dropout.trained
