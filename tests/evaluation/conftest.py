"""A model and data small enough that every figure can be worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldmkit.autoencoder import Posterior
from ldmkit.conditioning import Batch, Conditioner, ConditionerSet, Conditioning, Ports
from ldmkit.data.sample import Info
from ldmkit.data.source import Judge, Source
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.images import to_pil, to_tensor
from ldmkit.evaluation.results import Figure, Picture, Results
from ldmkit.fields import Field
from ldmkit.random import generator

SIDE = 32
EVIL = "<script>alert(1)</script>\"'&"


def picture(index: int, side: int = SIDE) -> Tensor:
    """(3, side, side) a plane of one brightness with a smooth wave; bright where the label is 1."""
    label = index % 2
    phase = torch.rand(1, generator=generator(0, "phase", index)).item() * 6.28
    wave = 0.3 * torch.sin(torch.arange(side) * 0.7 + phase)
    return (wave[None, None, :] + (0.5 if label else -0.5)).expand(3, side, side).clone()


class Brightness(Judge):
    name = "brightness read back"
    chance = 0.5

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        wanted = torch.tensor([sample["label"] for sample in samples])
        return ((images.mean((1, 2, 3)) > 0).long() == wanted).float()


class Planes(Source):
    def __init__(self, *, count: int = 40, start: int = 0) -> None:
        self.count, self.start = count, start

    def info(self) -> Info:
        return Info(count=self.count, fields={"image": Field("image"), "label": Field("label", 2)}, licence="CC0")

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": to_pil(picture(index + self.start)), "label": (index + self.start) % 2}

    def split(self, part: str) -> Source:
        return Planes(count=self.count, start=0 if part == "train" else 1000)

    def judge(self, field: str) -> Judge | None:
        return Brightness() if field == "label" else None

    def attribution(self) -> str:
        return "Planes, drawn by the tests <CC0>"


class SmallPicture(Conditioner):
    """The picture at a quarter of its size."""

    reads = ("image",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(concat=3)

    def prepare(self, sample: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {"image": nn.functional.avg_pool2d(sample["image"], 4)}

    def encode(self, prepared: dict[str, Tensor], canvas: Any) -> Conditioning:
        return Conditioning(concat=nn.functional.interpolate(prepared["image"], canvas.grid))

    def null(self, canvas: Any) -> Conditioning:
        return Conditioning(concat=canvas.zeros(1, 3, *canvas.grid))

    def output_size(self, prepared: dict[str, Tensor]) -> tuple[int, int]:
        return prepared["image"].shape[-2] * 4, prepared["image"].shape[-1] * 4

    def preview(self, prepared: dict[str, Tensor]) -> Image.Image:
        return to_pil(prepared["image"])

    def fidelity(self, images: Tensor, prepared: dict[str, Tensor]) -> Tensor:
        return -(nn.functional.avg_pool2d(images, 4) - prepared["image"]).square().mean((1, 2, 3))


class Label(Conditioner):
    reads = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(vector=2)

    def encode(self, prepared: dict[str, Tensor], canvas: Any) -> Conditioning:
        return Conditioning(vector=nn.functional.one_hot(prepared["label"], 2).to(canvas.dtype))

    def null(self, canvas: Any) -> Conditioning:
        return Conditioning(vector=canvas.zeros(1, 2))

    def preview(self, prepared: dict[str, Tensor]) -> str:
        return ("dark", "bright")[int(prepared["label"])]


@dataclass
class Draws:
    timesteps: Tensor
    noise: Tensor
    dropped: dict[str, Tensor]

    def to(self, device: Any) -> Draws:
        return self


class Codec(nn.Module):
    """Loses the finest detail, as an autoencoder does."""

    factor, image_channels, config = 2, 3, {"type": "codec"}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def posterior(self, images: Tensor) -> Posterior:
        return Posterior(nn.functional.avg_pool2d(images, 2))

    def draw(self, posterior: Posterior) -> Tensor:
        return posterior.mean

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents, scale_factor=2)


class Objective:
    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        return uniform * 1000


class Painter(nn.Module):
    """Paints the small picture it is conditioned on, with a little noise of its own; obeys its conditions by construction.

    `losses` is the closed form of a Gaussian whose mean is the condition (see `test_gain`).
    """

    def __init__(self, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.conditioners = ConditionerSet(conditioners, vector_width=2)
        self.autoencoder, self.diffusion = Codec(), Objective()
        self.denoiser, self.size = nn.Linear(2, 3), (SIDE, SIDE)
        self.slots: dict[str, Any] = {}
        self.sampling: dict[str, Any] = {"steps": 7}
        self.calls: list[dict[str, Any]] = []

    def sample_batch(self, batch: Batch, **settings: Any) -> Tensor:
        self.calls.append({**settings, "rows": len(batch)})
        labels = batch.prepared["label"]
        assert labels is not None
        level = labels["label"].float()[:, None, None, None] - 0.5
        rows = [
            torch.randn(3, SIDE, SIDE, generator=generator(settings["seed"] + row, "s", 0)) for row in range(len(batch))
        ]
        return level + 0.05 * torch.stack(rows)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return 3, size[0] // 2, size[1] // 2

    def draw(self, positions: Tensor, seed: int) -> Draws:
        noise = torch.stack([torch.randn(3, generator=generator(seed, "noise", int(p))) for p in positions])
        return Draws(torch.zeros(len(positions)), noise, {"label": torch.ones(len(positions), dtype=torch.bool)})


@dataclass
class Endless:
    """What `Dataset` is, for pictures made on the spot."""

    source: Source
    count: int | None
    views: int | None = 1
    read: list[int] = field(default_factory=list)

    def readable(self, item: int, epoch: int = 0) -> Mapping[str, Any]:
        self.read.append(item)
        raw = self.source[item]
        return {"image": to_tensor(raw["image"]), "label": raw["label"]}

    def at_one_size(self) -> Endless:
        return self


@pytest.fixture
def evaluation() -> Evaluation:
    source = Planes()
    train, validation = source.split("train"), source.split("validation")
    return Evaluation(
        model=Painter({"small": SmallPicture(), "label": Label()}),  # type: ignore[arg-type]
        train=Endless(train, 40),  # type: ignore[arg-type]
        validation=Endless(validation, 40),  # type: ignore[arg-type]
        n=48,
        seed=3,
        chunk=16,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as training and evaluation leave it, with a script in every place a person's words can come from."""
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "samples" / "held-out.png")
    Image.effect_noise((1000, 900), 90).save(tmp_path / "samples" / "grid.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "samples" / "latest.png")
    recipe = {
        "name": EVIL,
        "data": {"type": "photos", "size": 64},
        "autoencoder": {"type": "vq"},
        "conditioners": {"low_res": {"type": "low-res"}},
        "note": EVIL,
    }
    (tmp_path / "recipe.resolved.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    lines = [{"stage": "diffusion", "step": step, "loss": math.exp(-step / 50), "lr": 1e-3} for step in range(1, 200)]
    lines += [
        {"stage": "diffusion", "step": 100, "validation": 0.3},
        {"stage": EVIL, "step": 1, EVIL: 1.0, "psnr": 20.0},
    ]
    lines += [{"stage": "autoencoder", "step": 50, "alarm": f"codebook collapsed {EVIL}"}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 1, "lo')
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "seconds": 400, "host": EVIL}))
    (tmp_path / "versions.json").write_text(json.dumps({"ldmkit": "0.1.0", "torch": {"version": "2.15", "note": EVIL}}))
    (tmp_path / "plan.json").write_text(json.dumps({"parts": [{"part": EVIL, "parameters": 1234567, "in": "64 x 64"}]}))
    figures = (
        Figure(
            "psnr",
            24.3,
            title="PSNR",
            unit="dB",
            beside={"bicubic": 25.0},
            differences={"bicubic": (-0.9, -0.5)},
            baseline="bicubic",
            interval=(24.0, 24.6),
            n=512,
        ),
        Figure("conditioning-gain", 0.01, slot="low_res", unit="fraction", interval=(-0.01, 0.03), note=EVIL),
        Figure(EVIL, math.nan, slot=EVIL, unit=EVIL, beside={EVIL: math.inf}, baseline=EVIL, series={EVIL: (1.0, 2.0)}),
    )
    Results(
        figures,
        512,
        0,
        sampling={"sampler": EVIL},
        unavailable={"frechet": EVIL},
        pictures=(Picture("samples/held-out.png", EVIL, EVIL), Picture("../../etc/hostname.png", "outside")),
        data={
            "attribution": f"https://example.org/photo {EVIL}",
            "licence": "CC0",
            "training pictures": None,
            "examples": {"low_res": "it's.png"},
        },
    ).save(tmp_path / "evaluation.json")
    return tmp_path
