"""Tiles: exact where promised, close where blended, and never the whole image at once."""

from itertools import pairwise

import pytest
import torch

from ldmkit.autoencoder import exact_decode, exact_encode, make, tiled_decode, tiled_encode
from ldmkit.autoencoder.layers import Norm
from ldmkit.autoencoder.tiling import starts
from ldmkit.errors import UsageError
from ldmkit.random import generators

pytestmark = pytest.mark.usefixtures("no_gradients")
SMALL = {"channels": 8, "blocks": 1, "latent_channels": 4, "middle_attention": True}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def network(kind="kl", **options):
    torch.manual_seed(0)
    return make(kind, **{**SMALL, **options}).double().eval()


def picture(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kl", {"downsample": 1}),
        ("kl", {"downsample": 8, "multipliers": (1, 1, 2, 2)}),
        ("kl", {"downsample": 4, "blocks": 2, "resolution": 64, "attention": (16, 32)}),
        ("vq", {"downsample": 4, "codebook": 8}),
        ("kl", {"downsample": 4, "shortcut": True}),
    ],
)
@pytest.mark.parametrize("tile", [16, 26])
def test_two_pass_form_is_exact(kind, options, tile):
    """In float64, so that only a wrong algorithm could show."""
    model, images = network(kind, **options), picture(32, 40)
    latents = model.encode(images)
    torch.testing.assert_close(exact_encode(model, images, tile=tile), latents, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact_decode(model, latents, tile=tile), model.decode(latents), rtol=1e-9, atol=1e-9)
    assert all(module.normaliser is None for module in model.modules() if isinstance(module, Norm))


def test_two_pass_form_with_noise_padding_and_scale():
    model, images = network(downsample=4, pad=True), picture(45, 50)
    model.latent_scale.fill_(0.3)
    latents = model.encode(images, generators(0, "z", range(2)))
    torch.testing.assert_close(
        exact_encode(model, images, generators(0, "z", range(2)), tile=16), latents, rtol=1e-9, atol=1e-9
    )
    found = exact_decode(model, latents, tile=16, size=(45, 50))
    torch.testing.assert_close(found, model.decode(latents, size=(45, 50)), rtol=1e-9, atol=1e-9)


def largest_map(run):
    """Entries of the largest input any norm saw."""
    sizes, hooks = [], []
    model = run.model
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel())))
    run()
    for hook in hooks:
        hook.remove()
    return max(sizes)


def test_no_layer_sees_the_whole_image():
    model = network(downsample=4, middle_attention=False)
    latents = torch.randn(1, 4, 48, 48, dtype=torch.float64)

    class Run:
        def __init__(self, call):
            self.model, self.call = model, call

        def __call__(self):
            self.call()

    whole = largest_map(Run(lambda: model.decode(latents)))
    assert largest_map(Run(lambda: tiled_decode(model, latents, tile=12, overlap=4))) * 15 < whole
    assert largest_map(Run(lambda: exact_decode(model, latents, tile=32))) * 4 < whole


def test_one_tile_is_the_whole():
    model, images = network(downsample=4), picture(32, 48)
    latents = model.encode(images)
    torch.testing.assert_close(tiled_encode(model, images, tile=64), latents)
    torch.testing.assert_close(tiled_decode(model, latents, tile=64), model.decode(latents))


def test_without_norms_tiles_agree_with_the_whole():
    """What makes tiling inexact is group norm alone: with its statistics held still and margins in the overlap, seams vanish."""
    model, images = network(downsample=2, middle_attention=False), picture(64, 64)

    def still(norm, x):
        return x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)

    for module in model.modules():
        if isinstance(module, Norm):
            module.normaliser = still
    latents = model.encode(images)
    inner = (..., slice(1, 7), slice(1, 7))
    tiles = tiled_decode(model, latents, tile=28, overlap=24)
    whole = model.decode(latents)
    torch.testing.assert_close(tiles[inner], whole[inner])
    assert (tiles - whole).abs().mean() < 0.02 * whole.std()


def test_blending_weights_sum_to_one():
    """An autoencoder that returns its input (identity) comes back whole from any tiling."""
    model, images = make("identity").double(), picture(37, 53)
    for tile, overlap in ((8, 0), (8, 3), (16, 15), (100, 1)):
        torch.testing.assert_close(tiled_decode(model, images, tile=tile, overlap=overlap), images)
        torch.testing.assert_close(tiled_encode(model, images, tile=tile, overlap=overlap), images)


def test_error_falls_with_the_size_of_tiles():
    model, images = network(downsample=4), picture(96, 96, count=1)
    latents = model.encode(images)
    whole = model.decode(latents)
    errors = [float((tiled_decode(model, latents, tile=tile, overlap=4) - whole).abs().mean()) for tile in (8, 14, 20)]
    assert errors == sorted(errors, reverse=True)


def test_noise_of_a_tiled_posterior_is_drawn_once():
    model, images = network(downsample=4), picture(32, 32)
    found = tiled_encode(model, images, generators(0, "z", range(2)), tile=100)
    torch.testing.assert_close(found, model.encode(images, generators(0, "z", range(2))))


def test_tiles_cover_and_stay_inside():
    for length in (5, 16, 17, 40):
        for overlap in (0, 3):
            places = starts(length, 16, overlap)
            assert places[0] == 0
            assert places[-1] + min(16, length) == length
            assert all(b - a <= 16 - overlap for a, b in pairwise(places))


def test_impossible_tiles():
    model, latents = network(downsample=2), torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    with pytest.raises(UsageError, match="overlap is 4 and tile is 4"):
        tiled_decode(model, latents, tile=4, overlap=4)
    with pytest.raises(UsageError, match="must be even"):
        exact_decode(model, latents, tile=7)
