"""A condition that comes already encoded: what stands in for a modality that no installed plugin knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.errors import RecipeError, UsageError

NAME = "given"


class GivenConditioner(Conditioner):
    """What the UNet reads, handed over as it is: no network of its own.

    Args:
        tokens, length: width and number of cross-attention tokens; a value is (length, tokens).
        vector: width of a vector; a value is (vector,).
        concat: channels on the latent grid; a value is (concat, h, w), resized to the grid.

    With several ports a value is a mapping port -> tensor. The null is zeros.
    """

    reads = ("value",)

    def __init__(self, *, tokens: int = 0, length: int = 0, vector: int = 0, concat: int = 0) -> None:
        super().__init__()
        if bool(tokens) != bool(length):
            raise RecipeError(f"tokens is {tokens} and length is {length}; give both, or neither")
        self.emits = Ports(tokens=tokens, vector=vector, concat=concat, length=length)
        self.ports = tuple(name for name in ("tokens", "vector", "concat") if getattr(self.emits, name))
        if not self.ports:
            raise RecipeError("no port is given", hint="give tokens and length, vector, or concat")

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{port: tensor}, each of one row; raises `UsageError` for another shape."""
        value = sample["value"]
        if not isinstance(value, Mapping):
            if len(self.ports) > 1:
                raise UsageError(f"a mapping of {', '.join(self.ports)} to tensors is needed")
            value = {self.ports[0]: value}
        if set(value) != set(self.ports):
            raise UsageError(f"given are {', '.join(value) or 'none'}; needed are {', '.join(self.ports)}")
        return {port: self._checked(port, torch.as_tensor(value[port]).float()) for port in self.ports}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A tensor or an array, or a mapping port -> tensor."""
        return self.prepare({"value": value})

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The tensors; concat on the grid."""
        concat = prepared.get("concat")
        if concat is not None and concat.shape[-2:] != canvas.grid:
            concat = F.interpolate(concat, canvas.grid, mode="bilinear", antialias=True)
        parts = {"tokens": prepared.get("tokens"), "vector": prepared.get("vector"), "concat": concat}
        return Conditioning(**{port: None if part is None else part.to(canvas.dtype) for port, part in parts.items()})

    def null(self, canvas: Canvas) -> Conditioning:
        """Zeros."""
        emits = self.emits
        return Conditioning(
            tokens=canvas.zeros(1, emits.length, emits.tokens) if emits.tokens else None,
            vector=canvas.zeros(1, emits.vector) if emits.vector else None,
            concat=canvas.zeros(1, emits.concat, *canvas.grid) if emits.concat else None,
        )

    def _checked(self, port: str, value: Tensor) -> Tensor:
        emits = self.emits
        fits = {
            "tokens": value.shape == (emits.length, emits.tokens),
            "vector": value.shape == (emits.vector,),
            "concat": value.ndim == 3 and value.shape[0] == emits.concat,
        }
        if not fits[port]:
            wanted = {
                "tokens": f"({emits.length}, {emits.tokens})",
                "vector": f"({emits.vector},)",
                "concat": f"({emits.concat}, h, w)",
            }
            raise UsageError(f"{port} is {tuple(value.shape)}; one row is {wanted[port]}")
        return value
