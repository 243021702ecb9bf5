from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldmkit.data import ShuffledOrder, batches
from ldmkit.errors import DivergedError
from ldmkit.training.autoencoder import pictures_only
from ldmkit.training.caching import latents
from ldmkit.training.caching import shard_store as kept
from ldmkit.training.logging.console import Console
from ldmkit.training.stop import Interrupted, Stop


def means(cache: latents.LatentCache) -> torch.Tensor:
    return cache.posteriors.rows(range(len(cache)))["mean"]


def test_each_row_gets_the_posterior_of_its_picture_and_view(toy: SimpleNamespace, tmp_path: Path) -> None:
    autoencoder = toy.model().autoencoder
    data = toy.data(views=3, crop="random", flip=True, zoom=(0.5, 1.0))
    cache = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5, batch=16)
    assert len(cache) == len(data) == 72
    for batch in batches(data, pictures_only(), start=64, batch=16, seed=5, steps=2):  # over the end of an epoch
        attached = cache.attach(batch)
        assert attached.latents is not None
        expected = autoencoder.posterior(batch.images)
        assert torch.allclose(attached.latents["mean"], expected.mean, atol=1e-5)
        assert expected.logvar is not None
        assert torch.allclose(attached.latents["logvar"], expected.logvar, atol=1e-4)


def test_a_build_that_was_stopped_goes_on(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SHARD", 10)
    autoencoder, data = toy.model().autoencoder, toy.data()
    stop = Stop()
    encoded: list[int] = []
    encode = latents._encode

    def counted(*args: object) -> dict[str, torch.Tensor]:
        encoded.append(len(args[1]))  # type: ignore[arg-type]
        if sum(encoded) == 15:
            stop.request()
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(latents, "_encode", counted)
    with pytest.raises(Interrupted, match="computing latents, 15 of 24"):
        latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5, batch=5, stop=stop)
    encoded.clear()
    cache = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5, batch=5)
    assert sum(encoded) == 14  # the first shard was finished
    encoded.clear()
    again = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5)
    assert encoded == []
    assert torch.equal(means(again), means(cache))
    shard = tmp_path / "k" / "shard-00001" / "latents.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    mended = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5)
    assert sum(encoded) == 10
    assert torch.allclose(means(mended), means(cache), atol=1e-5)


def test_the_key_changes_with_any_weight_and_with_the_data_but_not_with_the_scale(toy: SimpleNamespace) -> None:
    autoencoder = toy.model().autoencoder
    before = latents.fingerprint(autoencoder, {"type": "squares", "size": 16})
    assert latents.fingerprint(autoencoder, {"size": 16, "type": "squares"}) == before
    assert latents.fingerprint(autoencoder, {"type": "squares", "size": 32}) != before
    autoencoder.latent_scale.fill_(3.0)
    assert latents.fingerprint(autoencoder, {"type": "squares", "size": 16}) == before
    with torch.no_grad():
        next(autoencoder.parameters()).view(-1)[0] += 1e-3
    assert latents.fingerprint(autoencoder, {"type": "squares", "size": 16}) != before


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("scale", ["std", "per-channel"])
def test_scaled_latents_have_unit_deviation(toy: SimpleNamespace, tmp_path: Path, scale: str, cached: bool) -> None:
    autoencoder, data = toy.model().autoencoder, toy.data()
    cache = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5) if cached else None
    latents.calibrate(autoencoder, data, scale=scale, seed=5, cache=cache)
    images = torch.stack([data.sample(item)["image"] for item in range(len(data))])
    generators = [torch.Generator().manual_seed(i) for i in range(len(data))]
    z = autoencoder.encode(images, generators)
    deviations = z.std(dim=(0, 2, 3), correction=0) if scale == "per-channel" else z.std(correction=0)
    assert torch.allclose(deviations, torch.ones_like(deviations), atol=0.05)
    if scale == "per-channel":
        assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(2), atol=0.1)


def test_statistics_of_the_same_weights_are_kept_and_of_others_measured_anew(toy: SimpleNamespace) -> None:
    autoencoder, data = toy.model().autoencoder, toy.data()
    first = latents.calibrate(autoencoder, data, scale="std", seed=5)
    kept = latents.calibrate(autoencoder, data, scale=0.5, seed=77)
    assert kept.overall_std == pytest.approx(first.overall_std)
    assert autoencoder.latent_scale.tolist() == [0.5, 0.5]
    with torch.no_grad():
        autoencoder.quant_conv.weight.mul_(3.0)
    assert latents.calibrate(autoencoder, data, scale="std", seed=5).overall_std > 1.05 * first.overall_std


def test_an_encoder_that_says_nothing_is_an_error(toy: SimpleNamespace) -> None:
    autoencoder = toy.model("vq").autoencoder
    with torch.no_grad():
        autoencoder.quant_conv.weight.zero_()
        autoencoder.quant_conv.bias.zero_()
    with pytest.raises(DivergedError, match="standard deviation"):
        latents.calibrate(autoencoder, toy.data(), scale="std", seed=5)


def test_what_cannot_be_kept(toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = toy.model().autoencoder
    assert latents.fits(autoencoder, toy.data())
    assert not latents.fits(autoencoder, toy.data(views=None))
    assert not latents.fits(autoencoder, toy.data(count=None))
    monkeypatch.setattr(kept, "LARGEST", 24 * 2 * 8 * 8 * 2 * 4 - 1)
    assert not latents.fits(autoencoder, toy.data())


def test_the_order_is_the_loaders(toy: SimpleNamespace) -> None:
    data = toy.data()
    order = ShuffledOrder(5, len(data))
    batch = next(iter(batches(data, pictures_only(), start=20, batch=8, seed=5)))
    expected = torch.stack([data.sample(order.index(p)[1])["image"] for p in range(20, 28)])
    assert torch.equal(batch.images, expected)


def test_what_is_larger_than_the_memory_is_read_row_by_row(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder, data = toy.model().autoencoder, toy.data()
    in_memory = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5)
    monkeypatch.setattr(kept, "LARGEST", 0)
    on_disk = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5)
    assert all(isinstance(shard, Path) for shard in on_disk.posteriors.shards)
    items = [3, 23, 0, 3]
    for name, value in on_disk.posteriors.rows(items).items():
        assert torch.equal(value, in_memory.posteriors.rows(items)[name])


def test_latents_of_several_sizes(toy: SimpleNamespace, tmp_path: Path) -> None:
    """Every batch has one size, and the posteriors of its own pictures."""
    autoencoder, data = toy.model().autoencoder, toy.data(buckets=[(16, 16), (16, 24)], views=2)
    data.source.sizes = lambda: [(16, 16) if index % 3 else (16, 24) for index in range(24)]
    order = data.order(5, 4)
    cache = latents.build(autoencoder, data, folder=tmp_path, key="k", seed=5, order=order, batch=7)
    shapes = set()
    for batch in batches(data, pictures_only(), start=8, batch=4, seed=5, steps=24):
        attached = cache.attach(batch)
        assert attached.latents is not None
        assert torch.allclose(attached.latents["mean"], autoencoder.posterior(batch.images).mean, atol=1e-5)
        shapes.add(tuple(batch.images.shape[2:]))
    assert shapes == {(16, 16), (16, 24)}
    statistics = latents.calibrate(autoencoder, data, scale="std", seed=5, cache=cache)
    assert statistics.count == len(data)


def test_two_builders_take_turns(toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    with kept._turn(tmp_path / "k", Console(enabled=False), None):
        stop.request()
        with pytest.raises(Interrupted, match="waiting for another run"):
            latents.build(
                toy.model().autoencoder, toy.data(), folder=tmp_path, key="k", seed=5, stop=stop, console=Console()
            )
    assert "another run is computing the same" in capsys.readouterr().out
