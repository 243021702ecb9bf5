"""Nothing in a training step's forward and backward pass waits for the device.

There is no accelerator here, so tensors that would be on one are marked: what is computed of a marked tensor is marked too, and
reading a number of one (`.item()`, `bool(tensor)`, `nonzero`, boolean indexing) is what would wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ldmkit import diffusion as objectives
from ldmkit.autoencoder import KLAutoencoder
from ldmkit.conditioning import Conditioner, ConditionerSet, Conditioning, Dropout, Ports
from ldmkit.denoiser.unet import UNet
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.recipe import Train
from ldmkit.training.diffusion import _step, begin
from ldmkit.training.logging.log import Log
from ldmkit.training.parallel.distributed import engine as engine_for
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select", "unique"}


class Device(TorchDispatchMode):
    """Notes every reading of a number of a marked tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: Any = WeakIdKeyDictionary()
        self.waits: list[str] = []

    def mark(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self.marked[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        there = any(tensor in self.marked for tensor in given)
        name = func.overloadpacket.__name__
        if there and name in WAITING:
            self.waits.append(name)
        found = func(*args, **(kwargs or {}))
        if there:
            self.mark(*(leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)))
        return found


class Number(Conditioner):
    reads = ("number",)

    def __init__(self, *, reads_a_number: bool = False) -> None:
        super().__init__()
        self.emits, self.asking = Ports(tokens=8, concat=1, length=1), reads_a_number
        self.net = nn.Linear(1, 8)

    def prepare(self, sample, generator=None):
        return {"number": torch.tensor([float(sample["number"])])}

    def encode(self, prepared, canvas):
        number = prepared["number"].to(canvas.dtype)
        if self.asking and bool(number.max() > 1e9):
            raise AssertionError("never")
        return Conditioning(
            tokens=self.net(number)[:, None], concat=number[:, :, None, None].expand(-1, 1, *canvas.grid)
        )

    def null(self, canvas):
        return Conditioning(tokens=canvas.zeros(1, 1, 8), concat=canvas.zeros(1, 1, *canvas.grid))


def make(**options: bool) -> LatentDiffusion:
    autoencoder = KLAutoencoder(downsample=2, channels=8, multipliers=(1, 2), blocks=1, latent_channels=2, groups=4)
    denoiser = UNet.of_widths(
        in_channels=3, out_channels=2, channels=16, multipliers=(1, 2), blocks=1, attention=(2,), context_width=8
    )
    dropout = Dropout.from_table(("number",), {"number": 0.5})
    conditioners = ConditionerSet({"number": Number(**options)}, vector_width=denoiser.vector_width, dropout=dropout)
    return LatentDiffusion(autoencoder, denoiser, conditioners, objectives.make(), size=(16, 16)).train()


def waits(model: LatentDiffusion, numbers: list[float | None], dropped: list[bool]) -> list[str]:
    """What a second step waits for: in the first one, and every hundredth, answers are looked at closely."""
    batch = model.batch([{"image": torch.zeros(3, 16, 16), "number": number} for number in numbers])
    draws = replace(model.draw(range(len(numbers)), seed=0), dropped={"number": torch.tensor(dropped)})
    model(batch, draws)[0].backward()
    device = Device()
    # What `Batch.to` and `Draws.to` move, and the model itself.
    device.mark(*model.parameters(), *model.buffers(), batch.images, draws.timesteps, draws.noise, draws.posterior)
    device.mark(*(value for own in batch.prepared.values() if own is not None for value in own.values()))
    model.autoencoder.fit = lambda images: images  # looks at images that are on the CPU, which these only seem to be
    model.diffusion.schedule.log_snr = _of_device(model.diffusion.schedule)
    with device:
        model(batch, draws)[0].backward()
    return device.waits


def _of_device(schedule: Any) -> Any:
    """Timesteps on an accelerator are not looked at either (`Schedule.log_snr`)."""
    return lambda t: schedule._log_snr(t.double().clamp(0, schedule.timesteps - 1))


@pytest.mark.parametrize(
    ("numbers", "dropped"),
    [
        ([1.0, 2.0, 3.0], [False, True, False]),
        ([1.0, 2.0, 3.0], [False, False, False]),
        ([1.0, 2.0, 3.0], [True, True, True]),
        ([1.0, None, 3.0], [False, False, True]),
        ([1.0, None, None], [True, False, False]),
    ],
)
def test_a_step_waits_for_nothing(numbers, dropped):
    assert waits(make(), numbers, dropped) == []


def test_a_conditioner_that_reads_a_number_is_seen():
    assert waits(make(reads_a_number=True), [1.0, 2.0], [False, False]) == ["_local_scalar_dense"]


@pytest.mark.parametrize("deferred", [True, False])
def test_a_whole_step_waits_for_nothing_where_updates_are_deferred(deferred):
    """Gradients, their norm, the optimizer, averages, buffers and the log; the usual way reads whether the norm is finite."""
    model, settings, runtime, ranks = make(), Train(steps=9, batch=3, accumulate=1), Runtime(), Ranks()
    state, engine = begin(model, settings, None, runtime), engine_for(model, ranks, runtime)
    state.deferred = deferred
    batch = model.batch([{"image": torch.zeros(3, 16, 16), "number": number} for number in (1.0, 2.0, None)])
    model.autoencoder.fit = lambda images: images
    model.diffusion.schedule.log_snr = _of_device(model.diffusion.schedule)
    device = Device()
    with Log().stage("diffusion", total=9, every=9) as out:
        for step in range(2):
            with device if step else nullcontext():
                good, values = _step(engine, batch, state, settings, 0, runtime, ranks)
                state.average()
                state.advance(3)
                counted = good if isinstance(good, Tensor) else None
                out.step(step + 1, values, images=3, good=counted)
            assert state.ema is not None
            device.mark(*model.parameters(), *model.buffers(), *state.ema.tensors().values(), batch.images)
            device.mark(*(v for kept in state.optimizers["model"].optimizer.state.values() for v in kept.values()))
    assert device.waits == ([] if deferred else ["_local_scalar_dense"])


def test_what_is_decided_stays_on_the_cpu_when_a_batch_is_moved():
    model = make()
    batch = model.batch([{"image": torch.zeros(3, 16, 16), "number": 1.0}]).to("meta")
    draws = model.draw([0], seed=0).to("meta")
    assert batch.images.device.type == draws.noise.device.type == "meta"
    assert batch.present["number"].device.type == draws.dropped["number"].device.type == "cpu"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
