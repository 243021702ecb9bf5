"""Losses against closed forms, finite differences, and autograd asked the straightforward way."""

import pytest
import torch
import torch.nn.functional as F

from ldmkit.autoencoder import AutoencoderLoss, Posterior, Reconstruction, make, make_loss
from ldmkit.errors import UsageError

GAME = {"layers": 1, "channels": 4, "norm": "none"}


def pair(count=2, side=12):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    return images, torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1


def reconstructed(images, **terms):
    return Reconstruction(
        images, Posterior(images), {key: torch.tensor(value).double() for key, value in terms.items()}
    )


def value(loss, images, reconstruction, step=0):
    return loss.generator(images, reconstruction, step, torch.zeros(1))[0]


@pytest.mark.parametrize(("pixel", "distance"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_pixel_loss_and_its_reductions(pixel, distance):
    images, others = pair()
    mean = value(make_loss(pixel=pixel), images, reconstructed(others))
    torch.testing.assert_close(mean, distance(others, images))
    total = value(make_loss(pixel=pixel, reduction="sum"), images, reconstructed(others))
    torch.testing.assert_close(total, distance(others, images, reduction="sum") / len(images))


def test_released_kl_loss():
    """Summed absolute errors over batch, plus 1e-6 times the summed KL divergence: the original's weights."""
    images, others = pair()
    posterior = Posterior(torch.randn(2, 4, 3, 3).double(), torch.randn(2, 4, 3, 3).double())
    normal = torch.distributions.Normal(posterior.mean, posterior.logvar.exp().sqrt())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), kl)
    reconstruction = Reconstruction(others, posterior, {"kl": posterior.kl().mean()})
    expected = (images - others).abs().sum() / 2 + 1e-6 * kl.sum() / 2
    torch.testing.assert_close(value(make_loss(reduction="sum", kl=1e-6), images, reconstruction), expected)
    mean = value(make_loss(reduction="mean", kl=1e-6), images, reconstruction)
    torch.testing.assert_close(mean * images[0].numel(), expected)


def test_codebook_weight():
    images, others = pair()
    found = value(make_loss(codebook=0.5), images, reconstructed(others, codebook=3.0, perplexity=9.0))
    torch.testing.assert_close(found, (images - others).abs().mean() + 1.5)


def test_log_variance_learns():
    """At its best, exp(s) is the mean error, and the loss 1 + s; gradient descent finds it."""
    images, others = pair()
    loss = make_loss(learn_logvar=True).double()
    (logvar,) = loss.generator_parameters()
    optimizer = torch.optim.SGD([logvar], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        value(loss, images, reconstructed(others)).backward()
        optimizer.step()
    error = (images - others).abs().mean()
    torch.testing.assert_close(logvar.detach(), error.log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value(loss, images, reconstructed(others)).detach(), 1 + error.log())
    assert make_loss().generator_parameters() == []


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_gradients_against_finite_differences(kind):
    torch.manual_seed(0)
    options = {"codebook": 8} if kind == "vq" else {}
    model = make(kind, channels=4, downsample=2, blocks=1, latent_channels=2, **options).double()
    loss = make_loss(
        pixel="l2",
        perceptual={"net": "squeeze", "weights": "random", "weight": 0.5},
        kl=0.1,
        learn_logvar=True,
        logvar=0.3,
    ).double()
    images = pair(1, 18)[0]
    noise = torch.randn(1, *model.latent_shape((18, 18)), dtype=torch.float64)

    def total() -> torch.Tensor:
        return loss.generator(images, model(images, noise), 0, model.last_layer)[0]

    model.eval()
    total().backward()
    # For VQ, parameters before the quantiser have a straight-through gradient, which is none of the function's.
    names = ["decoder.conv_in.weight", "decoder.conv_out.bias"] + (["encoder.conv_out.bias"] if kind == "kl" else [])
    watched = [dict(model.named_parameters())[name] for name in names] + [loss.logvar]
    for parameter in watched:
        with torch.no_grad():
            entry, step = parameter.view(-1)[0], 1e-6
            entry += step
            above = total()
            entry -= 2 * step
            below = total()
            entry += step
        torch.testing.assert_close(parameter.grad.view(-1)[0], (above - below) / (2 * step), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_adversarial_gradients_are_those_of_the_plain_way(reduction, learn):
    """Eq. 7 of arXiv 2012.09841 by two full backward passes, against the loss that goes through each network once."""
    torch.manual_seed(0)
    model = make("kl", channels=8, downsample=2, blocks=1).double()
    loss = make_loss(
        reduction=reduction, adversarial={**GAME, "weight": 0.7, "factor": 0.9}, learn_logvar=learn, logvar=0.2
    ).double()
    images, _ = pair()

    reconstruction = model(images)
    whole = images[0].numel() if reduction == "sum" else 1
    nll = whole * ((images - reconstruction.images).abs().mean() / loss.logvar.exp() + loss.logvar)
    game = -loss.discriminator(reconstruction.images).mean()
    norms = [torch.autograd.grad(term, model.last_layer, retain_graph=True)[0].norm() for term in (nll, game)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    expected = nll + weight * 0.7 * 0.9 * game + whole * 1e-6 * reconstruction.terms["kl"] / images[0].numel()
    parameters = [*model.parameters(), *loss.generator_parameters()]
    wanted = torch.autograd.grad(expected, parameters)

    found, parts = loss.generator(images, model(images), 0, model.last_layer)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts["adaptive_weight"], weight)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), wanted)
    assert all(parameter.grad is None for parameter in loss.discriminator.parameters())


def test_adaptive_weight_is_clamped_and_zero_without_gradients():
    model, images = make("kl", channels=8, downsample=2, blocks=1).double(), pair()[0]
    loss = make_loss(reduction="sum", adversarial=GAME).double()
    with torch.no_grad():
        for parameter in loss.discriminator.parameters():
            parameter.mul_(1e-9)
        found, parts = loss.generator(images, model(images), 0, model.last_layer)
    torch.testing.assert_close(found, parts["nll"] + 1e-6 * parts["kl"])
    assert float(parts["adaptive_weight"]) == 0
    loss.generator(images, model(images), 0, model.last_layer)
    assert float(loss.generator(images, model(images), 0, model.last_layer)[1]["adaptive_weight"]) == 1e4


def test_game_starts_at_its_generator_step():
    images, others = pair()
    loss = make_loss(adversarial={**GAME, "start": 3}).double()
    assert [loss.adversarial_active(step) for step in range(5)] == [False, False, False, True, True]
    for step in (2, 3):
        _, parts = loss.generator(images, reconstructed(others), step, torch.zeros(1))
        assert ("adversarial" in parts) is (step >= 3)
        found, parts = loss.discriminator_loss(images, others, step)
        assert found.requires_grad is (step >= 3)
        assert bool(parts) is (step >= 3)
    assert not make_loss().adversarial_active(10**9)


class Fixed(torch.nn.Module):
    """Stands for a discriminator whose logits are known: the mean of an image."""

    def forward(self, images):
        return 3 * images.mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_losses_in_closed_form(kind):
    loss = make_loss(adversarial={**GAME, "loss": kind, "factor": 0.5}).double()
    loss.discriminator = Fixed()
    images, others = pair()
    real, fake = (3 * x.mean(dim=(1, 2, 3)) for x in (images, others))
    if kind == "hinge":
        expected = 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())
    else:
        expected = 0.5 * (-torch.sigmoid(real).log().mean() - torch.sigmoid(-fake).log().mean())
    found, parts = loss.discriminator_loss(images, others, 0)
    torch.testing.assert_close(found, 0.5 * expected)
    torch.testing.assert_close(parts["discriminator"], expected)
    torch.testing.assert_close(parts["real"], real.mean())


def test_gradient_penalty_in_closed_form():
    """D(x) = 3 mean(x) has the gradient 3 / n everywhere, so |gradient|^2 = 9 / n."""
    loss = make_loss(adversarial={**GAME, "r1": 10.0}).double()
    loss.discriminator = Fixed()
    images, others = pair()
    bare = make_loss(adversarial=GAME).double()
    bare.discriminator = Fixed()
    found, parts = loss.discriminator_loss(images, others, 0)
    penalty = 9 / images[0].numel()
    assert float(parts["r1"]) == pytest.approx(penalty)
    torch.testing.assert_close(found.detach(), bare.discriminator_loss(images, others, 0)[0] + 5 * penalty)


def test_gradient_penalty_reaches_the_weights():
    torch.manual_seed(0)
    loss = make_loss(adversarial={**GAME, "r1": 2.0, "norm": "batch"}).double()
    images, others = pair()
    weight = loss.discriminator.main[0].weight
    (gradient,) = torch.autograd.grad(loss.discriminator_loss(images, others, 0)[0], weight)
    with torch.no_grad():
        step = 1e-6
        weight[0, 1, 2, 3] += step
    above = loss.discriminator_loss(images, others, 0)[0].detach()
    with torch.no_grad():
        weight[0, 1, 2, 3] -= 2 * step
    below = loss.discriminator_loss(images, others, 0)[0].detach()
    torch.testing.assert_close(gradient[0, 1, 2, 3], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def test_lecam_in_closed_form():
    """Eq. 4 of arXiv 2104.03310 with averages that start at 0 and have seen one batch."""
    loss = make_loss(adversarial={**GAME, "lecam": 0.1, "lecam_decay": 0.75}).double()
    loss.discriminator = Fixed()
    images, others = pair()
    real, fake = (3 * x.mean(dim=(1, 2, 3)) for x in (images, others))
    _, parts = loss.discriminator_loss(images, others, 0)
    expected = (real - 0.25 * fake.mean()).square().mean() + (fake - 0.25 * real.mean()).square().mean()
    torch.testing.assert_close(parts["lecam"], expected)
    torch.testing.assert_close(loss.lecam_real, 0.25 * real.mean())
    loss.eval().discriminator_loss(images, others, 0)
    torch.testing.assert_close(loss.lecam_real, 0.25 * real.mean())


def test_conditional_discriminator():
    loss = make_loss(adversarial={**GAME, "condition_channels": 2}).double()
    images, others = pair()
    condition = torch.rand(2, 2, 12, 12).double()
    assert loss.discriminator_loss(images, others, 0, condition=condition)[0].requires_grad
    with pytest.raises(UsageError, match="condition has 0 channels"):
        loss.discriminator_loss(images, others, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixel": "l3"}, "l1, l2"),
        ({"reduction": "none"}, "mean, sum"),
        ({"kl": -1.0}, "negative"),
        ({"adversarial": {"loss": "wgan"}}, "hinge, vanilla"),
        ({"adversarial": {"norm": "layer"}}, "batch, group, none"),
        ({"adversarial": {"start": -1}}, "start is -1"),
        ({"adversarial": {"begin": 1}}, "begin"),
        ({"perceptual": {"net": "resnet", "weights": "random"}}, "alex, vgg, squeeze"),
        ({"pixels": "l1"}, "pixels"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(UsageError, match=words):
        make_loss(**options)


def test_state_dict_has_no_perceptual_weights():
    loss = AutoencoderLoss(perceptual={"net": "squeeze", "weights": "random"}, adversarial=GAME)
    assert not [key for key in loss.state_dict() if "perceptual" in key]
    assert "discriminator.main.0.weight" in loss.state_dict()
    assert "logvar" in loss.state_dict()
