"""Starting from a picture: varied, painted anew in part, turned back into noise. Latents are the pictures themselves here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldmkit import samplers
from ldmkit.autoencoder import make
from ldmkit.errors import DivergedError, UsageError
from ldmkit.latent_diffusion import sampling, user_images
from ldmkit.random import sample_generators

VALUES = {"a": 0, "b": 1}


@pytest.fixture
def model(linear):
    return linear()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1


def denoiser(model, rows: int = 2):
    conditioning = model.condition(VALUES, count=rows)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return model.denoiser(x, t, **conditioning.kwargs())

    return denoise


def left_half() -> Tensor:
    mask = torch.zeros(4, 6)
    mask[:, :3] = 1
    return mask


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm"])
def test_strength(model, image, sampler):
    function, path = getattr(samplers, sampler), model.diffusion.schedule
    expected = samplers.img2img(
        function, denoiser(model), image, model.noise([4, 5]), path, 10, strength=0.4,
        generators=_after_the_noise(4, 2, image.shape[1:]),
    )  # fmt: skip
    found = model.sample(VALUES, image=image, strength=0.4, seed=4, steps=10, sampler=sampler, output="latent", count=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _after_the_noise(seed: int, count: int, shape: tuple[int, ...]) -> list[torch.Generator]:
    """The generators as they are once x_T was drawn from them."""
    sources = sample_generators(seed, count)
    for source in sources:
        torch.empty(*shape).normal_(generator=source)
    return sources


def test_without_a_strength_three_quarters_are_taken(model, image):
    settings = {"image": image, "steps": 8, "output": "latent", "count": 2}
    model.denoiser.calls.clear()
    found = model.sample(VALUES, **settings)
    assert len(model.denoiser.calls) == 6
    assert torch.equal(found, model.sample(VALUES, strength=0.75, **settings))


def test_one_picture_serves_all_rows_and_pictures_count_themselves(model, image):
    settings = {"steps": 2, "strength": 0.5, "output": "latent"}
    alone = model.sample(VALUES, image=image[0], count=2, **settings)
    assert torch.equal(alone, model.sample(VALUES, image=image[:1].expand(2, -1, -1, -1), count=2, **settings))
    assert len(model.sample(image=image, **settings)) == 2
    with pytest.raises(UsageError, match=r"pictures of shape \(2, 3, 4, 6\); here they are \(3, 3, 4, 6\)"):
        model.sample(VALUES, image=image, count=3, **settings)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm", "repaint"])
def test_a_mask_keeps_the_picture_and_paints_the_rest_anew(model, image, sampler):
    settings = {"steps": 5, "sampler": sampler, "output": "tensor", "count": 2}
    found = model.sample(VALUES, image=image, keep=left_half(), **settings)
    assert torch.equal(found[..., :3], image[..., :3])
    assert float((found[..., 3:] - image[..., 3:]).abs().mean()) > 0.2
    latent = model.sample(VALUES, image=image, keep=left_half(), **{**settings, "output": "latent"})
    torch.testing.assert_close(latent[..., :3], image[..., :3], rtol=1e-5, atol=1e-5)


def test_repaint_is_the_function_of_that_name(model, image):
    mask = left_half().view(1, 1, 4, 6)
    expected = samplers.repaint(
        denoiser(model), model.noise([0, 1]), model.diffusion.schedule, 6, known=image, mask=mask, jump=2, resample=3,
        generators=_after_the_noise(0, 2, image.shape[1:]),
    )  # fmt: skip
    settings = {"steps": 6, "sampler": "repaint", "jump": 2, "resample": 3, "output": "latent", "count": 2}
    found = model.sample(VALUES, image=image, keep=mask, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_white_is_painted_anew(model, image):
    """The convention of everybody else; `keep` is the reverse."""
    settings = {"image": image, "steps": 3, "output": "tensor", "count": 2}
    found = model.sample(VALUES, mask=1 - left_half(), **settings)
    assert torch.equal(found, model.sample(VALUES, keep=left_half(), **settings))
    assert torch.equal(found[..., :3], image[..., :3])


def test_a_mask_and_a_strength_together(model, image):
    model.denoiser.calls.clear()
    found = model.sample(VALUES, image=image, keep=left_half(), strength=0.5, steps=10, output="tensor", count=2)
    assert len(model.denoiser.calls) == 5
    assert torch.equal(found[..., :3], image[..., :3])


def test_a_latent_pixel_is_kept_as_far_as_all_it_stands_for():
    mask = torch.ones(1, 1, 4, 8)
    mask[..., 1, 2] = 0.0
    mask[..., 3, 7] = 0.25
    assert user_images.on_grid(mask, (2, 2)).tolist() == [[[[0.0, 1.0], [1.0, 0.25]]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.5}, "strength 0.5 is of a picture to start from, and none was given"),
        ({"keep": left_half()}, "a mask needs an image"),
        ({"sampler": "repaint"}, "the sampler repaint needs an image and a mask"),
        ({"image": torch.zeros(1, 3, 4, 5)}, r"pictures of shape \(1, 3, 4, 5\)"),
        ({"image": torch.zeros(1, 1, 4, 6)}, r"pictures of shape \(1, 1, 4, 6\)"),
        ({"image": torch.zeros(1, 3, 4, 6), "strength": 0.0}, "strength 0: above 0"),
        ({"image": torch.zeros(1, 3, 4, 6), "strength": 1.5}, "strength 1.5: above 0"),
        ({"image": torch.zeros(1, 3, 4, 6), "strength": 0.01}, "leaves no step to take"),
        ({"image": torch.zeros(1, 3, 4, 6), "mask": torch.zeros(3, 6)}, "masks of shape"),
        ({"image": torch.zeros(1, 3, 4, 6), "mask": 2 * left_half()}, "1 paints anew and 0 keeps"),
        ({"image": 3}, "not int"),
        ({"image": torch.full((1, 3, 4, 6), 255.0)}, r"a tensor from 255 to 255: images lie in"),
        ({"image": torch.zeros(1, 3, 4, 6), "mask": left_half(), "keep": left_half()}, "mask and keep both"),
        ({"image": []}, "no picture was given"),
        ({"noise": torch.zeros(1, 3, 4, 4)}, "noise of shape"),
        ({"sampler": "ddin"}, "no sampler is called 'ddin'"),
    ],
)
def test_what_cannot_be(model, settings, message):
    with pytest.raises(UsageError, match=message):
        model.sample(VALUES, steps=10, count=1, **settings)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("kind", ["plain", "plus-plus"])
def test_impossible_steps(model, steps, kind):
    with pytest.raises(UsageError, match="1 to 1000"):
        model.sample(VALUES, steps=steps, guidance_options=kind)


def test_a_network_that_breaks_names_the_timestep(model):
    model.denoiser.share.data.fill_(float("inf"))
    with pytest.raises(DivergedError, match="timestep 999 is not finite"):
        model.sample(VALUES, steps=5)


def test_pictures_from_files(tmp_path):
    """Cut in the middle, in the channels that are asked for; what is no picture is named."""
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 3:9] = [255, 0, 51]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = user_images.read(tmp_path / "wide.png", size=(4, 6), channels=3, count=2)
    assert found.shape == (2, 3, 4, 6)
    torch.testing.assert_close(found[1, :, 2, 3], torch.tensor([1.0, -1.0, -0.6]))
    assert torch.equal(user_images.read(Image.open(tmp_path / "wide.png"), size=(4, 6), channels=3, count=2), found)
    assert user_images.read(str(tmp_path / "wide.png"), size=(4, 6), channels=1, count=1).shape == (1, 1, 4, 6)
    mask = user_images.read_mask(Image.fromarray(255 * (wide[..., 0] > 0).astype(np.uint8)), size=(4, 12), count=1)
    assert mask[0, 0, 0].tolist() == [0] * 3 + [1] * 6 + [0] * 3
    ones = Image.fromarray((wide[..., 0] > 0).astype(np.uint8))
    assert torch.equal(user_images.read_mask(ones, size=(4, 12), count=1), mask), "0 and 1 are black and white"
    (tmp_path / "no.png").write_text("no")
    for missing in ("no.png", "none.png"):
        with pytest.raises(UsageError, match=missing):
            user_images.read(tmp_path / missing, size=(4, 6), channels=3, count=1)
    with pytest.raises(UsageError, match="give a tensor"):
        user_images.read(tmp_path / "wide.png", size=(4, 6), channels=5, count=1)


def test_inverted_noise_makes_the_picture_again(linear, image):
    """Through a network that is near the identity, where the iteration is sure to end."""
    model = linear(share=0.9)
    settings = {"steps": 20, "spacing": "leading"}
    noise = model.invert(0.1 * image, [VALUES, {"a": 2, "b": 3}], iterations=30, **settings)
    again = model.sample([VALUES, {"a": 2, "b": 3}], noise=noise, output="latent", **settings)
    torch.testing.assert_close(again, 0.1 * image, rtol=1e-3, atol=1e-3)


def test_inversion_takes_the_steps_that_sampling_would(linear, image):
    saved = {"sampler": "ddim", "steps": 4, "spacing": "leading", "guidance": 3.0}
    model, plain = linear(share=0.9, sampling=saved), linear(share=0.9)
    assert torch.equal(model.invert(image), plain.invert(image, steps=4, spacing="leading"))


def test_noise_of_seeds_is_what_sample_draws(model):
    settings = {"steps": 2, "output": "latent"}
    found = model.sample(VALUES, count=2, noise=model.noise([7, 8]), **settings)
    assert torch.equal(found, model.sample(VALUES, count=2, seed=7, **settings))
    first, last = model.noise([3]), model.noise([9])
    between = samplers.slerp(first, last, torch.tensor([0.0, 0.5, 1.0]))
    row = model.sample(VALUES, count=3, noise=between, **settings)
    torch.testing.assert_close(row[:1], model.sample(VALUES, noise=first, **settings), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(row[2:], model.sample(VALUES, noise=last, **settings), rtol=1e-4, atol=1e-4)


def test_intermediates(model):
    seen = []
    final = model.sample(VALUES, steps=4, output="latent", callback=lambda *now: seen.append(now))
    assert [(done, total) for done, total, _, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(seen[-1][2], final)
    assert all(clean.shape == final.shape for *_, clean in seen)


def test_the_scale_of_the_latents_is_minded(linear, image):
    """Pictures go in through `encode`: with another latent scale the same picture comes back."""
    model = linear()
    model.autoencoder = make("identity")
    model.autoencoder.latent_scale.fill_(0.25)
    latent = model.sample(VALUES, image=image, keep=torch.ones(4, 6), steps=2, output="latent", count=2)
    torch.testing.assert_close(latent, 0.25 * image)
    torch.testing.assert_close(
        model.sample(VALUES, image=image, keep=torch.ones(4, 6), steps=2, output="tensor", count=2), image
    )


def test_settings_of_a_saved_sampler_belong_to_it(linear):
    model = linear(sampling={"sampler": "ddim", "steps": 7, "eta": 1.0, "spacing": "leading"})
    asked = sampling.Settings().completed(model)
    assert asked.options == {"eta": 1.0, "spacing": "leading"}
    assert sampling.Settings(sampler="ddim").completed(model).options == asked.options
    other = sampling.Settings(sampler="euler", options={"s_churn": 2.0}).completed(model)
    assert (other.options, other.steps) == ({"s_churn": 2.0, "spacing": "leading"}, 7)
    model.sampling["spacing"] = "trailing"  # what ddim takes by itself: nobody chose it
    assert sampling.Settings(sampler="dpmpp_2m").completed(model).options == {}
    model.sampling["clean"] = False
    assert sampling.Settings(sampler="dpmpp_2m").completed(model).options == {"clean": False}
