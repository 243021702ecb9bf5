"""Planted failures are caught, and healthy training is left alone."""

import math

import pytest
import torch

from ldmkit.autoencoder import Alarms, Limits, Movement, make, make_loss


def names(alarms):
    return [alarm.name for alarm in alarms.raised]


def played(forget: bool, steps: int = 8) -> Alarms:
    """A short adversarial training; `forget` leaves the discriminator out of its optimizer, as a published example did."""
    torch.manual_seed(0)
    model = make("kl", channels=8, downsample=2, blocks=1)
    loss = make_loss(adversarial={"layers": 1, "channels": 8, "start": 2})
    generator = torch.optim.Adam(model.parameters(), lr=1e-3)
    stray = [torch.nn.Parameter(torch.zeros(1))]
    discriminator = torch.optim.Adam(stray if forget else loss.discriminator.parameters(), lr=1e-3)
    alarms, movement = Alarms(Limits(patience=3)), Movement(loss.discriminator)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for step in range(steps):
        reconstruction = model(images)
        total, parts = loss.generator(images, reconstruction, step, model.last_layer)
        generator.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        generator.step()
        numbers = {**parts, "gradient_norm": norm}
        if loss.adversarial_active(step):
            total, parts = loss.discriminator_loss(images, reconstruction.images, step)
            discriminator.zero_grad()
            total.backward()
            discriminator.step()
            numbers |= {**parts, "discriminator_change": movement()}
        alarms.observe(step, numbers)
    return alarms


def test_planted_dead_discriminator_is_caught():
    alarms = played(forget=True)
    (alarm,) = [alarm for alarm in alarms.raised if alarm.name == "discriminator-still"]
    assert alarm.step == 4
    assert "optimizer holds its parameters" in str(alarm)


def test_healthy_training_raises_nothing():
    assert names(played(forget=False)) == []


@pytest.mark.parametrize("revive", [None, 2])
def test_planted_codebook_collapse_is_caught(revive):
    """All codes but one out of reach; revival heals it before the alarm."""
    model = make("vq", channels=8, downsample=2, blocks=1, codebook=32, revive=revive)
    with torch.no_grad():
        model.quantize.embedding.weight[1:] += 100
    alarms, images = Alarms(Limits(patience=4)), torch.rand(2, 3, 16, 16) * 2 - 1
    for step in range(8):
        alarms.observe(step, model(images).terms)
    assert names(alarms) == ([] if revive else ["codebook-collapse"])


def test_a_falling_codebook_is_caught_before_it_is_gone():
    alarms = Alarms(Limits(patience=2))
    for step, perplexity in enumerate([400, 500, 300, 45, 40, 35]):
        alarms.observe(step, {"perplexity": perplexity})
    assert [(alarm.step, alarm.name) for alarm in alarms.raised] == [(4, "codebook-collapse")]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("discriminator-wins", {"accuracy": 1.0}),
        ("adaptive-weight-at-clamp", {"adaptive_weight": 1e4}),
        ("discriminator-still", {"discriminator_change": 0.0}),
    ],
)
def test_lasting_troubles_sound_once_and_again_after_they_went(name, numbers):
    alarms = Alarms(Limits(patience=3))
    harmless = dict.fromkeys(numbers, 0.5)
    for step in range(6):
        alarms.observe(step, numbers)
    alarms.observe(6, harmless)
    for step in range(7, 10):
        alarms.observe(step, numbers)
    assert [(alarm.name, alarm.step) for alarm in alarms.raised] == [(name, 2), (name, 9)]


def test_broken_and_exploding_numbers_sound_at_once():
    alarms = Alarms()
    for step in range(20):
        assert alarms.observe(step, {"loss": 1.0, "gradient_norm": 2.0 + step % 3}) == []
    assert [a.name for a in alarms.observe(20, {"loss": 1.0, "gradient_norm": 900.0})] == ["exploding-gradient"]
    (alarm,) = alarms.observe(21, {"loss": math.nan, "gradient_norm": math.inf})
    assert alarm.name == "not-finite"
    assert "gradient_norm, loss" in alarm.message
    assert all(alarm.remedy for alarm in alarms.raised)


def test_movement_is_a_relative_distance():
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 4.0]]))
    movement = Movement(module)
    with torch.no_grad():
        module.weight += torch.tensor([[0.3, 0.4]])
    assert movement() == pytest.approx(0.1)
    assert movement() == 0.0
