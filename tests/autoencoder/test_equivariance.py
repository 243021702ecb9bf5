"""The equivariance term against autoencoders for which the right value is known."""

import pytest
import torch
import torch.nn.functional as F

from ldmkit.autoencoder import make, make_loss
from ldmkit.autoencoder.equivariance import EquivarianceOptions, Transformation, draw
from ldmkit.errors import RecipeError, UsageError
from ldmkit.recipe import Recipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(side=32):
    smooth = torch.randn(2, 3, 4, 4, generator=generator(), dtype=torch.float64)
    return F.interpolate(smooth, (side, side), mode="bicubic").clamp(-1, 1)


def nearest(latents):
    return latents.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_a_transformation_resizes_and_turns_counter_clockwise():
    ramp = torch.arange(6.0).reshape(1, 1, 2, 3)
    turned = Transformation((2, 3), quarters=1).of(ramp)
    assert turned[0, 0].tolist() == [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
    assert Transformation((4, 2)).of(torch.zeros(1, 3, 32, 64), cell=4).shape == (1, 3, 16, 8)
    flat = Transformation((3, 2), quarters=3).of(torch.full((1, 1, 8, 8), 0.25))
    torch.testing.assert_close(flat, torch.full((1, 1, 2, 3), 0.25))


def test_draws_are_within_what_was_asked():
    found = [draw(EquivarianceOptions(smallest=0.5), (8, 12), generator(seed)) for seed in range(200)]
    assert {f.grid[0] for f in found} == {4, 5, 6, 7, 8}
    assert {f.grid[1] for f in found} == set(range(6, 13))
    assert {f.quarters for f in found} == {0, 1, 2, 3}
    assert draw(EquivarianceOptions(smallest=1, turns=False), (8, 12), generator()) == Transformation((8, 12))
    assert min(draw(EquivarianceOptions(smallest=0.01), (2, 2), generator(s)).grid[0] for s in range(50)) == 1


def test_an_equivariant_decoder_pays_nothing_and_another_one_does():
    """Means of 4 x 4 pixels, enlarged: turning and the transformation of a picture that is constant in each square commute."""
    loss = make_loss(equivariance={"smallest": 1.0})
    latents = F.avg_pool2d(images(), 4)
    flat = nearest(latents)
    for seed in range(6):
        term, _ = loss.equivariance(nearest, flat, latents, generator(seed))
        assert float(term) == 0
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64)[None, None, None]
    for seed in range(6):
        quarters = draw(loss.equivariance_options, (8, 8), generator(seed)).quarters
        # A decoder that adds a ramp from left to right, wherever the picture's left went.
        term, part = loss.equivariance(lambda z: nearest(z) + ramp, flat + ramp, latents, generator(seed))
        image, turned = (torch.rot90(x, quarters, (-2, -1)) for x in ((flat + ramp).clamp(-1, 1), latents))
        expected = (image - (nearest(turned) + ramp)).abs().mean()
        assert float(term) == pytest.approx(float(expected), rel=1e-12)
        assert float(part["equivariance"]) == float(term)
    assert float(expected) > 0.01


def test_the_weight_and_the_steps_it_counts_in():
    options = {"weight": 0.5, "every": 3, "smallest": 0.5}
    loss, plain = make_loss(equivariance=options), make_loss(equivariance={"smallest": 0.5})
    assert [loss.equivariance_active(step) for step in range(4)] == [True, False, False, True]
    assert not make_loss().equivariance_active(0)
    assert not make_loss(equivariance={"weight": 0.0}).equivariance_active(0)
    latents = F.avg_pool2d(images(), 4)
    once = plain.equivariance(nearest, images(), latents, generator(1))[0]
    assert float(loss.equivariance(nearest, images(), latents, generator(1))[0]) == pytest.approx(1.5 * float(once))
    summed = make_loss(equivariance={"smallest": 0.5}, reduction="sum")
    assert float(summed.equivariance(nearest, images(), latents, generator(1))[0]) == pytest.approx(3072 * float(once))


def test_images_too_small_for_the_backbone_are_compared_by_pixels():
    loss = make_loss(perceptual={"net": "squeeze", "weights": "random"}, equivariance={"smallest": 0.3}).double()
    plain = make_loss(equivariance={"smallest": 0.3})
    latents = F.avg_pool2d(images(), 4)
    seeds = {draw(loss.equivariance_options, (8, 8), generator(s)).grid: s for s in range(200)}
    for grid, larger in (((3, 3), False), ((8, 7), True)):
        own, pixels = (x.equivariance(nearest, images(), latents, generator(seeds[grid]))[0] for x in (loss, plain))
        assert (float(own) > float(pixels) * 1.001) == larger


def test_it_reaches_encoder_and_decoder():
    model = make("kl", channels=8, blocks=1, downsample=4, latent_channels=4).double()
    loss = make_loss(equivariance={})
    latents = model.posterior(images()).mode()
    loss.equivariance(model.decode, images(), latents, generator())[0].backward()
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight"):
        assert model.get_parameter(name).grad.any(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weight": -1}, "weight is -1"), ({"smallest": 0}, "smallest is 0"), ({"every": 0}, "every is 0")],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(UsageError, match=words):
        make_loss(equivariance=options)


def test_codes_are_refused():
    section = {"type": "vq", "loss": {"equivariance": {}}, "train": {"steps": 1}}
    with pytest.raises(RecipeError, match="no gradient passes through codes"):
        Recipe.parse(
            {"name": "x", "data": {"type": "digits", "size": 32}, "autoencoder": section, "train": {"steps": 1}}
        )
