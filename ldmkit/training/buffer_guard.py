"""Statistics that a forward pass keeps: those of a batch norm, running averages. One bad batch must not spoil them for ever."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LARGEST = 2**20  # numbers; statistics are small, and what is larger is a table that nobody averages


class Running:
    """The float buffers of `modules` as they were after the last step.

    Where a gradient is not finite the update is left out, but the forward pass before it has moved the statistics already, and an
    average never loses a nan again.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # By place, for a module may put another tensor there. A batch norm's kernel leaves no trace in a tensor's version.
        self._copies: dict[tuple[nn.Module, str], Tensor] = {
            (owner, name): value.detach().clone()
            for module in modules
            for owner in module.modules()
            for name, value in owner.named_buffers(recurse=False)
            if value.is_floating_point() and value.numel() <= LARGEST
        }

    @torch.no_grad()
    def keep(self) -> None:
        """Takes a copy of those that training moves."""
        for (owner, name), copy in self._copies.items():
            value = owner._buffers.get(name)
            if value is None or not owner.training:
                continue
            if value.shape == copy.shape:
                copy.copy_(value)
            else:
                self._copies[owner, name] = value.detach().clone()

    @torch.no_grad()
    def mend_on_the_device(self) -> None:
        """The same as `mend`, without waiting to know whether anything is spoilt."""
        for (owner, name), copy in self._copies.items():
            value = owner._buffers.get(name)
            if value is not None and value.shape == copy.shape:
                value.copy_(torch.where(torch.isfinite(value).all(), value, copy))

    @torch.no_grad()
    def mend(self) -> None:
        """Where a buffer is no longer finite, puts the copy in its place."""
        for (owner, name), copy in self._copies.items():
            value = owner._buffers.get(name)
            if value is not None and not bool(torch.isfinite(value).all()):
                value.copy_(copy)
