"""The variational bound as a metric, on a model that is right about its data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit import diffusion, plugins
from ldmkit.autoencoder import make
from ldmkit.conditioning import ConditionerSet
from ldmkit.errors import UsageError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metrics.variational_bound import VariationalBound, levels
from ldmkit.latent_diffusion import LatentDiffusion

STD = 0.5


class Exact(nn.Module):
    """x_0 of latents that are N(mean of the condition, 1), `share` of it."""

    def __init__(self, schedule: Any, share: float) -> None:
        super().__init__()
        self.schedule, self.reduction, self.share = schedule, 1, nn.Parameter(torch.tensor(share))

    def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        alpha, _sigma = (part.view(-1, 1, 1, 1) for part in self.schedule.alpha_sigma(t))
        return self.share * alpha * x  # alpha^2 + sigma^2 = 1


def use(evaluation: Evaluation, share: float = 1.0) -> Evaluation:
    """The fixture with pictures of white noise of deviation STD, and a latent scale of 1 / STD."""
    process = diffusion.make(schedule={"type": "edm"}, prediction="x0")
    first_stage = make("identity")
    first_stage.latent_scale.fill_(1 / STD)
    fixture = evaluation.model.conditioners
    evaluation.model = LatentDiffusion(
        first_stage,
        Exact(process.schedule, share),  # type: ignore[arg-type]
        ConditionerSet(dict(fixture.items()), vector_width=2),
        process,
        size=evaluation.model.size,
    ).eval()
    evaluation.truth = STD * torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return evaluation


def test_it_is_the_entropy_of_the_latents(evaluation: Evaluation) -> None:
    """The chain's gap is of first order in its steps, so twice the longer one less the shorter one is the entropy."""
    bounds = {}
    for steps in (250, 500):
        (figure,) = VariationalBound(steps=steps, count=8).compute(use(evaluation))
        bounds[steps] = figure.value
        assert sum(figure.beside.values()) == pytest.approx(figure.value, abs=1e-6)
        assert (figure.n, figure.better, figure.unit) == (8, "lower", "bits/dim")
        assert "autoencoder" in figure.note
    latents = evaluation.truth[:8].double() / STD
    exact = float((0.5 * latents**2 + 0.5 * math.log(2 * math.pi)).mean()) / math.log(2)
    assert bounds[250] > bounds[500] > exact
    assert 2 * bounds[500] - bounds[250] == pytest.approx(exact, abs=0.1)
    (worse,) = VariationalBound(steps=250, count=8).compute(use(evaluation, share=0.9))
    assert worse.value > bounds[250] + 0.01


def test_pixels_have_levels(evaluation: Evaluation) -> None:
    use(evaluation).model.autoencoder = make("identity")
    assert levels(evaluation) == 256
    evaluation.truth = (torch.randint(256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 127.5) - 1
    (figure,) = VariationalBound(steps=20, count=4).compute(evaluation)
    assert figure.value > 8  # uniform noise takes 8 bits a pixel, and no bound is below
    assert "picture" in figure.note


def test_a_recipe_finds_it_and_its_steps_are_checked(evaluation: Evaluation) -> None:
    metric = plugins.load().metrics.create("variational-bound", {"steps": 1001})
    with pytest.raises(UsageError, match="1 to 1000"):
        metric.compute(use(evaluation))
