"""A toy world: 24 pictures of 16 x 16 pixels, a label, and networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldmkit import diffusion, samplers
from ldmkit.autoencoder import Autoencoder, AutoencoderLoss, make, make_loss
from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning, Dropout, Ports, Tensors
from ldmkit.data import Dataset, Field, Info, Source
from ldmkit.denoiser.unet import UNet
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training.stop import Stop


class Squares(Source):
    """A grey ground with a square, whose place is the label."""

    def __init__(self, *, count: int | None = 24, labelled: bool = True) -> None:
        self.count, self.labelled = count, labelled

    def info(self) -> Info:
        return Info(count=self.count, fields={"image": Field("image"), "label": Field("label", classes=4)})

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        label = index % 4
        image = Image.new("RGB", (16, 16), (40 + 5 * (index % 24), 90, 160))
        image.paste(
            (240, 30 + 7 * (index % 24), 30),
            (8 * (label % 2), 8 * (label // 2), 8 * (label % 2) + 8, 8 * (label // 2) + 8),
        )
        return {"image": image, "label": label if self.labelled else None}

    def split(self, part: str) -> Source:
        return self


class Label(Conditioner):
    """A vector a label, through dropout. `poison` is for tests of what is not finite."""

    reads = ("label",)

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.emits = Ports(vector=width)
        self.table = nn.Embedding(4, width)
        self.nothing = nn.Parameter(torch.zeros(1, width))
        self.dropout = nn.Dropout(0.2)
        self.poison: Callable[[Tensor], Tensor] = torch.tanh

    def prepare(self, sample: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensors:
        jitter = torch.zeros(1) if generator is None else torch.randn(1, generator=generator) * 0.1
        return {"label": torch.tensor(sample["label"]), "jitter": jitter}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=self.poison(self.dropout(self.table(prepared["label"]) + prepared["jitter"])))

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=self.nothing)


class Soon(Stop):
    """Asks for a stop when it has been polled `polls` times by the loop, once a step."""

    def __init__(self, polls: int) -> None:
        super().__init__()
        self.left = polls

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.request()
        return self._signal is not None


def make_data(**options: Any) -> Dataset:
    source = {key: options.pop(key) for key in ("count", "labelled") if key in options}
    return Dataset(Squares(**source), size=16, seed=3, **options)


def make_model(kind: str = "kl") -> LatentDiffusion:
    torch.manual_seed(0)
    small = {"downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 2}
    autoencoder = make(kind, **small, **({"codebook": 16} if kind == "vq" else {}))
    unet = UNet(in_channels=2, out_channels=2, channels=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1)
    conditioners = ConditionerSet(
        {"label": Label()}, vector_width=unet.vector_width, dropout=Dropout.independent({"label": 0.3})
    )
    objective = diffusion.make(schedule={"type": "linear"})
    return LatentDiffusion(autoencoder, unet, conditioners, objective, size=(16, 16), samplers={"ddim": samplers.ddim})


def make_losses(**options: Any) -> AutoencoderLoss:
    torch.manual_seed(1)
    game = {"start": 2, "layers": 1, "channels": 8}
    return make_loss(3, **{"perceptual": None, "adversarial": game, "kl": 1e-3, **options})


def settings(*, autoencoder: bool = False, **changes: Any) -> Any:
    from ldmkit.recipe import AutoencoderTrain, Train

    base = {"steps": 6, "batch": 8, "lr": 1e-2, "ema": 0.99, "warmup": 2, "decay": "cosine"}
    cadence = {"log_every": 2, "checkpoint_every": 2, "validate_every": 3, "sample_every": 100}
    kind = AutoencoderTrain if autoencoder else Train
    return kind(**{**base, **cadence, **changes})


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        data=make_data, model=make_model, losses=make_losses, settings=settings, Label=Label, Autoencoder=Autoencoder
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"
