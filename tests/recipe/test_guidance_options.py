"""`sample.guidance_options` and `sample.negative`: what a recipe may say, and what does not go together."""

from __future__ import annotations

import pytest

from ldmkit.errors import RecipeError
from ldmkit.guidance import make_method
from ldmkit.recipe import load


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "plain"),
        (["sample.guidance_options={rescale: 0.7, interval: [0.2, 0.8]}"], "plain"),
        (["sample.guidance_options=apg"], "apg"),
        (["sample.guidance_options={type: apg, threshold: 15.0, momentum: -0.5}"], "apg"),
        (["sample.guidance_options=plus-plus", "sample.guidance=0.6"], "plus-plus"),
        (["sample.guidance_options=perp-neg", "sample.negative={low_res: worse.png}"], "perp-neg"),
        (
            [
                "sample.guidance_options={type: perp-neg, strength: [1.0, 2.0]}",
                "sample.negative=[{low_res: a}, {low_res: b}]",
            ],
            "perp-neg",
        ),
        (
            ["sample.guidance_options={type: autoguidance, model: runs/small}", "autoencoder.from=runs/big"],
            "autoguidance",
        ),
    ],
)
def test_what_can_be_said(good, overrides, kind):
    recipe = load(good, overrides)
    assert recipe.sample.guidance_options.type == kind
    saved = good.with_name("saved.yaml")
    saved.write_text(recipe.to_yaml())
    assert load(saved) == recipe
    make_method(recipe.resolved()["sample"]["guidance_options"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sample.guidance_options={type: apg, rescale: 0.5}"], "rescale"),
        (["sample.guidance_options={rescale: 1.5}"], "rescale"),
        (["sample.guidance_options={interval: [0.8, 0.2]}"], "does not rise"),
        (["sample.guidance_options={type: autoguidance}"], "model: missing"),
        (["sample.guidance_options={type: autoguidance, model: runs/small}"], "give autoencoder.from"),
        (["sample.guidance_options=plus-plus"], "1.5; CFG\\+\\+ .* takes 0 to 1"),
        (["sample.guidance_options=plus-plus", "sample.guidance=0.5", "sample.type=ddpm"], "sample.type is ddpm"),
        (["sample.guidance_options=plus-plus", "sample.guidance=0.5", "sample.eta=1.0"], "eta 0"),
        (["sample.guidance_options=perp-neg"], "give sample.negative"),
        (
            ["sample.guidance_options=perp-neg", "sample.guidance={low_res: 2.0}", "sample.negative={low_res: a}"],
            "one number",
        ),
        (["sample.negative={low_ras: a}"], "there is no slot 'low_ras'; did you mean 'low_res'"),
        (["sample.negative=[{low_res: a}, {low_res: b}]"], "one can stand in for the null"),
        (["conditioners.low_res.dropout=0"], "training drops no condition.*conditioners.low_res.dropout: 0.1"),
        (["conditioners.low_res=null"], "an unconditional model takes 1"),
    ],
)
def test_what_cannot(good, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load(good, overrides)


def test_autoguidance_needs_nothing_dropped(good):
    load(
        good,
        [
            "sample.guidance_options={type: autoguidance, model: runs/small}",
            "autoencoder.from=runs/big",
            "conditioners.low_res.dropout=0",
        ],
    )
