"""The contrast loss: the closed form of where it is least, whose condition is exchanged, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldmkit import diffusion
from ldmkit.autoencoder import make
from ldmkit.conditioning import Batch, Conditioner, ConditionerSet, Conditioning, Ports
from ldmkit.denoiser import Denoiser
from ldmkit.errors import RecipeError
from ldmkit.latent_diffusion import Draws, LatentDiffusion
from ldmkit.losses import DiffusionPass, DiffusionTerm, ExtraLosses
from ldmkit.losses.contrast import Contrast
from ldmkit.losses.extra import Part


class Numbers(Conditioner):
    """Numbers as they are, in a vector of 3; the null is zeros."""

    reads = ("numbers",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(vector=3)

    def encode(self, prepared, canvas):
        return Conditioning(vector=prepared["numbers"])

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, 3))


class Linear(Denoiser):
    """Every entry of the prediction is one linear map of the condition, whatever the noisy latent is."""

    vector_width = 3

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.read.weight, 0.5)

    def forward(self, x, t, *, tokens=None, mask=None, vector=None, concat=None):
        return self.read(vector)[:, :, None, None].expand_as(x)

    def blocks(self):
        return [self.read]


CODES = [0, 0, 1, 1, 0, 0, 1, 1]  # passed on to the next row, either code meets both as often
NOISE = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]  # says nothing of the code
VALUES = {0: 0.2, 1: 0.8}


def linear(term: DiffusionTerm | None) -> LatentDiffusion:
    fields = {"code": {"numbers": "code"}, "noise": {"numbers": "noise"}}
    model = LatentDiffusion(
        make("identity", image_channels=1),
        Linear(),
        ConditionerSet({"code": Numbers(), "noise": Numbers()}, vector_width=3, fields=fields),
        diffusion.make(schedule={"type": "linear"}, prediction="x0"),
        size=(4, 4),
    )
    if term is not None:
        model.extra = ExtraLosses({"term": Part(term)})
    return model.train()


def rows(model: LatentDiffusion, **changes: dict[int, None]) -> Batch:
    samples = []
    for row, (code, noise) in enumerate(zip(CODES, NOISE, strict=True)):
        vectors = {"code": torch.eye(3)[code], "noise": torch.tensor([0.0, 0.0, noise])}
        absent = {name: None for name, which in changes.items() if row in which}
        samples.append({"image": torch.full((1, 4, 4), VALUES[code]), **vectors, **absent})
    return model.batch(samples)


def draws(dropped: dict[str, list[int]] | None = None) -> Draws:
    zeros = torch.zeros(len(CODES), 1, 4, 4)
    masks = {slot: torch.tensor([row in which for row in range(len(CODES))]) for slot, which in (dropped or {}).items()}
    return Draws(torch.full((len(CODES),), 500.0), zeros, zeros, masks)


def trained(term: DiffusionTerm | None) -> torch.Tensor:
    """The weights of `Linear` where plain descent ends."""
    model = linear(term)
    batch, optimizer = rows(model), torch.optim.SGD(model.denoiser.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        model(batch, draws())[0].backward()
        optimizer.step()
    return model.denoiser.read.weight.detach()[0]


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_the_effect_of_a_condition_grows_as_in_closed_form(share):
    """Least at o = m + (u - m) / (1 - lambda), m the mean of the two codes' values."""
    found = trained(Contrast(slots={"code": share}))
    expected = torch.tensor([0.5 - 0.3 / (1 - share), 0.5 + 0.3 / (1 - share), 0.0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(trained(None), torch.tensor([0.2, 0.8, 0.0]), rtol=0, atol=1e-5)


def test_a_slot_fed_with_noise_keeps_zero_effect():
    torch.testing.assert_close(
        trained(Contrast(slots={"noise": 0.4})), torch.tensor([0.2, 0.8, 0.0]), rtol=0, atol=1e-5
    )


class Exchanging(DiffusionTerm):
    """Keeps what `exchanged` returned."""

    def forward(self, given: DiffusionPass):
        self.conditioning, self.moved = given.exchanged("code")
        self.own = given.conditioning
        return given.timesteps * 0.0


def test_rows_without_the_condition_are_passed_over_and_keep_what_they_have():
    model = linear(term := Exchanging())
    model(rows(model, code={1: None}), draws({"code": [2], "noise": [3]}))
    assert term.moved.tolist() == [True, False, False, True, True, True, True, True]
    own, other = term.own.vector, term.conditioning.vector
    assert torch.equal(other[~term.moved], own[~term.moved])
    having = [0, 3, 4, 5, 6, 7]
    assert torch.equal(other[having][:, :2], own[having].roll(-1, 0)[:, :2])
    assert torch.equal(other[:, 2], own[:, 2])  # the other slot's, also where it was dropped


def test_what_a_frozen_slot_answered_before_is_exchanged_too():
    model = linear(term := Exchanging())
    batch = rows(model)
    model(batch, draws())
    asked = term.conditioning.vector
    known = {"code": Conditioning(vector=batch.prepared["code"]["numbers"])}
    model(Batch(**{**vars(batch), "answers": known}), draws())
    assert torch.equal(term.conditioning.vector, asked)


def test_one_row_alone_has_nothing_to_be_compared_with():
    model = linear(Contrast(slots={"code": 0.4}))
    loss, parts = model(rows(model, code=dict.fromkeys(range(1, 8))), draws())
    assert parts["losses/term"] == 0
    assert loss == parts["diffusion"]


@pytest.mark.parametrize("slots", [{}, {"code": 0.0}, {"code": 0.5, "noise": 0.5}, {"code": float("nan")}])
def test_weights_for_which_there_is_no_least_loss_are_refused(slots):
    with pytest.raises(RecipeError, match="a number above 0 for each slot, together below 1"):
        Contrast(slots=slots)
