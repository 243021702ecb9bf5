"""What frozen conditioners answered before stands in for asking them: the same training, bit for bit or to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit import diffusion
from ldmkit.autoencoder import make
from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning, Dropout, Ports, Tensors, pad_stack
from ldmkit.data import batches
from ldmkit.denoiser.unet import UNet
from ldmkit.latent_diffusion import LatentDiffusion, Slot
from ldmkit.training.caching import conditionings, shard_store
from ldmkit.training.caching.conditionings import AnswerCache
from ldmkit.training.logging.console import Console


class Words(Conditioner):
    """As many tokens as the label says, and a vector, through a frozen table; each way of being unfit for keeping is a switch."""

    reads = ("label",)
    frozen = ("table",)

    def __init__(self, *, unfit: str = "") -> None:
        super().__init__()
        self.unfit, self.emits, self.asked = unfit, Ports(tokens=4, vector=8, length=4), 0
        self.table, self.layer = nn.Embedding(8, 8), nn.Dropout(0.3 if unfit == "dropout" else 0.0)
        self.register_buffer("count", torch.zeros(()))
        if unfit == "trained":
            self.weight = nn.Parameter(torch.ones(()))

    def prepare(self, sample: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensors:
        if self.unfit == "prepare" and generator is not None:
            torch.rand((), generator=generator)
        return {"ids": torch.arange(sample["label"] + 1)}

    def collate(self, prepared: list[Tensors]) -> Tensors:
        ids, mask = pad_stack([row["ids"] for row in prepared])
        return {"ids": ids, "mask": mask}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        self.asked += 1
        if self.unfit == "counts" and self.training:
            self.count += 1
        if self.unfit == "training" and self.training:
            return self._of(prepared, 2.0)
        return self._of(prepared, 1.0)

    def _of(self, prepared: Tensors, factor: float) -> Conditioning:
        words = self.table(prepared["ids"]) * factor
        if self.unfit == "dropout":
            words = self.layer(words)
        summed = torch.where(prepared["mask"][..., None], words, 0).sum(1)
        return Conditioning(tokens=words[..., :4], mask=prepared["mask"], vector=summed)

    def null(self, canvas: Canvas) -> Conditioning:
        mask = torch.ones(1, 1, dtype=torch.bool)
        return Conditioning(tokens=canvas.zeros(1, 1, 4), mask=mask, vector=canvas.zeros(1, 8))


def model(unfit: str = "") -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = make("kl", downsample=2, channels=8, blocks=1, latent_channels=2)
    unet = UNet.of_widths(
        in_channels=2, out_channels=2, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), context_width=4
    )
    slots = ConditionerSet(
        {"words": Words(unfit=unfit)}, vector_width=unet.vector_width, dropout=Dropout.independent({"words": 0.4})
    )
    objective = diffusion.make(schedule={"type": "linear"})
    slot = Slot("words", {}, {"label": "label"}, {"distribution": "ldmkit-words", "version": "1.0"})
    return LatentDiffusion(autoencoder, unet, slots, objective, size=(16, 16), slots={"words": slot})


def build(toy: SimpleNamespace, made: LatentDiffusion, folder: Path, **options: Any) -> AnswerCache | None:
    data = toy.data()
    own = {"key": lambda slot: "key", "order": data.order(5, 8), "most": None, "batch": 5}
    return conditionings.build(made, data, folder=folder, **{**own, **options})


def losses(made: LatentDiffusion, toy: SimpleNamespace, cache: AnswerCache | None) -> list[Tensor]:
    """The loss of some steps, and the gradient of the last one."""
    made.train()
    found = []
    for batch in batches(toy.data(), made.conditioners, start=16, batch=8, seed=5, steps=3):  # over the end of an epoch
        batch = batch if cache is None else cache.attach(batch)
        loss, _ = made(batch, made.draw(batch.positions, 5))
        made.zero_grad()
        loss.backward()
        found.append(loss.detach())
    gradient = next(p.grad for p in made.denoiser.parameters() if p.grad is not None)
    return [*found, gradient.clone()]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cached_run_equals_an_uncached_one(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    monkeypatch.setattr(shard_store, "SHARD", 7)
    monkeypatch.setattr(shard_store, "LARGEST", shard_store.LARGEST if in_memory else 0)
    plain = losses(model(), toy, None)
    made = model()
    cache = build(toy, made, tmp_path)
    assert cache is not None
    conditioner = made.conditioners["words"]
    assert isinstance(conditioner, Words)
    conditioner.asked = 0
    cached = losses(made, toy, cache)
    assert conditioner.asked == 0
    for own, expected in zip(cached, plain, strict=True):
        assert torch.allclose(own, expected, atol=1e-6)
    again = build(toy, model(), tmp_path)
    assert again is not None
    assert torch.equal(losses(model(), toy, again)[0], cached[0])


def test_absence_stays_what_it_was(toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = type(toy.data().source)
    plain = source.__getitem__

    def sometimes(self: Any, index: int) -> Mapping[str, Any]:
        return {**plain(self, index), "label": None if index % 5 == 0 else index % 4}

    monkeypatch.setattr(source, "__getitem__", sometimes)
    cache = build(toy, model(), tmp_path)
    for own, expected in zip(losses(model(), toy, cache), losses(model(), toy, None), strict=True):
        assert torch.allclose(own, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("unfit", "reason"),
    [
        ("trained", None),
        ("prepare", "its `prepare` draws at random"),
        ("dropout", "draws at random in training"),
        ("training", "otherwise in training"),
        ("counts", "it changes as it answers"),
    ],
)
def test_what_cannot_be_kept_is_asked_in_every_step(
    toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], unfit: str, reason: str | None
) -> None:
    assert build(toy, model(unfit), tmp_path, console=Console()) is None
    said = capsys.readouterr().out
    assert said == "" if reason is None else reason in said
    assert not list(tmp_path.glob("key/shard*"))


def test_more_than_is_wanted_is_not_kept(toy: SimpleNamespace, tmp_path: Path) -> None:
    assert build(toy, model(), tmp_path, most=100) is None


def test_the_key_changes_with_all_that_an_answer_depends_on() -> None:
    made = model()
    about = {"type": "squares"}
    before = conditionings.fingerprint(made, "words", about, "fp32")
    assert conditionings.fingerprint(model(), "words", dict(about), "fp32") == before
    others = [
        conditionings.fingerprint(made, "words", {"type": "circles"}, "fp32"),
        conditionings.fingerprint(made, "words", about, "bf16"),
    ]
    newer = model()
    newer.slots["words"] = Slot("words", {}, {}, {"distribution": "ldmkit-words", "version": "1.1"})
    others.append(conditionings.fingerprint(newer, "words", about, "fp32"))
    for change in ("conditioner", "autoencoder", "scale"):
        other = model()
        with torch.no_grad():
            if change == "scale":
                other.autoencoder.latent_scale.fill_(3.0)
            else:
                part = other.conditioners["words"] if change == "conditioner" else other.autoencoder
                next(part.parameters()).view(-1)[0] += 1e-3
        others.append(conditionings.fingerprint(other, "words", about, "fp32"))
    assert len({before, *others}) == 7


def test_a_plugin_in_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    keys = []
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        made = model()
        made.slots["words"] = Slot("words", {}, {}, {"file": str(file)})
        keys.append(conditionings.fingerprint(made, "words", {}, "fp32"))
    assert keys[0] != keys[1]


class Seen(Conditioner):
    """The image by the frozen autoencoder, or as it is: nothing to train, and no weights."""

    reads = aligned = ("image",)

    def __init__(self, *, latent: bool = True) -> None:
        super().__init__()
        self.latent, self.emits = latent, Ports(concat=2 if latent else 3)

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        images = prepared["image"].to(canvas.dtype)
        return Conditioning(
            concat=canvas.to_latent(images) if self.latent else torch.nn.functional.avg_pool2d(images, 2)
        )

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))


def seeing(latent: bool) -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = make("kl", downsample=2, channels=8, blocks=1, latent_channels=2)
    conditioner = Seen(latent=latent)
    unet = UNet.of_widths(
        in_channels=2 + conditioner.emits.concat,
        out_channels=2,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(2,),
    )
    slots = ConditionerSet(
        {"seen": conditioner}, vector_width=unet.vector_width, dropout=Dropout.independent({"seen": 0.4})
    )
    objective = diffusion.make(schedule={"type": "linear"})
    return LatentDiffusion(autoencoder, unet, slots, objective, size=(16, 16), slots={"seen": Slot("seen", {}, {}, {})})


def test_what_the_frozen_autoencoder_encodes_is_kept_and_what_costs_nothing_is_not(
    toy: SimpleNamespace, tmp_path: Path
):
    plain, made = losses(seeing(latent=True), toy, None), seeing(latent=True)
    cache = build(toy, made, tmp_path / "latent")
    assert cache is not None
    found = losses(made, toy, cache)
    for one, other in zip(plain, found, strict=True):  # rows were encoded in other batches
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert build(toy, seeing(latent=False), tmp_path / "cheap") is None
