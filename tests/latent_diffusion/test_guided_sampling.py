"""Every method of guidance through `LatentDiffusion.sample`, against its formula: one step of DDIM answers the guided x_0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldmkit.errors import CheckpointError, UsageError
from ldmkit.guidance import Likelihood
from ldmkit.guidance.apg import split
from ldmkit.samplers import make_grid

VALUES = [{"a": 0, "b": 1}, {"a": 2, "b": 3}]


@pytest.fixture
def model(linear):
    return linear()


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(5))


def predicted(
    model, noise: Tensor, values: list[dict[str, int]], drop: tuple[str, ...] = (), t: float = 999.0
) -> Tensor:
    """x_0 of one branch."""
    conditioning = model.condition(values, drop=drop)
    with torch.no_grad():
        return model.denoiser(noise, torch.full((2,), t), **conditioning.kwargs())


def one_step(model, noise: Tensor, **settings) -> Tensor:
    return model.sample(VALUES, noise=noise, steps=1, output="latent", **settings)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_rescale(model, noise, scale, phi):
    """Lin et al. 2023, equation 15, also where the conditional branch has no weight of its own."""
    cond, null = predicted(model, noise, VALUES), predicted(model, noise, VALUES, drop=("a", "b"))
    plain = null + scale * (cond - null)
    ratio = (cond.std(dim=(1, 2, 3)) / plain.std(dim=(1, 2, 3))).view(-1, 1, 1, 1)
    found = one_step(model, noise, guidance=scale, guidance_options={"rescale": phi})
    close(found, phi * plain * ratio + (1 - phi) * plain)


@pytest.mark.parametrize("guidance", [0.0, 3.0, {"a": 2.0, "b": 3.0}, "null + 2*(b - null)"])
@pytest.mark.parametrize("kind", ["plain", "apg"])
def test_interval(model, noise, guidance, kind):
    """Outside, the conditional branch alone, whatever weight it has inside."""
    cond, options = predicted(model, noise, VALUES), {"type": kind}
    close(one_step(model, noise, guidance=guidance, guidance_options={**options, "interval": [0.0, 0.9]}), cond)
    inside = one_step(model, noise, guidance=guidance, guidance_options={**options, "interval": [0.5, 1.0]})
    close(inside, one_step(model, noise, guidance=guidance, guidance_options=options))
    assert not torch.allclose(inside, cond, atol=1e-2)


def test_interval_saves_the_calls_outside(model):
    model.denoiser.calls.clear()
    model.sample(VALUES, steps=10, guidance=3.0, guidance_options={"interval": [0.2, 0.5]}, output="latent")
    rows = {t: rows for rows, t in model.denoiser.calls}
    assert {t for t, count in rows.items() if count == 4} == {t for t in rows if 0.2 * 999 <= t <= 0.5 * 999}


def test_apg(model, noise):
    cond, null = predicted(model, noise, VALUES), predicted(model, noise, VALUES, drop=("a", "b"))
    difference = cond - null
    norm = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    along, across = split(difference * (2.0 / norm), cond)
    options = {"type": "apg", "parallel": 0.25, "threshold": 2.0}
    close(one_step(model, noise, guidance=5.0, guidance_options=options), cond + 4.0 * (across + 0.25 * along))
    one = one_step(model, noise, guidance=5.0, guidance_options="apg")
    close(one, cond + 4.0 * split(difference, cond)[1])


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_cfg_plus_plus(model, noise, scale, sampler):
    """Chung et al. 2024, algorithm 2, three steps."""
    grid, x = make_grid(model.diffusion.schedule, 3), noise
    for i, t in enumerate(grid.timesteps):
        cond, null = (predicted(model, x, VALUES, drop=drop, t=t) for drop in ((), ("a", "b")))
        eps = (x - grid.alpha[i] * null) / grid.sigma[i]
        x = grid.alpha[i + 1] * (null + scale * (cond - null)) + grid.sigma[i + 1] * eps
    settings = {"sampler": sampler, "guidance": scale, "guidance_options": "plus-plus"}
    close(model.sample(VALUES, noise=noise, steps=3, output="latent", **settings), x)


@pytest.mark.parametrize("strength", [1.0, [0.5, 2.0]])
def test_perp_neg(model, noise, strength):
    """Armandpour et al. 2023, equation 8, with two negatives, one of which changes one slot alone."""
    cond, null = predicted(model, noise, VALUES), predicted(model, noise, VALUES, drop=("a", "b"))
    push = main = cond - null
    for weight, against in zip([1.0, 1.0] if strength == 1.0 else strength, ({"a": 3}, {"a": 1, "b": 0}), strict=True):
        other = predicted(model, noise, [{**row, **against} for row in VALUES]) - null
        share = (other * main).sum(dim=(1, 2, 3)) / (main * main).sum(dim=(1, 2, 3))
        push = push - weight * (other - share.view(-1, 1, 1, 1) * main)
    found = one_step(
        model,
        noise,
        guidance=4.0,
        negative=[{"a": 3}, {"a": 1, "b": 0}],
        guidance_options={"type": "perp-neg", "strength": strength},
    )
    close(found, null + 4.0 * push)


def test_autoguidance(linear, noise):
    """Karras et al. 2024, equation 4; a model that never dropped anything can be guided so."""
    model, worse = linear(dropout={}), linear(share=0.1, seed=7, dropout={})
    good, bad = predicted(model, noise, VALUES), predicted(worse, noise, VALUES)
    worse.slots = model.slots
    options = {"type": "autoguidance", "model": worse}
    close(one_step(model, noise, guidance=2.5, guidance_options=options), bad + 2.5 * (good - bad))
    close(one_step(model, noise, guidance=2.5, guidance_options={**options, "interval": [0, 0.5]}), good)


def test_a_worse_model_by_its_path_is_read_once_and_is_no_part_of_the_model(linear, noise):
    read = []

    def load(path: str, weights: str):
        read.append((path, weights))
        return linear(share=0.1)

    model = linear(loader=load)
    options = {"type": "autoguidance", "model": "runs/small", "weights": "raw"}
    found = [one_step(model, noise, guidance=2.0, guidance_options=options) for _ in range(2)]
    bad = predicted(linear(share=0.1), noise, VALUES)
    close(found[0], bad + 2.0 * (predicted(model, noise, VALUES) - bad))
    assert torch.equal(*found)
    assert read == [("runs/small", "raw")]
    assert model.state_dict().keys() == linear().state_dict().keys()
    with pytest.raises(UsageError, match="cannot read runs/small"):
        one_step(linear(), noise, guidance=2.0, guidance_options=options)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda other: setattr(other.conditioners, "slots", ("a",)), "other slots: a"),
        (lambda other: other.slots.update(a=type(other.slots["a"])("letter")), "another conditioner in slot a"),
        (
            lambda other: other.slots.update(a=type(other.slots["a"])("word", {"words": ["x"]})),
            "another conditioner in slot a",
        ),
        (lambda other: other.diffusion.schedule._config.update(end=0.5), "another noise schedule"),
        (lambda other: other.autoencoder.latent_scale.fill_(2.0), "another autoencoder"),
    ],
)
def test_a_worse_model_of_another_kind_is_refused(linear, noise, spoil, message):
    other = linear()
    spoil(other)
    with pytest.raises(CheckpointError, match=message):
        one_step(linear(), noise, guidance=2.0, guidance_options={"type": "autoguidance", "model": other})


@pytest.mark.parametrize("of", ["image", "latent", "noisy"])
def test_a_likelihood_from_outside_is_climbed(model, noise, of):
    """log p = -|x_0 - y|^2 / 2: x_0 moves by sigma^2 / alpha times its gradient through the linear network."""
    target = torch.full_like(noise, 0.5)
    alpha, sigma = (float(part) for part in model.diffusion.schedule.alpha_sigma(torch.tensor(999)))
    cond = predicted(model, noise, VALUES)

    def log(x: Tensor, t: Tensor | None = None) -> Tensor:
        return -0.5 * ((x - target) ** 2).sum(dim=(1, 2, 3))

    slope = (target - noise) if of == "noisy" else 0.3 * (target - cond)
    found = one_step(model, noise, likelihood=Likelihood(log=log, of=of, scale=0.1))
    torch.testing.assert_close(found, cond + 0.1 * sigma**2 / alpha * slope, rtol=1e-3, atol=1e-3)
    off = one_step(model, noise, likelihood=Likelihood(log=log, of=of, scale=0.1, interval=(0.0, 0.5)))
    close(off, cond)


def test_a_likelihood_beside_guidance(model, noise):
    guided = one_step(model, noise, guidance=3.0)
    flat = Likelihood(log=lambda image: 0.0 * image.sum(dim=(1, 2, 3)))
    close(one_step(model, noise, guidance=3.0, likelihood=flat), guided)


def test_what_a_model_was_saved_with_and_what_is_said(linear, noise):
    saved = {
        "guidance": 3.0,
        "guidance_options": {"type": "plain", "rescale": 0.7, "interval": None},
        "negative": {"a": 1},
    }
    model, plain = linear(sampling=saved), linear()
    said = one_step(plain, noise, guidance=3.0, guidance_options={"rescale": 0.7}, negative={"a": 1})
    close(one_step(model, noise), said)
    close(one_step(model, noise, guidance_options="plain", negative={}), one_step(plain, noise, guidance=3.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_options": "apq"}, "no guidance method is called 'apq'; there are plain, apg"),
        ({"guidance_options": {"type": "apg", "rescale": 0.5}}, "has no option rescale; it has parallel, threshold"),
        ({"guidance_options": {"type": "autoguidance"}}, "autoguidance: missing 1 required.*'model'"),
        ({"guidance_options": {"interval": [0.9, 0.1]}}, "rising from 0"),
        ({"guidance_options": {"interval": [0.5]}}, "two fractions"),
        ({"guidance_options": {"rescale": 2.0}, "guidance": 3.0}, "rescale=2"),
        ({"guidance_options": "plus-plus", "guidance": 7.5}, "from 0 to 1, and it is 7.5"),
        ({"guidance_options": "plus-plus", "guidance": {"a": 0.5}}, "takes one number"),
        ({"guidance_options": "plus-plus", "guidance": 0.6, "sampler": "ddpm"}, "the sampler is ddpm"),
        ({"guidance_options": "plus-plus", "guidance": 0.6, "eta": 0.5}, "ddim with eta 0"),
        ({"guidance_options": "perp-neg", "guidance": 3.0}, "0 negatives and 0 strengths"),
        (
            {"guidance_options": {"type": "perp-neg", "strength": [1.0]}, "negative": [{"a": 1}, {"b": 1}]},
            "2 negatives and 1 strengths",
        ),
        ({"guidance_options": {"type": "perp-neg"}, "guidance": "null", "negative": {"a": 1}}, "takes one number"),
        ({"negative": [{"a": 1}, {"b": 1}], "guidance": 3.0}, "only one can stand in for the null"),
        ({"guidance_options": {"type": "autoguidance", "model": 3}, "guidance": {"a": 2.0}}, "takes one number"),
        ({"guidance_options": {"type": "autoguidance", "model": 3}, "negative": {"a": 1}}, "has no null"),
        ({"negative": {"c": 1}, "guidance": 3.0}, "no slot is called c"),
    ],
)
def test_what_does_not_go_together(model, noise, settings, message):
    with pytest.raises(UsageError, match=message):
        one_step(model, noise, **settings)


def test_a_likelihood_of_something_else():
    with pytest.raises(UsageError, match="image, latent, noisy"):
        Likelihood(log=lambda x: x, of="pixels")
    with pytest.raises(UsageError, match="rise from 0 to 1"):
        Likelihood(log=lambda x: x, interval=(0.5, 0.2))


@pytest.mark.parametrize(("kind", "negative"), [("plain", {}), ("plus-plus", {}), ("perp-neg", {"a": 1})])
def test_without_dropout_the_line_to_change_is_named(linear, noise, kind, negative):
    with pytest.raises(UsageError, match=r"conditioners\.a\.dropout: 0\.1"):
        one_step(linear(dropout={}), noise, guidance=0.5, guidance_options=kind, negative=negative)


def test_a_negative_needs_no_null(linear, noise):
    """A value that stands in for the null was trained as a value: negative + s (positive - negative), the rest kept."""
    model = linear(dropout={})
    positive, negative = predicted(model, noise, VALUES), predicted(model, noise, [{**row, "a": 3} for row in VALUES])
    guided = one_step(model, noise, guidance=3.0, negative={"a": 3})
    close(guided, negative + 3.0 * (positive - negative))
    with pytest.raises(UsageError, match=r"without b"):  # whose null nobody stands in for
        one_step(model, noise, guidance="a + 3*(all - a)", negative={"a": 3})


@pytest.mark.parametrize("kind", ["plain", "apg", "perp-neg", "plus-plus"])
def test_a_row_does_not_depend_on_its_batch(model, noise, kind):
    settings = {"guidance": 0.5, "guidance_options": kind, "negative": {"a": 3}, "steps": 4, "output": "latent"}
    together = model.sample(VALUES, noise=noise, **settings)
    apart = [model.sample([value], noise=noise[i : i + 1], **settings) for i, value in enumerate(VALUES)]
    close(together, torch.cat(apart))
