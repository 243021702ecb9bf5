"""Extra terms of a loss: what they are given, when they are on, what of them is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldmkit.data import batches
from ldmkit.errors import PluginError
from ldmkit.losses import DiffusionPass, DiffusionTerm, ExtraLosses
from ldmkit.losses.extra import Part
from ldmkit.training.diffusion import begin


class Reading(DiffusionTerm):
    """Keeps what it was given; its loss is a number of its own, times the features' mean square."""

    layers = ("middle_block",)
    frozen = ("encoder",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.given: DiffusionPass | None = None

    def forward(self, given):
        self.given = given
        return self.factor * given.features["middle_block"].square().flatten(1).mean(1)


@pytest.fixture
def model(toy):
    return toy.model()


@pytest.fixture
def step(toy, model):
    """(batch, draws) of the first step."""
    (batch,) = batches(toy.data(), model.conditioners, start=0, batch=4, seed=7, steps=1)
    return batch, model.draw(batch.positions, 7)


def test_a_term_is_added_weighted_and_told_unweighted(model, step):
    term = Reading()
    model.train()
    torch.manual_seed(0)
    plain, _ = model(*step)
    model.extra = ExtraLosses({"read": Part(term, weight=0.5)})
    model.train()
    torch.manual_seed(0)  # dropout's
    with_term, parts = model(*step)
    assert term.given is not None
    assert parts["diffusion"] == plain.detach()
    expected = 3.0 * term.given.features["middle_block"].square().mean()
    torch.testing.assert_close(parts["losses/read"], expected.detach())
    torch.testing.assert_close(with_term, plain + 0.5 * expected)


def test_what_a_term_is_given_is_the_step_itself(model, step):
    model.extra = ExtraLosses({"read": Part(term := Reading())})
    model.eval()
    model.losses(*step, model.extra)
    given, (batch, draws) = term.given, step
    assert given.name == "read"
    torch.testing.assert_close(given.noisy, model.diffusion.noised(given.latents, draws.noise, draws.timesteps))
    again = given.predict()
    torch.testing.assert_close(again, given.output)
    torch.testing.assert_close(given.errors(given.output), model.losses(*step)[0])
    keys = [g.initial_seed() for g in given.generators("turn")]
    assert len(set(keys)) == len(batch)
    assert keys != [g.initial_seed() for g in given.generators("other")]
    assert [g.initial_seed() for g in given.generators("turn")] == keys


def test_no_hook_stays_and_other_layers_are_named(model, step):
    from ldmkit.errors import UsageError

    model.extra = ExtraLosses({"read": Part(term := Reading())})
    model.losses(*step, model.extra)
    assert not any(module._forward_hooks for module in model.denoiser.modules())
    term.layers = ("middle_blok",)
    with pytest.raises(UsageError, match="did you mean 'middle_block'"):
        model.losses(*step, model.extra)


def test_after_until_it_is_not_computed_and_its_parameters_take_part_all_the_same(model, step):
    model.extra = ExtraLosses({"read": Part(term := Reading(), until=2)})
    model.train()
    model.extra.step = 2
    loss, parts = model(*step)
    loss.backward()
    assert term.given is None
    assert "losses/read" not in parts
    assert term.factor.grad == 0  # several processes need every parameter in every step


def test_what_is_frozen_is_neither_trained_nor_in_training_mode(toy, model):
    model.extra = ExtraLosses({"read": Part(term := Reading())})
    model.train()
    assert term.training
    assert not term.encoder.training
    assert list(model.extra.trained()) == ["losses.read.factor"]
    state = begin(model, toy.settings())
    names = state.optimizers["model"].groups[0].parameters
    assert "losses.read.factor" in names
    assert "losses.read.factor" not in state.ema.live
    assert set(state.modules) == {"model", "losses"}


def test_validation_and_the_saved_model_know_nothing_of_it(model, step):
    names, (loss, _) = list(model.state_dict()), model.eval()(*step)
    model.extra = ExtraLosses({"read": Part(Reading())})
    model.eval()
    assert model(*step)[0] == loss
    model.extra = ExtraLosses()
    assert list(model.state_dict()) == names


class Scalar(Reading):
    def forward(self, given):
        return super().forward(given).mean()


def test_a_term_of_another_shape_is_named(model, step):
    model.extra = ExtraLosses({"read": Part(Scalar())})
    with pytest.raises(
        PluginError, match=r"the loss read \(Scalar\) gave \(\); expected one number a row, of shape \(4,\)"
    ):
        model.losses(*step, model.extra)
