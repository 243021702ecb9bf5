"""Alignment: the cosine by hand, what is cached of it, the average that is asked, and gradients that do not notice."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from ldmkit.data import batches
from ldmkit.errors import RecipeError
from ldmkit.image_features import EfficientNetLite0
from ldmkit.losses import ExtraLosses
from ldmkit.losses.alignment import Alignment, SelfAlignment, as_map
from ldmkit.losses.extra import Part, layer_features
from ldmkit.training.caching import targets
from ldmkit.training.ema import EMA

SHAPES = {"middle_block": (16, 4, 4), "output_blocks.0": (16, 4, 4)}


@pytest.fixture
def model(toy):
    return toy.model().train()


@pytest.fixture
def step(toy, model):
    """(batch, draws) of the first step."""
    (batch,) = batches(toy.data(), model.conditioners, start=0, batch=4, seed=7, steps=1)
    return batch, model.draw(batch.positions, 7)


def built(term):
    torch.manual_seed(5)
    term.load_pretrained()
    term.setup(SHAPES)
    return term


def gradients(model, step):
    model.zero_grad()
    torch.manual_seed(0)  # dropout's
    loss, parts = model(*step)
    loss.backward()
    return parts, {name: p.grad.clone() for name, p in model.denoiser.named_parameters()}


def test_it_is_one_minus_the_cosine_against_timms_network(model, step):
    term = built(Alignment(layer="middle_block", side=64, hidden=8))
    model.extra = ExtraLosses({"align": Part(term)})
    model.eval()
    with layer_features(model.denoiser, ["middle_block"]) as features:
        model.losses(*step)
    _, parts = model.losses(*step, model.extra)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    weights = EfficientNetLite0().network.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    with torch.no_grad():
        large = F.interpolate(step[0].images, (64, 64), mode="bilinear", antialias=True)
        wanted = network(large)[3]
        found = F.interpolate(term.project(features["middle_block"]), (4, 4), mode="bilinear")
        lengths = found.square().sum(1).sqrt() * wanted.square().sum(1).sqrt()
        expected = 1 - ((found * wanted).sum(1) / lengths).mean()
    assert wanted.shape == (4, 112, 4, 4)
    torch.testing.assert_close(parts["losses/align"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_computed_once_is_what_each_step_computes(toy, model, step, tmp_path):
    term = built(Alignment(layer="middle_block", side=64, hidden=8))
    model.extra = ExtraLosses({"align": Part(term)})
    data = toy.data(flip=False)
    order = data.order(7, 4)
    keys = {"align": targets.fingerprint(term, {"data": "squares"})}
    cache = targets.build(model.extra, data, folder=tmp_path, keys=keys, order=order, most=None)
    assert cache is not None
    batch, draws = step
    attached = cache.attach(batch)
    torch.testing.assert_close(attached.targets["align"], term.target(batch.images), rtol=1e-4, atol=1e-4)
    assert torch.equal(attached.select([2, 0]).targets["align"], attached.targets["align"][[2, 0]])
    # it is read, and not computed again
    model.eval()
    doubled = {"align": -attached.targets["align"]}
    plain, turned = (
        model.losses(type(batch)(**{**vars(batch), "targets": given}), draws, model.extra)[1]["losses/align"]
        for given in (attached.targets, doubled)
    )
    torch.testing.assert_close(plain + turned, torch.tensor(2.0))
    assert targets.build(model.extra, data, folder=tmp_path, keys=keys, order=order, most=100) is None


def test_the_encoder_is_not_trained_and_not_saved(model):
    model.extra = ExtraLosses({"align": Part(built(Alignment(layer="middle_block", side=64, hidden=8)))})
    assert all(name.startswith("losses.align.project.") for name in model.extra.trained())


def test_the_average_predicts_with_its_own_weights_at_the_earlier_timestep(model, step):
    term = built(SelfAlignment(layer="middle_block", toward="output_blocks.0", hidden=8, earlier=0.25))
    given = {}
    term.register_forward_pre_hook(lambda module, inputs: given.update({"pass": inputs[0]}))
    model.extra = ExtraLosses({"own": Part(term)})
    ema = EMA(dict(model.named_parameters()), decay=0.5)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.extra.average = ema.applied
    model(*step)
    found = given["pass"]
    wanted = term._target(found)
    averaged = {name.removeprefix("denoiser."): p for name, p in ema.tensors().items() if name.startswith("denoiser.")}
    earlier = found.timesteps * 0.25
    noisy = model.diffusion.noised(found.latents, found.noise, earlier)
    model.denoiser.eval()
    with torch.no_grad(), layer_features(model.denoiser, ["output_blocks.0"]) as features:
        torch.func.functional_call(model.denoiser, averaged, (noisy, earlier), found.conditioning.kwargs())
    torch.testing.assert_close(wanted, features["output_blocks.0"])
    assert not torch.allclose(wanted, found.features["output_blocks.0"])


def test_a_pass_of_the_average_in_between_leaves_the_gradients_as_they_are(model, step):
    _, plain = gradients(model, step)
    ema = EMA(dict(model.named_parameters()), decay=0.5)
    with torch.no_grad():
        for average in ema.tensors().values():
            average.add_(1.0)
    model.extra = ExtraLosses({"own": Part(built(SelfAlignment(layer="middle_block", hidden=8)), weight=0.0)})
    model.extra.average = ema.applied
    model.train()
    _, again = gradients(model, step)
    assert model.denoiser.training
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value)


def test_tokens_lie_as_the_latents_do():
    latents = torch.zeros(2, 3, 4, 8)
    features = torch.arange(2 * 5 * 2 * 4.0).view(2, 5, 2, 4)
    assert torch.equal(as_map(features.flatten(2).transpose(1, 2), latents), features)
    assert as_map(features, latents) is features


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="side is 16; the encoder needs images of 32 pixels a side or more"):
        Alignment(layer="middle_block", side=16)
    with pytest.raises(RecipeError, match="earlier is 0"):
        SelfAlignment(layer="middle_block", earlier=0.0)
