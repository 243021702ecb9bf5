"""A condition that comes already encoded: what stands in for a modality that no installed plugin knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors, pad_stack
from ldmkit.errors import RecipeError, UsageError

NAME = "given"


class PrecomputedConditioner(Conditioner):
    """What the UNet reads, handed over as it is: no network of its own.

    Args:
        tokens, length: width of cross-attention tokens, and the most of them; a value is (1 to length, tokens).
        vector: width of a vector; a value is (vector,).
        concat: channels on the latent grid; a value is (concat, h, w), resized to the grid.

    With several ports a value is a mapping port -> tensor. The null is zeros, for tokens one of them: attention to any number
    of equal tokens gives the same. Raises RecipeError for `tokens` without `length`, the reverse, or no port at all.
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

    def collate(self, prepared: list[Tensors]) -> Tensors:
        """Stacked; tokens of unlike number are padded, and masked."""
        out = {name: torch.stack([row[name] for row in prepared]) for name in self.ports if name != "tokens"}
        if "tokens" in self.ports:
            out["tokens"], mask = pad_stack([row["tokens"] for row in prepared])
            if not bool(mask.all()):  # rows of one length need none
                out["mask"] = mask
        return out

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The tensors; concat on the grid."""
        concat = prepared.get("concat")
        if concat is not None and concat.shape[-2:] != canvas.grid:
            concat = F.interpolate(concat, canvas.grid, mode="bilinear", antialias=True)
        parts = {"tokens": prepared.get("tokens"), "vector": prepared.get("vector"), "concat": concat}
        return Conditioning(
            **{port: None if part is None else part.to(canvas.dtype) for port, part in parts.items()},
            mask=prepared.get("mask"),
        )

    def null(self, canvas: Canvas) -> Conditioning:
        """Zeros."""
        emits = self.emits
        return Conditioning(
            tokens=canvas.zeros(1, 1, emits.tokens) if emits.tokens else None,
            vector=canvas.zeros(1, emits.vector) if emits.vector else None,
            concat=canvas.zeros(1, emits.concat, *canvas.grid) if emits.concat else None,
        )

    def _checked(self, port: str, value: Tensor) -> Tensor:
        emits = self.emits
        fits = {
            "tokens": value.ndim == 2 and 0 < value.shape[0] <= emits.length and value.shape[1] == emits.tokens,
            "vector": value.shape == (emits.vector,),
            "concat": value.ndim == 3 and value.shape[0] == emits.concat,
        }
        if not fits[port]:
            wanted = {
                "tokens": f"(1 to {emits.length}, {emits.tokens})",
                "vector": f"({emits.vector},)",
                "concat": f"({emits.concat}, h, w)",
            }
            raise UsageError(f"{port} is {tuple(value.shape)}; one row is {wanted[port]}")
        return value
