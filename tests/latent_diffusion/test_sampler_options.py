"""Sampler options given when sampling are checked by the sampler's own schema; what is left out is as the model was saved."""

from __future__ import annotations

import logging

import pytest
import torch

from ldmkit import samplers
from ldmkit.errors import UsageError
from ldmkit.samplers.spacing import Karras

VALUES = {"a": 1, "b": 2}
ASKED = {"count": 1, "steps": 3, "output": "latent"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"etta": 1}, r"etta of sampler ddim: unknown key; did you mean 'eta'\?; allowed: eta, temperature"),
        ({"eta": "abc"}, "eta of sampler ddim: expected a number"),
        ({"eta": None}, "eta of sampler ddim: expected a number, got null"),
        ({"eta": -1}, "must be at least 0, got -1"),
        ({"eta": 2}, "must be at most 1, got 2"),
        ({"eta": float("nan")}, "eta of sampler ddim"),
        ({"eta": torch.tensor(0.5)}, "eta of sampler ddim is a Tensor"),
        ({"clean": "maybe"}, "clean of sampler ddim: expected true or false"),
        ({"generators": 1}, "generators of sampler ddim: unknown key"),
        ({"spacing": "even"}, "spacing of sampler ddim"),
        ({"spacing": {"type": "leading", "rho": 3}}, "rho"),
        ({"spacing": {"type": "leading", "offset": -1}}, "offset"),
        ({"spacing": {"type": "given"}}, "timesteps, or sigmas"),
        ({"sampler": "euler", "eta": 1.0}, "eta of sampler euler: unknown key"),
        ({"steps": 3.0}, "steps is 3.0; it is a whole number"),
        ({"steps": True}, "steps is True; it is a whole number"),
        ({"seed": 0.5}, "seed is 0.5; it is a whole number"),
        ({"steps": 0}, "1 to 1000"),
        ({"clip": -1.0}, "above 0"),
        ({"clip": "yes"}, "clip 'yes'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_a_users_error(linear, options, said):
    with pytest.raises(UsageError, match=said):
        linear().sample(VALUES, **{**ASKED, **options})


def test_a_sampler_by_its_own_name_changes_nothing(linear):
    saved = {"sampler": "ddim", "steps": 4, "eta": 0.5, "temperature": 0.7, "spacing": "compvis", "clean": False}
    model = linear(sampling=saved)
    latents = model.sample(VALUES, output="latent", seed=3)
    assert torch.equal(latents, model.sample(VALUES, output="latent", seed=3, sampler="ddim"))
    assert not torch.equal(latents, model.sample(VALUES, output="latent", seed=3, sampler="ddim", eta=0.0))
    noise = model.noise([3])
    plain = model.sample(VALUES, output="latent", sampler="euler", noise=noise)
    assert torch.equal(plain, model.sample(VALUES, output="latent", sampler="euler", noise=noise, spacing="compvis"))
    assert not torch.equal(
        plain, model.sample(VALUES, output="latent", sampler="euler", noise=noise, spacing="trailing")
    )


def test_spacings_are_given_by_mapping_or_object(linear):
    model = linear()
    by_mapping = model.sample(VALUES, **ASKED, spacing={"type": "karras", "rho": 5, "sigma_max": 20.0})
    assert torch.equal(by_mapping, model.sample(VALUES, **ASKED, spacing=Karras(rho=5.0, sigma_max=20.0)))
    assert not torch.equal(by_mapping, model.sample(VALUES, **ASKED, spacing="karras"))
    seen = []
    listed = {"type": "given", "timesteps": [900, 400, 30]}
    model.sample(VALUES, spacing=listed, output="latent", callback=lambda done, total, x, x0: seen.append(total))
    assert seen == [3, 3, 3]


def test_a_clip_bounds_what_is_predicted(linear):
    for clip, bound in ((True, 1.0), (0.25, 0.25), ({"quantile": 0.5, "max": 1.0}, 1.0)):
        shown = []
        linear().sample(VALUES, **ASKED, clip=clip, callback=lambda done, total, x, x0, shown=shown: shown.append(x0))
        assert max(float(x0.abs().max()) for x0 in shown) == pytest.approx(bound)
    free, saved = linear(), linear(sampling={"clip": 0.25})
    assert float(saved.sample(VALUES, **ASKED).abs().max()) <= 0.25
    assert torch.equal(saved.sample(VALUES, **ASKED, clip=False), free.sample(VALUES, **ASKED))


def test_a_negative_without_guidance_is_said(linear, caplog):
    with caplog.at_level(logging.WARNING, "ldmkit"):
        plain = linear().sample(VALUES, **ASKED)
        assert not caplog.text
        assert torch.equal(plain, linear().sample(VALUES, **ASKED, negative={"a": 3}))
    assert "the negative changes nothing: guidance 1.0" in caplog.text
    caplog.clear()
    assert not torch.equal(plain, linear().sample(VALUES, **ASKED, negative={"a": 3}, guidance=2.0))
    assert not caplog.text


def test_every_sampler_of_the_core_has_a_schema():
    from ldmkit.latent_diffusion.sampler_options import schema_of
    from ldmkit.plugins.defaults import SAMPLERS

    for name in SAMPLERS:
        schema = schema_of(getattr(samplers, name.replace("-", "_")))
        assert schema.read({}).arguments()
        assert "generators" not in schema.names()
