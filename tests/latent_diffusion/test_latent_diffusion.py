"""`LatentDiffusion` against what its parts say by themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ldmkit import diffusion as objectives
from ldmkit.autoencoder import KLAutoencoder
from ldmkit.conditioning import Conditioner, ConditionerSet, Conditioning, Dropout, Ports
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, ResourceError, UsageError
from ldmkit.latent_diffusion import LatentDiffusion, sampling, serialization, to_pil
from ldmkit.latent_diffusion.serialization import read_config, read_weights
from ldmkit.samplers import ddim, ddpm


class Label(Conditioner):
    reads = ("label",)

    def __init__(self, *, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.emits = Ports(tokens=width, length=1)
        self.table = nn.Embedding(classes + 1, width)

    def prepare(self, sample, generator=None):
        return {"id": torch.tensor(int(sample["label"]))}

    def encode(self, prepared, canvas):
        return Conditioning(tokens=self.table(prepared["id"])[:, None])

    def null(self, canvas):
        return Conditioning(tokens=self.table.weight[-1:, None])


class Level(Conditioner):
    reads = ("level",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(concat=1)

    def prepare(self, sample, generator=None):
        return {"level": torch.tensor(float(sample["level"]))}

    def encode(self, prepared, canvas):
        return Conditioning(concat=prepared["level"][:, None, None, None].expand(-1, 1, *canvas.grid))

    def null(self, canvas):
        return Conditioning(concat=canvas.zeros(1, 1, *canvas.grid))


def make(dropout: dict[str, float] | None = None) -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(downsample=4, channels=8, multipliers=(1, 1, 2), blocks=1, latent_channels=2)
    denoiser = UNet.of_widths(
        in_channels=3, out_channels=2, channels=16, multipliers=(1, 2), blocks=1, attention=(2,), context_width=8
    )
    for parameter in denoiser.parameters():  # zero-initialised outputs would hide what goes in
        nn.init.normal_(parameter, std=0.1)
    conditioners = ConditionerSet(
        {"label": Label(), "level": Level()},
        vector_width=denoiser.vector_width,
        dropout=Dropout.from_table(("label", "level"), dropout or {"label": 0.2, "label+level": 0.1}),
    )
    objective = objectives.make(schedule={"type": "linear"})
    samplers = {"ddim": ddim, "ddpm": ddpm}
    return LatentDiffusion(autoencoder, denoiser, conditioners, objective, size=(16, 24), samplers=samplers).eval()


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return make()


def samples(count: int) -> list[dict[str, object]]:
    torch.manual_seed(1)
    return [{"image": torch.rand(3, 16, 24) * 2 - 1, "label": i % 4, "level": i / count} for i in range(count)]


def test_the_loss_is_the_mean_square_of_the_noise_error(model):
    batch = model.batch(samples(5))
    draws = model.draw(batch.positions, seed=3)
    loss, parts = model(batch, draws)
    posterior = model.autoencoder.posterior(batch.images)
    latents = posterior.mean + torch.exp(0.5 * posterior.logvar) * draws.posterior
    alpha, sigma = model.diffusion.schedule.alpha_sigma(draws.timesteps)
    noisy = alpha.view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * draws.noise
    ids = torch.where(draws.dropped["label"], 4, batch.prepared["label"]["id"])
    level = torch.where(draws.dropped["level"], 0.0, batch.prepared["level"]["level"])
    output = model.denoiser(
        torch.cat([noisy, level.view(-1, 1, 1, 1).expand(-1, 1, 4, 6)], 1),
        draws.timesteps,
        tokens=model.conditioners["label"].table(ids)[:, None],
    )
    torch.testing.assert_close(loss, (output - draws.noise).square().mean())
    assert parts["present/label"].item() == 1.0


def test_a_rows_draws_depend_on_its_position_alone(model):
    both, one = model.draw([3, 8], seed=5), model.draw([8], seed=5)
    for name in ("timesteps", "noise", "posterior"):
        assert torch.equal(getattr(both, name)[1:], getattr(one, name))
    assert torch.equal(both.dropped["label"][1:], one.dropped["label"])
    assert not torch.equal(both.noise, model.draw([3, 8], seed=6).noise)


def test_a_cached_posterior_gives_the_same_loss(model):
    batch = model.batch(samples(3))
    draws = model.draw(batch.positions, seed=0)
    posterior = model.autoencoder.posterior(batch.images)
    cached = model.batch(samples(3))
    object.__setattr__(cached, "latents", {"mean": posterior.mean, "logvar": posterior.logvar})
    assert torch.equal(model(batch, draws)[0], model(cached, draws)[0])


@pytest.mark.parametrize(("sampler", "options"), [("ddim", {}), ("ddpm", {})])
def test_a_sample_depends_on_its_own_seed_and_not_on_its_batch(model, sampler, options):
    values = [{"label": i, "level": 0.1 * i} for i in range(3)]
    settings = {"sampler": sampler, "steps": 5, "guidance": 2.0, "output": "tensor", **options}
    together = model.sample(values, seed=7, **settings)
    apart = torch.cat([model.sample([value], seed=7 + i, **settings) for i, value in enumerate(values)])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_guidance_is_null_plus_scale_times_the_difference(model):
    batch = model.batch(samples(2))
    noisy, t = torch.randn(2, 2, 4, 6), torch.tensor([500.0, 20.0])
    settings = sampling.Settings(guidance={"label": 3.0}).completed(model)
    denoise = sampling.Sampling(model, batch, model.size, settings).denoiser()
    whole = model.condition([{"label": 0, "level": 0.0}, {"label": 1, "level": 0.5}])
    without = model.condition([{"label": 0, "level": 0.0}, {"label": 1, "level": 0.5}], drop=("label",))
    with torch.no_grad():
        e, n = (model.diffusion.to_x0(model.denoiser(noisy, t, **c.kwargs()), noisy, t) for c in (whole, without))
        torch.testing.assert_close(denoise(noisy, t), n + 3.0 * (e - n), atol=2e-4, rtol=1e-4)


def test_predict_noise_agrees_with_the_denoiser_whatever_the_prediction():
    model = make()
    noisy, t = torch.randn(1, 2, 4, 6), torch.tensor([300.0])
    conditioning = model.condition({"label": 1, "level": 0.2})
    with torch.no_grad():
        output = model.denoiser(noisy, t, **conditioning.kwargs())
        assert torch.equal(model.predict_noise(noisy, t, conditioning), output)
        model.diffusion = objectives.make(prediction="v")
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in model.diffusion.schedule.alpha_sigma(t))
        torch.testing.assert_close(model.predict_noise(noisy, t, conditioning), alpha * output + sigma * noisy)


def test_values_may_be_a_batch_of_tensors_a_repeated_value_or_one_mapping_an_image(model):
    settings = {"steps": 2, "output": "latent", "seed": 4}
    repeated = model.sample({"label": 2, "level": 0.5}, count=2, **settings)
    listed = model.sample([{"label": 2, "level": 0.5}] * 2, **settings)
    tensors = model.sample({"label": torch.tensor([2, 2]), "level": torch.tensor([0.5, 0.5])}, **settings)
    assert torch.equal(repeated, listed)
    assert torch.equal(repeated, tensors)


def test_a_missing_slot_is_null_where_training_dropped_it_and_an_error_where_it_did_not(model):
    settings = {"steps": 2, "output": "latent"}
    assert model.sample(count=2, **settings).shape == (2, 2, 4, 6)
    assert model.sample({"level": 0.5}, **settings).shape == (1, 2, 4, 6)
    with pytest.raises(UsageError, match=r"no value was given for level.*\n.*dropout: \{level: 0.1\}"):
        model.sample({"label": 1}, **settings)
    with pytest.raises(UsageError, match="no slot is called lable"):
        model.sample({"lable": 1}, **settings)
    with pytest.raises(UsageError, match="no sampler is called 'dimm'"):
        model.sample(count=1, sampler="dimm")


def test_a_negative_value_stands_in_for_the_null(model):
    values = {"label": 1, "level": 0.5}
    settings = {"steps": 3, "guidance": {"label": 2.0}, "output": "latent"}
    same = model.sample(values, negative={"label": 1}, **settings)
    torch.testing.assert_close(same, model.sample(values, steps=3, output="latent"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(same, model.sample(values, **settings), atol=1e-3)


def test_given_noise_is_x_t_and_other_sizes_work(model):
    noise = torch.randn(1, 2, 6, 2)
    first = model.sample({"label": 1, "level": 0.0}, size=(24, 8), noise=noise, steps=2, output="latent")
    assert torch.equal(
        first, model.sample({"label": 1, "level": 0.0}, size=(24, 8), noise=noise, steps=2, seed=9, output="latent")
    )
    with pytest.raises(UsageError, match=r"21 x 24 cannot be made.*multiples of 4.*\n  the nearest size is 20 x 24"):
        model.sample({"label": 1, "level": 0.0}, size=(21, 24))


def test_pictures_come_as_pil_by_default(model):
    pictures = model.sample({"label": 1, "level": 0.0}, count=2, steps=2)
    assert [picture.size for picture in pictures] == [(24, 16)] * 2
    assert to_pil(torch.zeros(1, 1, 2, 2))[0].mode == "L"
    assert to_pil(torch.ones(1, 3, 2, 2))[0].getpixel((0, 0)) == (255, 255, 255)


def test_the_autoencoder_is_frozen_and_stays_in_eval_mode():
    model = make().train()
    assert not model.autoencoder.training
    assert not any(parameter.requires_grad for parameter in model.autoencoder.parameters())
    assert model.denoiser.training


def test_a_saved_model_holds_weights_nulls_and_configuration(model, tmp_path):
    raw = {"denoiser.out.2.bias": torch.ones(2)}
    model.save(tmp_path / "m", raw=raw)
    assert read_config(tmp_path / "m")["dropout"] == {"label": 0.2, "label+level": 0.1}
    assert {"label.tokens", "level.concat"} == set(load_file(tmp_path / "m" / "nulls.safetensors"))
    averaged, before = read_weights(tmp_path / "m"), read_weights(tmp_path / "m", "raw")
    assert all(torch.equal(averaged[name], value) for name, value in model.state_dict().items())
    assert torch.equal(before["denoiser.out.2.bias"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_saving_never_overwrites(model, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("keep")
    with pytest.raises(CheckpointError, match="exists already"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m" / "mine").read_text() == "keep"


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(serialization, "save_file", full)
    with pytest.raises(ResourceError, match=r"cannot be written to .*No space left"):
        model.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written to .*Not a directory"):
        model.save(tmp_path / "file" / "m")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no configuration of ldmkit"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"format": 99})), "format 99.*upgrade"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 20), "missing or damaged"),
        (lambda folder: save_file({"x": torch.tensor([float("nan")])}, folder / "model.safetensors"), "not finite"),
    ],
)
def test_a_damaged_model_is_refused_with_the_cause(model, tmp_path, spoil, message):
    folder = model.save(tmp_path / "m")
    spoil(folder)

    def read():
        return read_config(folder), read_weights(folder)

    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        read()
