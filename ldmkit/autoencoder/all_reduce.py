"""What a training step sums over all processes that share a batch, so that their number changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def several() -> bool:
    """Whether this process shares its batches with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(tensor: Tensor) -> Tensor:
    """The sum over all ranks of a tensor of one shape."""
    if not several():
        return tensor
    summed = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def mean(tensor: Tensor) -> Tensor:
    """The mean over all ranks of a tensor of one shape."""
    return total(tensor) / dist.get_world_size() if several() else tensor


def joined(rows: Tensor) -> Tensor:
    """All ranks' rows (n, c), n the same on each, one rank after the other: the rows of the whole batch, in its order."""
    if not several():
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
