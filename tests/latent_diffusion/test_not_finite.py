"""What is not finite is named: which part, which step, what to try. Never a black image in silence."""

from __future__ import annotations

import copy

import pytest
import torch

from ldmkit.errors import DataError, DivergedError, PluginError
from ldmkit.samplers import ddim


@pytest.fixture
def model(linear):
    model = linear()
    # An autoencoder with weights: the identity has none to spoil.
    return model


def spoil(call, after=0):
    """`call`, whose results are NaN in their last row once it was called `after` times."""
    calls = []

    def spoilt(*given, **named):
        calls.append(1)
        found = call(*given, **named).clone()
        if len(calls) > after:
            found[-1] = torch.nan
        return found

    return spoilt


def test_the_decoder(model, monkeypatch):
    monkeypatch.setattr(model.autoencoder, "_decode", spoil(model.autoencoder._decode))
    for sample in (lambda: model.sample({"a": 1, "b": 2}, count=3, steps=2),):
        with pytest.raises(DivergedError, match=r"the decoder gave NaN or infinite values for image 2 .* of 3"):
            sample()


def test_the_encoder(model, monkeypatch):
    monkeypatch.setattr(model.autoencoder, "encode", spoil(model.autoencoder.encode))
    with pytest.raises(DivergedError, match="the encoder gave NaN"):
        model.sample({"a": 1, "b": 2}, image=torch.zeros(1, 3, 4, 6), steps=2)


def test_the_network_at_its_step(model, monkeypatch):
    monkeypatch.setattr(model.denoiser, "forward", spoil(model.denoiser.forward, after=2))
    with pytest.raises(DivergedError, match=r"the network's answer at timestep \S+ is not finite, in step 3 of 5\n"):
        model.sample({"a": 1, "b": 2}, steps=5)


def test_weights_that_are_not_finite_are_named(model):
    model.denoiser.share.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"in step 1 of 2\n.*its weights are not finite \(share\)"):
        model.sample({"a": 1, "b": 2}, steps=2)


def test_half_precision_is_told_what_to_try(model):
    model = copy.deepcopy(model).half()
    model.denoiser.share.data.fill_(60000.0)
    with pytest.raises(
        DivergedError, match=r"it computes in float16, whose largest number is 6\.55e\+04: try bfloat16"
    ):
        model.sample({"a": 1, "b": 2}, steps=3)


def test_a_condition_in_every_call_and_not_only_the_first(model):
    model.sample({"a": 1, "b": 2}, steps=1)  # the hundredth call is looked at closely, and so is the first
    model.conditioners["b"].table.data[2] = torch.inf
    with pytest.raises(
        DivergedError, match=r"slot b \(Word\) gave tokens with NaN or infinite values: its own weights"
    ):
        model.sample({"a": 1, "b": 2}, steps=2)


def test_a_condition_that_is_spoilt_by_its_value(model, monkeypatch):
    given = model.conditioners["a"]
    encode = given.encode
    monkeypatch.setattr(given, "encode", lambda p, c: encode(p, c).map(lambda v: v / 0))
    with pytest.raises(PluginError, match=r"slot a \(Word\) gave tokens with NaN or infinite values from encode"):
        model.sample({"a": 1, "b": 2}, steps=2)


def test_images_of_the_data_before_they_go_to_the_device(model):
    rows = [{"a": {"id": torch.tensor(1)}, "b": {"id": torch.tensor(1)}}] * 3
    images = torch.zeros(3, 3, 4, 6)
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(DataError, match=r"not finite .* position 11"):
        model.conditioners.collate(images, rows, torch.tensor([10, 11, 12]))
    images[1] = torch.finfo(torch.float32).max  # whose sum is infinite, and which is finite
    model.conditioners.collate(images, rows, torch.tensor([10, 11, 12]))


def test_a_callback_is_still_called(model):
    seen = []
    model.sample({"a": 1, "b": 2}, steps=3, callback=lambda done, total, x, x0: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert model.samplers["ddim"] is ddim
