from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit.errors import DataError, DivergedError
from ldmkit.training.batches import held_out
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.diffusion import VALIDATION, begin, split, train_diffusion, trainable, validation_loss
from ldmkit.training.ema import averaged
from ldmkit.training.logging.log import Log, read
from ldmkit.training.optim import Group
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop


def train(toy: SimpleNamespace, folder: Path, model: Any, **options: Any) -> Any:
    own = {"settings": toy.settings(log_every=1, **options.pop("changes", {})), "seed": 5, "stop": Stop()}
    places = {"checkpoints": Checkpoints(folder / "diffusion"), "log": Log(folder)}
    return train_diffusion(model, options.pop("data", toy.data()), toy.data(), **{**own, **places, **options})


class Poison:
    """Makes the gradient infinite in some calls, the loss staying what it is."""

    def __init__(self, *calls: int) -> None:
        self.calls, self.seen = calls, 0

    def __call__(self, value: Tensor) -> Tensor:
        bad = self.seen in self.calls
        self.seen += value.requires_grad
        return value + (value - value.detach()) * float("inf") * 0 + _infinite_gradient(value) if bad else value


def _infinite_gradient(value: Tensor) -> Tensor:
    zero = value - value.detach()
    return torch.sqrt(zero * zero)  # its gradient at zero is not a number


def test_the_loss_goes_down_and_the_average_is_what_is_validated(toy: SimpleNamespace, tmp_path: Path) -> None:
    model = toy.model()
    state = train(toy, tmp_path, model, changes={"steps": 40, "decay": "constant", "ema": 0.9})
    lines = read(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    validations = [line["validation"] for line in lines if "validation" in line]
    assert validations[-1] < validations[0]
    samples = held_out(toy.data(), model.conditioners, most=VALIDATION, settings=toy.settings(), seed=5)
    with averaged(model, state.ema):
        again = validation_loss(model, samples, 5, Runtime())
    assert again == pytest.approx(validations[-1], rel=1e-4)


def test_validation_is_the_same_number_for_the_same_weights(toy: SimpleNamespace) -> None:
    model = toy.model()
    samples = held_out(toy.data(), model.conditioners, most=VALIDATION, settings=toy.settings(), seed=5)
    torch.manual_seed(1)
    first = validation_loss(model, samples, 5, Runtime())
    torch.manual_seed(2)
    assert validation_loss(model, samples, 5, Runtime()) == first
    assert validation_loss(model, samples, 6, Runtime()) != first


def test_one_gradient_that_is_not_finite_is_skipped_and_counted(toy: SimpleNamespace, tmp_path: Path) -> None:
    model = toy.model()
    model.conditioners["label"].poison = Poison(2)
    state = train(toy, tmp_path, model)
    assert (state.skipped, state.skipped_in_a_row, state.step) == (1, 0, 6)
    assert state.ema is not None
    assert state.ema.updates == 5
    assert all(torch.isfinite(p).all() for p in model.parameters())
    newest = state and Checkpoints(tmp_path / "diffusion").newest()
    assert newest is not None
    assert newest.state["skipped"] == 1


def test_three_in_a_row_stop_the_stage_with_the_batch_saved(toy: SimpleNamespace, tmp_path: Path) -> None:
    model = toy.model()
    model.conditioners["label"].poison = Poison(*range(3, 100))
    with pytest.raises(DivergedError, match="3 times in a row, up to step 6"):
        train(toy, tmp_path, model, changes={"steps": 20})
    newest = Checkpoints(tmp_path / "diffusion").newest()
    assert newest is not None
    assert newest.step == 4  # with two updates skipped since, and weights that are good
    saved = tmp_path / "diffusion" / "diverged-00000005" / "batch.safetensors"
    from safetensors.torch import load_file

    batch = load_file(saved)
    assert batch["images"].shape == (8, 3, 16, 16)
    assert batch["positions"].tolist() == list(range(40, 48))
    assert "label/label" in batch


def test_accumulation_is_the_large_batch(toy: SimpleNamespace, tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 2, 3):
        model = toy.model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # it draws by call, not by row
        state = train(toy, tmp_path / str(parts), model, changes={"accumulate": parts, "steps": 1, "clip": None})
        moments = state.optimizers["model"].tensors()  # after one step: a tenth of the gradient
        gradients.append(torch.cat([v.flatten() for name, v in moments.items() if name.endswith(":exp_avg")]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-6 * float(gradients[0].abs().max()), rtol=1e-4)


def test_split(toy: SimpleNamespace) -> None:
    data = toy.data()
    batch = toy.model().batch([data.sample(i) for i in range(7)])
    pieces = list(split(batch, 3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    assert torch.cat([piece.positions for piece in pieces]).tolist() == list(range(7))
    assert next(split(batch, 1)) is batch


def test_frozen_and_late_conditioners(toy: SimpleNamespace, tmp_path: Path) -> None:
    model = toy.model()
    table = model.conditioners["label"].table
    before = table.weight.detach().clone()
    own = {name: p for name, p in trainable(model).items() if ".table." in name}
    rest = {name: p for name, p in trainable(model).items() if ".table." not in name}
    train(toy, tmp_path, model, changes={"steps": 3}, groups=[Group(rest), Group(own, lr=0.1, starts=3)])
    assert torch.equal(table.weight, before)

    frozen = toy.model()
    frozen.conditioners["label"].table.requires_grad_(False)
    state = begin(frozen, toy.settings())
    names = set(state.optimizers["model"].tensors()) | set(state.modules["model"].state_dict())
    assert not any(".table." in name for name in trainable(frozen))
    assert any(".table." in name for name in names)  # it is part of the model
    assert state.ema is not None
    assert not any(".table." in name for name in state.ema.tensors())


def test_the_autoencoder_stands_still(toy: SimpleNamespace, tmp_path: Path) -> None:
    model = toy.model()
    before = model.autoencoder.weights_hash()
    train(toy, tmp_path, model)
    assert model.autoencoder.weights_hash() == before


def test_a_slot_that_never_finds_its_condition_is_an_error_at_once(toy: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="slot label has no condition in the first 64 samples: label is None"):
        train(toy, tmp_path, toy.model(), data=toy.data(labelled=False))
    assert Checkpoints(tmp_path / "diffusion").newest() is None


def test_pictures_are_drawn_with_average_weights_and_change_nothing(toy: SimpleNamespace, tmp_path: Path) -> None:
    seen: list[tuple[int, bool, float]] = []
    model = toy.model()

    def look(step: int) -> None:
        torch.manual_seed(step)
        torch.randn(5)
        weight = next(iter(trainable(model).values()))
        seen.append((step, model.training, float(weight.detach().sum())))

    watched = train(toy, tmp_path / "a", model, changes={"sample_every": 2}, pictures=look)
    other = toy.model()
    plain = train(toy, tmp_path / "b", other)
    assert [step for step, _, _ in seen] == [2, 4, 6]
    assert not any(training for _, training, _ in seen)
    assert watched.ema is not None
    assert seen[-1][2] == pytest.approx(float(next(iter(watched.ema.tensors().values())).sum()))
    for mine, theirs in zip(trainable(model).values(), trainable(other).values(), strict=True):
        assert torch.equal(mine, theirs)
    assert plain.step == watched.step


def test_pictures_wait_for_the_checkpoint(toy: SimpleNamespace, tmp_path: Path) -> None:
    """A process that is killed while they are drawn has lost nothing."""
    seen: list[tuple[int, int]] = []
    checkpoints = Checkpoints(tmp_path / "diffusion")

    def look(step: int) -> None:
        newest = checkpoints.newest()
        seen.append((step, 0 if newest is None else newest.step))

    train(toy, tmp_path, toy.model(), changes={"sample_every": 2, "checkpoint_every": 3, "steps": 6}, pictures=look)
    assert seen == [(2, 0), (4, 3), (6, 6)]


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_validation_spreads_its_timesteps_over_all_pictures(
    toy: SimpleNamespace, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in every stratum of the distribution, whatever the batches are, and the strata of training on top of none."""
    from ldmkit.diffusion import TIMESTEP_SAMPLINGS

    model = toy.model()
    model.diffusion.timestep_sampling = TIMESTEP_SAMPLINGS[sampling]()
    seen: list[Tensor] = []
    forward = model.forward

    def watched(batch: Any, draws: Any) -> Any:
        seen.append(draws.timesteps)
        return forward(batch, draws)

    monkeypatch.setattr(model, "forward", watched)
    samples = held_out(toy.data(), model.conditioners, most=VALIDATION, settings=toy.settings(batch=5), seed=5)
    first = validation_loss(model, samples, 5, Runtime())
    timesteps = torch.cat(seen)
    count = len(timesteps)
    assert torch.equal((timesteps.sort().values * count / 1000).floor(), torch.arange(count).float())
    assert validation_loss(model, samples, 5, Runtime()) == first


def test_a_rows_stratum_is_that_of_its_position(toy: SimpleNamespace) -> None:
    """Whichever batch, part of a batch or rank it is drawn in."""
    from ldmkit.diffusion import TIMESTEP_SAMPLINGS

    model = toy.model()
    model.diffusion.timestep_sampling = TIMESTEP_SAMPLINGS["stratified"]()
    whole = model.draw(range(64, 96), seed=3).timesteps
    parts = [model.draw(range(first, first + 8), seed=3).timesteps for first in range(64, 96, 8)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.bincount((whole * 32 / 1000).long(), minlength=32).max() <= 2  # whole timesteps straddle an edge
