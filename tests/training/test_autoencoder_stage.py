"""What is particular to stage one: which checkpoint is its best, and where its windows lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldmkit.conditioning import Batch
from ldmkit.training import autoencoder as stage
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.logging.log import Log
from ldmkit.training.runtime import Runtime
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


def test_psnr_is_that_of_images_in_minus_one_to_one() -> None:
    """A constant error of 0.2 on a range of 2: 20 log10(2 / 0.2) dB."""
    shifted = SimpleNamespace(eval=lambda: None, encode=lambda images: images, decode=lambda latents: latents + 0.2)
    batch = Batch(images=torch.zeros(3, 1, 4, 4), prepared={}, present={}, positions=torch.arange(3))
    assert stage.psnr(shifted, [batch], Runtime()) == pytest.approx(20.0, abs=1e-4)


def test_the_posteriors_noise_is_keyed_by_the_position(toy: SimpleNamespace) -> None:
    autoencoder, images = toy.model().autoencoder, torch.zeros(2, 3, 16, 16)
    one, other = (
        stage._posterior_noise(autoencoder, images, SimpleNamespace(positions=torch.tensor(positions)), 5)
        for positions in ([3, 9], [9, 4])
    )
    assert torch.equal(one[1], other[0]), "whatever its row"
    assert not torch.equal(one[0], other[0])
