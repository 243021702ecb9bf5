"""What every autoencoder promises: scale, determinism, padding, errors, configuration."""

import json
import pickle

import pytest
import torch

from ldmkit.autoencoder import LatentStatistics, make
from ldmkit.errors import CheckpointError, DataError, UsageError
from ldmkit.random import generators

SMALL = {"channels": 8, "downsample": 4, "multipliers": (1, 1, 1), "blocks": 1}
KINDS = {"vq": {**SMALL, "codebook": 16}, "kl": SMALL, "identity": {}}


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return make(request.param, **KINDS[request.param]).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measured(channels, weights=""):
    values = tuple(float(i + 1) for i in range(channels))
    return LatentStatistics(100, values, values, values, values, weights)


def test_scale_is_applied_by_encode_and_undone_by_decode(model, images):
    plain, restored = model.encode(images), model.decode(model.encode(images))
    model.set_statistics(measured(model.latent_channels), scale="per-channel")
    expected = (plain - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    torch.testing.assert_close(model.encode(images), expected)
    torch.testing.assert_close(model.unscale(model.scale(plain)), plain)
    torch.testing.assert_close(model.decode(model.encode(images)), restored, rtol=1e-4, atol=1e-5)


def test_fixed_scale(model, images):
    plain = model.encode(images)
    model.set_statistics(measured(model.latent_channels), scale=0.18215)
    torch.testing.assert_close(model.encode(images), plain * 0.18215)


def test_scale_survives_half_precision(model):
    model.set_statistics(measured(model.latent_channels), scale=0.18215)
    exact = model.latent_scale.clone()
    model.to(torch.bfloat16).float()
    torch.testing.assert_close(model.latent_scale, exact, rtol=0, atol=0)


def test_a_latent_depends_on_its_own_generator(images):
    model = make("kl", **SMALL).eval()
    whole = model.encode(images, generators(5, "latents", range(3)))
    alone = model.encode(images[1:2], generators(5, "latents", [1]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-6)
    posterior = model.posterior(images)
    noise = ((whole - model.scale(posterior.mode())) / torch.exp(0.5 * posterior.logvar)).detach()
    assert 0.8 < noise.std() < 1.2
    torch.testing.assert_close(model.encode(images), model.scale(posterior.mean))
    one = model.encode(images, torch.Generator().manual_seed(3))
    torch.testing.assert_close(one, model.encode(images, torch.Generator().manual_seed(3)), rtol=0, atol=0)


def test_log_variance_is_clamped(images):
    model = make("kl", **SMALL)
    torch.nn.init.constant_(model.quant_conv.bias[3:], 1e4)
    assert model.posterior(images).logvar.detach().max() == 20.0


def test_config_builds_an_equal_network(model, images):
    config = json.loads(json.dumps(model.config))
    again = make(**config).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.decode(again.encode(images)), model.decode(model.encode(images)))
    assert again.config == model.config
    assert pickle.loads(pickle.dumps(model)).config == model.config


def test_weights_from_elsewhere_load_without_a_scale(model):
    bare = {key: value for key, value in model.state_dict().items() if not key.startswith("latent_")}
    other = make(**model.config)
    other.set_statistics(measured(3), scale="per-channel")
    before = set(bare)
    other.load_state_dict(bare)
    assert set(bare) == before
    assert other.statistics is None
    assert other.latent_scale.tolist() == [1, 1, 1]


def test_statistics_travel_with_the_weights_and_are_checked(model):
    model.set_statistics(measured(3, model.weights_hash()))
    other = make(**model.config)
    other.load_state_dict(model.state_dict())
    assert other.statistics == model.statistics == measured(3, model.weights_hash())
    other.check_statistics()
    if not list(other.parameters()):
        return
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(CheckpointError, match="measured with other autoencoder weights"):
        other.check_statistics()


def test_odd_sizes_need_padding(images):
    with pytest.raises(UsageError, match="15x22 is no multiple of 4") as caught:
        make("kl", **SMALL).encode(images[..., :15, :22])
    assert "pad: true" in str(caught.value)
    model = make("kl", pad=True, **SMALL).eval()
    odd = images[..., :15, :22]
    latents = model.encode(odd)
    assert latents.shape == (3, *model.latent_shape((15, 22))) == (3, 3, 4, 6)
    assert model.decode(latents).shape[-2:] == (16, 24)
    assert model.decode(latents, size=(15, 22)).shape == odd.shape
    assert model(odd).images.shape == odd.shape
    mirrored = torch.cat([odd, odd[..., 13:14, :]], dim=-2)
    mirrored = torch.cat([mirrored, mirrored[..., 20:21], mirrored[..., 19:20]], dim=-1)
    torch.testing.assert_close(latents, model.encode(mirrored))
    assert model.encode(images[..., :1, :1]).shape == (3, 3, 1, 1)
    with pytest.raises(UsageError, match="cannot crop to 17x24"):
        model.decode(latents, size=(17, 24))


def test_bad_images_and_latents(model, images):
    with pytest.raises(UsageError, match=r"expected \(b, 3, h, w\)"):
        model.encode(images[:, :2])
    with pytest.raises(UsageError, match="expected"):
        model.encode(images[0])
    with pytest.raises(UsageError, match="latents have shape"):
        model.decode(torch.zeros(1, 4, 2, 2))
    broken = images.clone()
    broken[1, 0, 3, 3] = torch.nan
    for call in (model.encode, model.posterior, model):
        with pytest.raises(DataError, match="not finite"):
            call(broken)


def test_training_pass(model, images):
    model.train()
    found = model(images, torch.zeros(3, *model.latent_shape((16, 24))))
    assert found.images.shape == images.shape
    torch.testing.assert_close(found.posterior.mean, model.posterior(images).mean)
    if model.config["type"] == "kl":
        torch.testing.assert_close(found.terms["kl"], model.posterior(images).kl().mean())
    if model.config["type"] == "identity":
        assert found.terms == {}
        with pytest.raises(UsageError, match="no weights to train"):
            _ = model.last_layer
    else:
        found.images.sum().backward()
        assert model.last_layer.grad is not None
        assert float(model.encoder.conv_in.weight.grad.abs().sum()) > 0


def test_codes(images):
    model = make("vq", **KINDS["vq"]).eval()
    latents = model.encode(images)
    indices = model.codes(latents)
    assert indices.shape == (3, 4, 6)
    torch.testing.assert_close(model.decode_codes(indices), model.decode(latents))
    torch.testing.assert_close(model.decode(model.scale(model.quantize.lookup(indices))), model.decode(latents))
    assert not torch.equal(model.decode_continuous(latents), model.decode(latents))
    for bad in (torch.full((1, 2, 2), 16), torch.full((1, 2, 2), -1)):
        with pytest.raises(UsageError, match="this codebook has 0 to 15"):
            model.decode_codes(bad)
    with pytest.raises(UsageError, match="expected integers"):
        model.decode_codes(torch.zeros(1, 2, 2))


def test_decoding_passes_gradients_through_the_quantiser(images):
    model = make("vq", **KINDS["vq"]).eval()
    latents = model.encode(images).detach().requires_grad_(True)
    model.decode(latents).sum().backward()
    assert float(latents.grad.abs().sum()) > 0


def test_meta_tensors_pass_through(model):
    with torch.device("meta"):
        planned = make(**model.config)
    assert planned.decode(planned.encode(torch.empty(1, 3, 16, 16, device="meta"))).shape == (1, 3, 16, 16)
