"""Failures planted in a whole training stage: caught, written to the log, and read in the report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ldmkit.errors import CheckpointError, DivergedError
from ldmkit.evaluation.report.record import Record
from ldmkit.evaluation.report.record import read as read_record
from ldmkit.evaluation.report.sections import alarms as alarms_in_report
from ldmkit.training import autoencoder as stage
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.diffusion import train_diffusion
from ldmkit.training.logging.log import Log, read
from ldmkit.training.optim import Group, Optimization
from ldmkit.training.stop import Stop

STEPS = 9


def train(toy: SimpleNamespace, folder: Path, *, kind: str = "kl", spoil: Any = None, **losses: Any) -> list[str]:
    """A few steps of stage one; the alarms that `metrics.jsonl` has, each of which the report shows."""
    model = toy.model(kind)
    if spoil is not None:
        spoil(model.autoencoder)
    stage.train_autoencoder(
        model.autoencoder,
        toy.losses(**losses),
        toy.data(),
        toy.data(),
        settings=toy.settings(autoencoder=True, steps=STEPS, log_every=1, validate_every=STEPS, checkpoint_every=STEPS),
        seed=5,
        checkpoints=Checkpoints(folder / "autoencoder"),
        log=Log(folder),
        stop=Stop(),
    )
    found = [line["alarm"] for line in read(folder / "metrics.jsonl") if "alarm" in line]
    (folder / "recipe.resolved.yaml").write_text("name: toy\n")
    record: Record = read_record(folder)
    page = alarms_in_report(record)
    assert page.count("<li>") == len(found)
    assert all(text.split(":")[0] in page for text in found)
    return found


def test_a_healthy_training_says_nothing(toy: SimpleNamespace, tmp_path: Path) -> None:
    assert train(toy, tmp_path) == []


def test_a_dead_discriminator_is_caught(toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its optimizer holds something else, as in a published example."""
    begin = stage.begin

    def forgetful(*args: Any, **rest: Any) -> Any:
        state = begin(*args, **rest)
        stray = nn.Parameter(torch.zeros(1))
        stray.grad = torch.zeros(1)
        other = Optimization([Group({"stray": stray})], lr=1e-2, betas=(0.5, 0.9), steps=STEPS)
        state.optimizers = {**state.optimizers, "discriminator": other}
        return state

    monkeypatch.setattr(stage, "begin", forgetful)
    (found,) = train(toy, tmp_path)
    assert "the discriminator's parameters do not move" in found
    assert found.startswith("step 7:")  # the game begins with the third step, and five in a row must say it
    assert "see that its optimizer holds its parameters" in found


def test_a_collapsed_codebook_is_caught(toy: SimpleNamespace, tmp_path: Path) -> None:
    def far_away(model: Any) -> None:
        with torch.no_grad():
            model.quantize.embedding.weight[1:] += 100.0

    (found,) = train(toy, tmp_path, kind="vq", spoil=far_away, adversarial=None)
    assert "the codebook collapses: the latents use about 1.0 codes" in found
    assert "revive: 20" in found


def test_a_gradient_that_is_not_finite_is_said_at_once(toy: SimpleNamespace, tmp_path: Path) -> None:
    class Once(nn.Module):
        """A layer whose gradient is not a number, the third time."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += self.training
            zero = x - x.detach()
            return x + torch.sqrt(zero * zero) if self.seen == 3 and self.training else x

    def spoil(model: Any) -> None:
        model.encoder.conv_in = nn.Sequential(model.encoder.conv_in, Once())

    (found,) = train(toy, tmp_path, spoil=spoil)
    assert found.startswith("step 3: gradient_norm not finite")


def test_one_sides_good_updates_do_not_hide_the_others_bad_ones(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoencoder whose gradient stays infinite ends the stage, however well the discriminator does."""
    step = stage._step

    def broken(autoencoder: Any, *args: Any, **rest: Any) -> Any:
        hook = autoencoder.encoder.conv_in.weight.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return step(autoencoder, *args, **rest)
        finally:
            hook.remove()

    monkeypatch.setattr(stage, "_step", broken)
    with pytest.raises(DivergedError, match="3 times in a row"):
        train(toy, tmp_path, adversarial={"start": 0, "layers": 1, "channels": 8})


def test_diffusion_refuses_an_autoencoder_whose_scale_was_measured_with_other_weights(
    toy: SimpleNamespace, tmp_path: Path
) -> None:
    from ldmkit.training.caching.latents import calibrate

    model = toy.model()
    calibrate(model.autoencoder, toy.data(), scale="std", seed=5)
    given = {
        "settings": toy.settings(steps=1),
        "seed": 5,
        "checkpoints": Checkpoints(tmp_path / "diffusion"),
        "log": Log(tmp_path),
        "stop": Stop(),
    }
    train_diffusion(model, toy.data(), toy.data(), **given)
    with torch.no_grad():
        model.autoencoder.decoder.conv_out.bias[0] += 1e-3
    with pytest.raises(CheckpointError, match="measured with other autoencoder weights"):
        train_diffusion(model, toy.data(), toy.data(), **{**given, "checkpoints": Checkpoints(tmp_path / "other")})
