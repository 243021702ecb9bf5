"""Optimizers by name: parameter groups -> a torch optimizer. The core's three register like anybody's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldmkit.errors import ResourceError
from ldmkit.training.parallel.shards import is_split


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        parameters: name -> parameter, of any shape; names are those of the checkpoint (`denoiser.time_embed.0.weight`).
        modules: name -> the module that the parameter is an attribute of: a convolution, an embedding, a norm.
        lr: the learning rate before any schedule.
        weight_decay: 0 is none.
    """

    parameters: Mapping[str, nn.Parameter]
    modules: Mapping[str, nn.Module]
    lr: float
    weight_decay: float

    def argument(self) -> dict[str, Any]:
        """The group as torch's optimizers take it."""
        return {"params": list(self.parameters.values()), "lr": self.lr, "weight_decay": self.weight_decay}


# What `ldmkit_register_optimizers` registers: `(groups, *, <options>)`, and `betas` where it takes `train.betas`. Each parameter
# group of what it returns has a `lr`, which the learning-rate schedule multiplies; a group may be split. Its `state` holds
# tensors and numbers by parameter, which is what checkpoints save.
MakesOptimizer = Callable[..., Optimizer]


def adamw(groups: Sequence[ParameterGroup], *, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2017); fused, where torch has it."""
    return _fused(AdamW, groups, betas)


def adam(groups: Sequence[ParameterGroup], *, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    """Adam (Kingma & Ba 2014), without weight decay; fused, where torch has it."""
    return _fused(Adam, groups, betas)


def adamw_8bit(groups: Sequence[ParameterGroup], *, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    """AdamW whose moments take 8 bits a value (Dettmers et al. 2021), of bitsandbytes.

    Raises:
        ResourceError: without `bitsandbytes`, on a CPU, or for weights that are split among ranks.
    """
    make = _eight_bit(list(_all(groups)))
    made: Optimizer = make([group.argument() for group in groups], lr=groups[0].lr, betas=betas)
    return made


def _fused(kind: type[Adam], groups: Sequence[ParameterGroup], betas: tuple[float, float]) -> Optimizer:
    make = partial(kind, fused=_can_fuse(_all(groups)))
    return make([group.argument() for group in groups], lr=groups[0].lr if groups else 1e-3, betas=betas)


def _all(groups: Sequence[ParameterGroup]) -> Iterable[Tensor]:
    return (parameter for group in groups for parameter in group.parameters.values())


def _eight_bit(parameters: Sequence[Tensor]) -> Any:
    try:
        library = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ResourceError(
            f"train.optimizer is adamw-8bit, which bitsandbytes has, and that cannot be loaded: {error}",
            hint="pip install bitsandbytes, or take adamw",
        ) from error
    if any(is_split(parameter) for parameter in parameters):
        raise ResourceError(
            "train.optimizer is adamw-8bit, whose moments cannot be split as `runtime.distributed: fsdp` splits the weights",
            hint="take adamw, or `distributed: ddp`",
        )
    if any(parameter.device.type == "cpu" for parameter in parameters):
        raise ResourceError("train.optimizer is adamw-8bit, which runs on a GPU only", hint="take adamw here")
    return library.optim.AdamW8bit


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in parameters)


MAKERS: dict[str, MakesOptimizer] = {"adamw": adamw, "adam": adam, "adamw-8bit": adamw_8bit}
