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


def test_a_disk_that_is_nearly_full(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "warning" not in said()
    monkeypatch.setattr(summary.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**18))
    assert "warning: 0 MiB are free, and two checkpoints take" in said()


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
