"""Updates that are left out on the device: nothing waits in a step, and the weights are those of the usual way."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ldmkit.training.checkpointing.state import PATIENCE, TrainingState
from ldmkit.training.ema import EMA
from ldmkit.training.logging.log import Log
from ldmkit.training.optim import Group, Optimization

BAD = (2, 5)


class Network(nn.Module):
    """A linear map that remembers an average of its inputs, as a batch norm does."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.lerp_(x.mean(dim=0), 0.1)
        return self.linear(x)  # type: ignore[no-any-return]


def state_of(network: nn.Module, *, deferred: bool) -> TrainingState:
    parameters = dict(network.named_parameters())
    optimization = Optimization([Group(parameters)], lr=1e-2, steps=100)
    assert optimization.decides_on_the_device
    return TrainingState(
        modules={"model": network},
        optimizers={"model": optimization},
        ema=EMA(parameters, decay=0.9),
        deferred=deferred,
    )


def one_step(state: TrainingState, x: Tensor) -> tuple[bool | Tensor, Tensor]:
    state.optimizers["model"].begin(state.step)
    state.backward(state.modules["model"](x).square().mean())
    good, norm = (state.defer_update if state.deferred else state.update)("model", clip=1.0)
    if good is not False:
        state.average()
    state.advance(len(x))
    return good, norm


def inputs() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        x = torch.randn(4, 3, generator=generator)
        yield x * float("inf") if step in BAD else x


def test_weights_moments_and_buffers_are_those_of_the_way_that_waits():
    torch.manual_seed(0)
    network = Network()
    usual, deferred = state_of(network, deferred=False), state_of(copy.deepcopy(network), deferred=True)
    for x in inputs():
        one_step(usual, x)
        one_step(deferred, x)
    for (name, one), other in zip(
        usual.modules["model"].state_dict().items(), deferred.modules["model"].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
        assert bool(one.isfinite().all()), name
    for name, one in usual.optimizers["model"].tensors().items():
        assert torch.equal(one, deferred.optimizers["model"].tensors()[name]), name
    assert deferred.skipped == 0, "nobody has looked yet"
    assert deferred.look()
    assert (deferred.skipped, deferred.skipped_in_a_row) == (usual.skipped, usual.skipped_in_a_row) == (len(BAD), 0)
    assert not deferred.look()


@pytest.mark.parametrize(("bad", "ends"), [(PATIENCE, True), (PATIENCE - 1, False)])
def test_a_row_of_them_ends_the_stage_whatever_came_after(bad, ends):
    torch.manual_seed(0)
    state = state_of(Network(), deferred=True)
    for step in range(bad + 2):
        one_step(state, torch.full((4, 3), float("inf") if step < bad else 1.0))
    state.look()
    assert state.diverged is ends


def test_the_average_stays_where_the_weights_do():
    torch.manual_seed(0)
    network = Network()
    state = state_of(network, deferred=True)
    before = {name: value.clone() for name, value in state.ema.tensors().items()}  # type: ignore[union-attr]
    one_step(state, torch.full((4, 3), float("inf")))
    for name, value in state.ema.tensors().items():  # type: ignore[union-attr]
        assert torch.equal(value, before[name]), "an average of equal values, towards the same value"


def test_the_log_leaves_out_what_was_left_out():
    lines = []
    log = Log(observer=lambda stage, step, values: lines.append(values))
    with log.stage("diffusion", total=4, every=4) as out:
        out._text = "begun"
        for step, loss in enumerate((1.0, float("nan"), 3.0, 5.0)):
            good = torch.tensor(step != 1)
            out.step(step + 1, {"loss": torch.tensor(loss)}, images=1, good=good)
    assert [line["loss"] for line in lines] == [3.0]
