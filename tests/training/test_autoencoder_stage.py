"""What is particular to stage one: which checkpoint is its best, and where its windows lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldmkit.training import autoencoder as stage
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.logging.log import Log
from ldmkit.training.stop import Stop


def test_the_best_checkpoint_is_that_of_the_highest_psnr(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: Iterator[float] = iter([11.0, 10.0, 25.0, 24.0, 20.0, 21.0])
    monkeypatch.setattr(stage, "psnr", lambda *arguments: next(figures))
    checkpoints = Checkpoints(tmp_path / "autoencoder", keep=1)
    stage.train_autoencoder(
        toy.model().autoencoder,
        toy.losses(),
        toy.data(),
        toy.data(),
        settings=toy.settings(autoencoder=True, checkpoint_every=1, validate_every=100),
        seed=5,
        checkpoints=checkpoints,
        log=Log(tmp_path),
        stop=Stop(),
    )
    assert [found.step for found in checkpoints.all()] == [3, 6], "the best, and the last"


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 6), (5, 9, 4), (16, 7, 6)])
def test_windows_lie_everywhere_from_the_first_row_and_column_to_the_last(height: int, width: int, side: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns]).float()[None].expand(400, -1, -1, -1)
    cut = stage.windows(image, range(400), side, 3)
    assert cut.shape == (400, 2, side, side)
    assert set(cut[:, 0, 0, 0].long().tolist()) == set(range(height - side + 1))
    assert set(cut[:, 1, 0, 0].long().tolist()) == set(range(width - side + 1))
    assert torch.equal(cut[:, 0, -1, 0] - cut[:, 0, 0, 0], torch.full((400,), side - 1.0)), "whole windows"
    assert torch.equal(stage.windows(image, range(400), side, 3), cut), "keyed by the position"
    assert not torch.equal(stage.windows(image, range(400), side, 4), cut)
    assert stage.windows(image, range(400), min(height, width), 3) is image, "no window is larger than the image"
