"""What is said before the first step: disks and memory that are too small."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmkit.assembly import build, datasets
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs import summary
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime


@pytest.fixture
def said(recipe: Callable[..., Recipe], registry: Registry, tmp_path: Path) -> Callable[..., str]:
    def announced(ranks: Ranks | None = None, **changes: Any) -> str:
        asked = recipe(conditioners={"place": {"places": 4}}, **changes).validate_components(registry)
        out, model = io.StringIO(), build(asked, registry)
        summary.announce(
            Console(file=out), asked, model, datasets(asked, registry), Runtime(), tmp_path, ranks or Ranks()
        )
        return out.getvalue()

    return announced


@pytest.mark.parametrize(("copies", "warned"), [(7.9, True), (8.1, False)])
def test_a_disk_with_less_room_than_two_checkpoints(
    said: Callable[..., str],
    recipe: Callable[..., Recipe],
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    copies: float,
    warned: bool,
) -> None:
    """A checkpoint holds the weights four times, with the average and Adam's two moments; two of them are there at a time."""
    model = build(recipe(conditioners={"place": {"places": 4}}).validate_components(registry), registry)
    free = int(copies * sum(parameter.nbytes for parameter in model.parameters()))
    monkeypatch.setattr(summary.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert ("MiB are free, and two checkpoints take" in said()) == warned


def test_memory_that_cannot_hold_the_weights(
    said: Callable[..., str], recipe: Callable[..., Recipe], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(conditioners={"place": {"places": 4}}).validate_components(registry)
    model = build(asked, registry)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = 4 * (
        5 * trained + sum(p.numel() for p in model.autoencoder.parameters())
    )  # with gradient, moments, average
    monkeypatch.setattr(summary, "_free", lambda device: needed - 1)
    assert "warning: weights, gradients, moments and averages take" in said()
    monkeypatch.setattr(summary, "_free", lambda device: needed)
    assert "warning" not in said()
    monkeypatch.setattr(summary, "_free", lambda device: needed - 1)
    assert "warning" not in said(train__ema=None)
    assert "warning" not in said(Ranks(0, 2), runtime={"distributed": "fsdp"})


def test_batches_that_are_larger_than_the_data(said: Callable[..., str]) -> None:
    assert "autoencoder.train.batch 4 and train.batch 4: more than the 3 samples, so a batch holds some" in said(
        data__count=3
    )
    assert "more than the" not in said(data__count=4)


def test_this_systems_memory() -> None:
    free = summary._free(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_settings_that_do_nothing_are_said(said: Callable[..., str]) -> None:
    text = said(
        train__warmup=1000,
        autoencoder__train__crop=48,
        autoencoder__loss={"perceptual": None, "adversarial": {"start": 900, "layers": 1, "channels": 8}},
    )
    assert "autoencoder.loss.adversarial.start is 900, and the stage has" in text
    assert "the discriminator never starts" in text
    assert "train.warmup is 1000, and the stage has" in text
    assert "autoencoder.train.crop is 48, and the images have 32 pixels: nothing is cropped" in text
    assert "never" not in said()


def test_images_that_are_enlarged_and_none_held_out_are_said(tmp_path: Path) -> None:
    """The numbers of a folder of two sizes: 3 of 8 images lack pixels."""
    from PIL import Image

    from ldmkit.data import Dataset
    from ldmkit.data.sources.folder.source import FolderSource

    for number in range(8):
        Image.new("RGB", (64, 64) if number % 3 else (48, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data = Dataset(FolderSource(path=str(tmp_path), validation=0.0), size=48)
    assert summary._enlarged(data) == [
        "3 of 8 images are smaller than 48x48 and are enlarged 1.2 times: a smaller data.size, or data.smallest, leaves them out"
    ]
    Image.new("RGB", (120, 40)).save(tmp_path / "panorama.png")
    wide = Dataset(FolderSource(path=str(tmp_path), validation=0.0), size=48, buckets=[(64, 64), (32, 96)])
    assert summary._small_buckets(wide, 4) == [
        "the bucket 32x96 has 1 views for a batch of 4: they are seen 4.0 times as often"
    ]
    assert "no image is held out" in summary._nothing_held_out(data, data)[0]
