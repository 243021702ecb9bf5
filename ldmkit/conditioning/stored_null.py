"""A slot whose plugin is not here: its null, as the checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ldmkit.conditioning.conditioner import Conditioner
from ldmkit.conditioning.types import Canvas, Conditioning, Ports, Tensors
from ldmkit.errors import UsageError


class StoredNull(Conditioner):
    """Stands in for a conditioner when a model is loaded `without` it: always null, and no value can be given.

    Args:
        slot: the slot's name.
        tensors: port (and ``mask``) -> the null's one row; concat on the training grid.
        weights: the conditioner's own, which nothing here uses: kept so that the model is whole when it is saved.
    """

    reads = ()

    def __init__(
        self, *, slot: str, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.slot, self.ports, self.weights = slot, tuple(tensors), dict(weights or {})
        widths = {port: value.shape[2 if port == "tokens" else 1] for port, value in tensors.items() if port != "mask"}
        length = tensors["tokens"].shape[1] if "tokens" in tensors else 0
        self.emits = Ports(**widths, length=length)
        for port, value in tensors.items():
            self.register_buffer(f"null_{port}", value, persistent=False)

    def prepare(self, sample: Mapping[str, Any], generator: Any = None) -> Tensors:
        """Raises `UsageError`."""
        raise self._refusal()

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """Raises `UsageError`."""
        raise self._refusal()

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """Raises `UsageError`."""
        raise self._refusal()

    def null(self, canvas: Canvas) -> Conditioning:
        """The stored null; concat is resized to the canvas' grid, bilinearly."""
        stored = {port: self.get_buffer(f"null_{port}").to(canvas.device) for port in self.ports}
        given = {port: value if port == "mask" else value.to(canvas.dtype) for port, value in stored.items()}
        if (concat := given.get("concat")) is not None and concat.shape[2:] != canvas.grid:
            given["concat"] = F.interpolate(concat, canvas.grid, mode="bilinear")
        return Conditioning(**given)

    def _refusal(self) -> UsageError:
        return UsageError(
            f"the model was loaded without slot {self.slot}: it is always null here",
            hint="give no value for it, or install its plugin and load the whole model",
        )
