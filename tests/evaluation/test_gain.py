"""Conditioning gain on a model whose gain is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit.conditioning import Batch
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.gain import ConditioningGain, by_noise, conditioning_gain, exchange


def test_gain_of_a_gaussian_is_the_closed_form(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """x_0 = y + s u with y = 0 or 1. The best eps-prediction from x_t = a x_0 + b eps and y has the loss a^2 s^2 / v,
    v = a^2 s^2 + b^2, and with another's y it has a^2 b^2 (y - y')^2 / v^2 more."""
    a, b, s = 0.8, 0.6, 0.5
    v = a**2 * s**2 + b**2
    seen: list[Any] = []

    def losses(batch: Batch, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(draws)
        own = (batch.images.mean((1, 2, 3)) > 0).float()  # y, which the picture shows
        given = batch.prepared["label"]["label"].float()  # type: ignore[index]
        u, eps = draws.noise[:, 0], draws.noise[:, 1]
        x_t = a * (own + s * u) + b * eps
        return (b * (x_t - a * given) / v - eps).square(), {}

    evaluation.n = 1200
    evaluation.chunk = 300
    evaluation.validation.count = 1200  # type: ignore[misc]
    monkeypatch.setattr(evaluation.model, "losses", losses, raising=False)
    figures = {figure.slot: figure for figure in ConditioningGain(draws=4).compute(evaluation)}

    apart = (
        evaluation.batch.prepared["label"]["label"][evaluation.shuffled] != evaluation.batch.prepared["label"]["label"]
    )  # type: ignore[index]
    expected = (a**2 * b**2 / v**2) * float(apart.float().mean()) / (a**2 * s**2 / v)
    figure = figures["label"]
    assert figure.interval is not None
    assert figure.value == pytest.approx(expected, rel=0.1)
    assert figure.interval[0] < expected < figure.interval[1]
    assert figure.verdict() == "better"
    assert figure.show(figure.value).endswith("times")
    assert figures["small"].verdict() == "no difference"
    levels = figure.series["right conditions"]
    assert len(levels) == 10
    assert sum(levels) / 10 == pytest.approx(
        a**2 * s**2 / v, rel=0.1
    )  # the same at every level: this model does not see t
    assert all(one < other for one, other in zip(levels, figure.series["shuffled conditions"], strict=True))
    assert figures["small"].value == 0.0  # this model does not look at the small picture
    assert all(not draws.dropped for draws in seen)
    timesteps = torch.cat([draws.timesteps for draws in seen[:4]])
    within = timesteps.sort().values / 1000 * 1200 - torch.arange(1200)  # one in every stratum
    assert -1e-3 < float(within.min()) <= float(within.max()) < 1 + 1e-3


def test_losses_are_told_apart_by_their_noise() -> None:
    timesteps = torch.tensor([[900.0, 100.0, 500.0], [300.0, 700.0, 0.0]])
    assert by_noise(timesteps / 100, timesteps, levels=3) == (0.5, 4.0, 8.0)


def test_the_pairing_makes_a_small_gain_visible() -> None:
    """A gain of 1 % under a loss whose own spread is 100 times that."""
    right = 1 + 1.0 * torch.rand(256, generator=torch.Generator().manual_seed(0))
    gain = conditioning_gain(right, right * 1.01 + 0.001 * torch.randn(256, generator=torch.Generator().manual_seed(1)))
    assert gain.value == pytest.approx(0.01, abs=0.001)
    assert gain.interval is not None
    assert gain.interval[0] > 0.009
    assert conditioning_gain(right, right).interval == (0.0, 0.0)


def test_exchange_touches_one_slot_only(evaluation: Evaluation) -> None:
    batch, partner = evaluation.batch, evaluation.shuffled
    other = exchange(batch, "label", partner)
    assert torch.equal(other.images, batch.images)
    assert torch.equal(other.prepared["small"]["image"], batch.prepared["small"]["image"])  # type: ignore[index]
    assert torch.equal(other.prepared["label"]["label"], batch.prepared["label"]["label"][partner])  # type: ignore[index]
