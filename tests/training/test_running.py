"""One bad batch in the forward pass: its update is skipped, and nothing of it stays in what a forward pass keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ldmkit.autoencoder import make
from ldmkit.training.autoencoder import train_autoencoder
from ldmkit.training.buffer_guard import Running
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.logging.log import Log
from ldmkit.training.stop import Stop


class Bad(nn.Module):
    """Gives no numbers in the training step `at`, once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return x * float("nan") if self.training and self.seen == self.at else x


@pytest.mark.parametrize(
    ("options", "game"),
    [
        ({"type": "kl"}, {"norm": "batch"}),
        ({"type": "kl"}, {"norm": "group", "lecam": 0.1}),
        ({"type": "vq", "codebook": 16, "ema": 0.9, "revive": 2}, None),
    ],
    ids=["batch norm", "averages of logits", "averages of codes"],
)
def test_a_forward_pass_without_numbers_costs_one_step(
    toy: SimpleNamespace, tmp_path: Path, options: dict[str, Any], game: dict[str, Any] | None
) -> None:
    torch.manual_seed(0)
    small = {"downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 2}
    autoencoder = make(options.pop("type"), **small, **options)
    autoencoder.encoder.conv_in = nn.Sequential(autoencoder.encoder.conv_in, Bad(at=3))
    losses = toy.losses(adversarial=game and {"start": 0, "layers": 1, "channels": 8, **game})
    state = train_autoencoder(
        autoencoder,
        losses,
        toy.data(),
        toy.data(),
        settings=toy.settings(autoencoder=True, steps=5, validate_every=5, checkpoint_every=5),
        seed=5,
        checkpoints=Checkpoints(tmp_path),
        log=Log(),
        stop=Stop(),
    )
    assert state.skipped == (1 if game is None else 2)  # of the one step, on both sides
    assert state.skipped_in_a_row == 0
    newest = Checkpoints(tmp_path).newest()  # nothing that is not finite is saved
    assert newest is not None
    assert newest.step == 5


def test_what_is_finite_stays_and_the_rest_is_as_before() -> None:
    norm = nn.BatchNorm1d(3)
    running = Running([norm])
    norm(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    running.keep()
    before = norm.running_mean.clone()
    assert before.tolist() == pytest.approx([0.2, 0.4, 0.6])
    norm(torch.full((2, 3), float("inf")))
    assert not torch.isfinite(norm.running_mean).any()
    running.mend()
    assert torch.equal(norm.running_mean, before)
    norm(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    running.mend()
    assert norm.running_mean.tolist() == pytest.approx([0.38, 0.76, 1.14])
    norm.running_mean = torch.full((3,), float("nan"))  # another tensor in the same place
    running.mend()
    assert torch.equal(norm.running_mean, before)
