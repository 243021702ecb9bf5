"""Tensors that are split among the ranks (`DTensor`, as FSDP2 makes them): whole again for a checkpoint, and split after one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from ldmkit.training.parallel.ranks import Ranks


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part of a tensor of any shape."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor  # two seconds, for those who train in shards

    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of any shape, on each rank; all ranks call this in the same order.

    One that is not split stays as it is.
    """
    if not is_split(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, of any shape, which every rank has, where `like` is: on its device, and split as it is split."""
    if not is_split(like):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def on_first(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """All of them whole, on the first rank; the others take part, and keep nothing."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = gathered(tensor.detach()).cpu() if is_split(tensor) else tensor
        if ranks.first:
            found[name] = value
    return found


@torch.no_grad()
def swap(one: Tensor, other: Tensor) -> None:
    """Exchanges the contents of two tensors of one shape, split alike; FSDP knows its parameters by their memory."""
    kept = one.detach().clone()
    one.detach().copy_(other)
    other.copy_(kept)
