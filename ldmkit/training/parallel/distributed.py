"""How the diffusion stage is spread over several processes: whole copies (DDP) or shards (FSDP2), both of torch.distributed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ldmkit.conditioning import Batch
from ldmkit.errors import PluginError
from ldmkit.latent_diffusion import Draws, LatentDiffusion
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.ema import EMA
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.parallel.shards import gathered
from ldmkit.training.runtime import Runtime

Loss = tuple[Tensor, dict[str, Tensor]]


class Engine(Protocol):
    """Computes the loss of this rank's rows such that gradients are means over all ranks.

    Attributes:
        model: whose parameters the optimizer moves.
    """

    model: LatentDiffusion

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of this rank's rows, and its parts."""

    def collecting(self, *, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of one part of a batch; `last`: the gradient is complete after it."""

    def whole(self) -> AbstractContextManager[object]:
        """Inside, the model that was handed in has the weights of `model` as they are now, on the first rank."""

    def finish(self, state: TrainingState) -> TrainingState:
        """The model that was handed in has the weights of `model`, and the state's averages are of its parameters."""


def engine(model: LatentDiffusion, ranks: Ranks, runtime: Runtime, *, shard: bool = False) -> Engine:
    """One process trains the model itself; several train copies of it, or with `shard` a model that is split among them."""
    if ranks.count == 1:
        return Alone(model, runtime)
    return Sharded(model, runtime) if shard else Replicated(model, runtime)


class Alone:
    """The model itself."""

    def __init__(self, model: LatentDiffusion, runtime: Runtime) -> None:
        runtime.place(model)
        self.model = model
        if runtime.compile:
            model.denoiser.compile()

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        result: Loss = self.model(batch, draws)
        return result

    def collecting(self, *, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def whole(self) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self, state: TrainingState) -> TrainingState:
        return state


class Replicated:
    """A copy on every rank (DistributedDataParallel), whose gradients are averaged while the backward pass still runs.

    Every trained parameter takes part in every step (`ConditionerSet` sees to it where conditions are dropped), so DDP need not
    look for unused ones; `collecting` raises PluginError naming one that a conditioner never uses.
    """

    def __init__(self, model: LatentDiffusion, runtime: Runtime) -> None:
        runtime.place(model)
        self.model = model
        if runtime.compile:
            model.denoiser.compile()
        self._parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._checked = False

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        result: Loss = self._parallel(batch, draws)
        return result

    @contextmanager
    def collecting(self, *, last: bool) -> Iterator[None]:
        with nullcontext() if last else self._parallel.no_sync():
            yield
        if last and not self._checked:
            self._check_all_used()

    def _check_all_used(self) -> None:
        self._checked = True
        unused = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise PluginError(
                f"{unused[0]}{f' and {len(unused) - 1} more' if len(unused) > 1 else ''} took no part in the loss, and several "
                "processes train only what takes part in every step",
                hint="leave the parameter out of the module, freeze it, or train with one process",
            )

    def whole(self) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self, state: TrainingState) -> TrainingState:
        return state


class Sharded:
    """Weights, gradients, averages and moments split among the ranks (FSDP2, `fully_shard`); a stage of the UNet is gathered when
    its turn comes. The model that was handed in stays on the CPU until the end.

    The autoencoder, which is frozen, is whole on every rank; conditioners and the UNet's stem are gathered for a whole step.

    Raises PluginError for a model that cannot be copied.
    """

    def __init__(self, model: LatentDiffusion, runtime: Runtime) -> None:
        self._plain, self._device = model.to("cpu"), runtime.device
        self.model = _sharded(_copied(model), runtime)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        result: Loss = self.model(batch, draws)
        return result

    def collecting(self, *, last: bool) -> AbstractContextManager[object]:
        return nullcontext()  # the parts' gradients are added up in shards: memory is what sharding is for

    @contextmanager
    def whole(self) -> Iterator[None]:
        self._gather()
        self._plain.to(self._device)
        yield
        self._plain.to("cpu")

    def finish(self, state: TrainingState) -> TrainingState:
        self._gather()
        self._plain.to(self._device)
        if (split := state.ema) is None:
            return replace(state, modules={}, optimizers={}, post_hoc=None)
        parameters = dict(self._plain.named_parameters())
        ema = EMA({name: parameters[name] for name in split.live}, decay=split.decay)
        ema.load({name: gathered(value).cpu() for name, value in split.tensors().items()}, updates=split.updates)
        return replace(state, modules={}, optimizers={}, ema=ema, post_hoc=None)

    @torch.no_grad()
    def _gather(self) -> None:
        own = self._plain.state_dict()
        for name, value in self.model.state_dict().items():
            own[name].copy_(gathered(value))


def _copied(model: LatentDiffusion) -> LatentDiffusion:
    """With weights of its own; what is no module (samplers, where they came from) is shared."""
    shared = {id(value): value for name, value in vars(model).items() if not name.startswith("_")}
    try:
        return copy.deepcopy(model, shared)
    except TypeError as error:
        raise PluginError(
            f"the model cannot be copied, as shards need it: {error}",
            hint="a conditioner keeps what cannot be copied as an attribute; or train with `runtime.distributed: ddp`",
        ) from error


def _sharded(model: LatentDiffusion, runtime: Runtime) -> LatentDiffusion:
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(runtime.device.type, (get_world_size(),))
    model.autoencoder.to(runtime.device)
    for parameter in model.denoiser.parameters():
        parameter.data = parameter.data.contiguous()  # shards have no memory format
    for stage in model.denoiser.blocks():
        if runtime.compile:
            stage.compile()
        fully_shard(stage, mesh=mesh, reshard_after_forward=True)
    # Sharded again after every forward pass, the root too: what is written into the shards in between is what the next one reads.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=set(model.autoencoder.parameters()))
    return model
