"""A recipe of a few seconds: drawn squares, networks of a few thousand parameters, and a plugin made of objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ldmkit import hookimpl, plugins
from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.data import Field, Info, Source
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from tests.conftest import checksums


class Squares(Source):
    """A grey ground with a square, whose place is the label."""

    def __init__(self, *, count: int = 24) -> None:
        self.count = count

    def info(self) -> Info:
        return Info(count=self.count, fields={"image": Field("image"), "label": Field("label", classes=4)})

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        left, top = 16 * (index % 2), 16 * (index // 2 % 2)
        image = Image.new("RGB", (32, 32), (40 + 5 * (index % 24), 90, 160))
        image.paste((240, 30, 30), (left, top, left + 16, top + 16))
        return {"image": image, "label": index % 4}

    def split(self, part: str) -> Source:
        return self


class Place(Conditioner):
    """A vector a label; the number of labels is learned from the data."""

    reads = ("label",)

    def __init__(self, *, places: int) -> None:
        super().__init__()
        self.emits = Ports(vector=8)
        self.table = nn.Embedding(places, 8)
        self.nothing = nn.Parameter(torch.zeros(1, 8))

    @classmethod
    def fit(cls, options: Mapping[str, Any], samples: Any) -> Mapping[str, Any]:
        return {"places": 1 + max(int(sample["label"]) for sample in samples)}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=self.table(prepared["label"]))

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=self.nothing)


class Watcher:
    """An observer that remembers what it was told; `at` is called with (stage, step)."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.at: Callable[[str, int], None] = lambda stage, step: None

    @hookimpl
    def ldmkit_run_started(self, run: Any) -> None:
        self.told.append("started")

    @hookimpl
    def ldmkit_step_logged(self, run: Any, step: int, metrics: Mapping[str, float]) -> None:
        stage = str(run.status.get("stage"))
        self.told.append(f"{stage} {step}")
        self.at(stage, step)

    @hookimpl
    def ldmkit_run_finished(self, run: Any, error: BaseException | None) -> None:
        self.told.append("finished" if error is None else type(error).__name__)

    @hookimpl
    def ldmkit_register_data_sources(self, register: Any) -> None:
        register("squares", Squares)

    @hookimpl
    def ldmkit_register_conditioners(self, register: Any) -> None:
        register("place", Place)


# Of the core: for runs in processes that have no plugin made of objects.
FEW = {"type": "scenes", "size": 32, "count": 24, "held_out": 8}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "squares", "size": 32},
    "autoencoder": {
        "type": "kl",
        "downsample": 4,
        "channels": 8,
        "multipliers": [1, 1, 1],
        "blocks": 1,
        "latent_channels": 2,
        "loss": {"perceptual": None, "adversarial": {"start": 2, "layers": 1, "channels": 8}},
        "train": {"steps": 3, "batch": 4, "log_every": 1, "checkpoint_every": 2},
    },
    "conditioners": {"place": {"dropout": 0.2}},
    "denoiser": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []},
    "train": {"steps": 4, "batch": 4, "ema": 0.9, "log_every": 1, "checkpoint_every": 2, "validate_every": 2},
    "sample": {"steps": 2, "count": 2},
    "evaluate": ["psnr"],
}


@pytest.fixture(autouse=True)
def few_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, of networks that have learned nothing."""
    monkeypatch.setattr("ldmkit.runs.completion.EVALUATED", 8)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def registry(watcher: Watcher) -> Registry:
    return plugins.load(only=[], extra=[watcher])


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        value: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in RECIPE.items()}
        for key, change in changes.items():
            section, _, last = key.rpartition("__")
            inner = value
            for name in section.split("__") if section else []:
                inner[name] = dict(inner[name])
                inner = inner[name]
            inner[last] = change
        return Recipe.parse(value)

    return make


@pytest.fixture
def bits() -> Callable[[Path, str], dict[str, str]]:
    return lambda run, stage: checksums(run / "checkpoints" / stage)
