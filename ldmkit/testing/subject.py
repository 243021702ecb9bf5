"""What is examined, and how it is asked: every failure becomes a `ContractError` that a plugin's author can act on."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, LatentSpec, Tensors

# The latent space of the kit's canvases; hand it to a constructor that wants a `LatentSpec`.
LATENT = LatentSpec(channels=4, factor=8, size=(64, 64))
PORTS = ("tokens", "vector", "concat")


class ContractError(AssertionError):
    """A conditioner breaks its contract; the message says where, and what to write instead."""


@dataclass
class Subject:
    """A conditioner under examination: a copy, in eval mode, its frozen submodules without gradients as in training."""

    conditioner: Conditioner
    sample: Mapping[str, Any]
    value: Any
    others: Sequence[Mapping[str, Any]]
    sizes: Sequence[tuple[int, int]]
    rows: list[Tensors] = field(default_factory=list)  # prepared, one a sample; filled once `prepare` is known to work

    @property
    def name(self) -> str:
        """The conditioner's class."""
        return type(self.conditioner).__name__

    @property
    def samples(self) -> list[Mapping[str, Any]]:
        """The sample and the others."""
        return [self.sample, *self.others]

    def fail(self, problem: str, remedy: str) -> NoReturn:
        """Raises `ContractError`."""
        raise ContractError(f"{self.name}: {problem}\n  {remedy}")

    def canvas(
        self, size: tuple[int, int], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Canvas:
        """A canvas of `size` pixels on a latent grid 8 times smaller with 4 channels."""
        grid = (size[0] // LATENT.factor, size[1] // LATENT.factor)

        def to_latent(images: Tensor) -> Tensor:
            small = F.interpolate(images.mean(1, keepdim=True), grid, mode="area")
            return small.expand(-1, LATENT.channels, -1, -1).clone()

        return Canvas(size=size, grid=grid, device=torch.device(device), dtype=dtype, to_latent=to_latent)

    def collate(self, rows: Sequence[Tensors]) -> Tensors:
        """A batch of prepared rows, from clones."""
        try:
            return self.conditioner.collate([clone(row) for row in rows])
        except Exception as error:
            shapes = "; ".join(", ".join(f"{k} {tuple(v.shape)}" for k, v in row.items()) for row in rows)
            self.fail(
                f"collate raised {said(error)} on {len(rows)} rows of {shapes}",
                "Samples may differ in size: pad them in `collate` with `ldmkit.conditioning.pad_stack` and use its mask",
            )

    def encode(
        self, rows: Sequence[Tensors], canvas: Canvas, conditioner: Conditioner | None = None, remedy: str | None = None
    ) -> Conditioning:
        """`encode` of a batch made of these rows."""
        batch = {name: value.to(canvas.device) for name, value in self.collate(rows).items()}
        try:
            answer = (conditioner or self.conditioner)(batch, canvas)
        except Exception as error:
            self.fail(
                f"encode raised {said(error)} on {len(rows)} rows and {painted(canvas)}",
                remedy or "It takes whatever batch and canvas come; spatial input is resized to `canvas.grid`",
            )
        return self.answer(answer, "encode")

    def null(self, canvas: Canvas, conditioner: Conditioner | None = None, remedy: str | None = None) -> Conditioning:
        """`null` on a canvas."""
        try:
            answer = (conditioner or self.conditioner)(None, canvas)
        except Exception as error:
            self.fail(
                f"null raised {said(error)} on {painted(canvas)}", remedy or "It takes any canvas, and no input at all"
            )
        return self.answer(answer, "null")

    def answer(self, answer: object, who: str) -> Conditioning:
        """Checks the type alone."""
        if not isinstance(answer, Conditioning):
            self.fail(
                f"{who} returned {type(answer).__name__}",
                "Return `Conditioning(tokens=..., vector=..., concat=...)` with the ports in `emits`",
            )
        return answer


def prepare(
    conditioner: Conditioner, sample: Mapping[str, Any], seed: int | None = 0, *, elsewhere: int = 0
) -> Tensors:
    """`prepare` with a generator of this seed (None: without), while the global generators stand at `elsewhere`."""
    generator = None if seed is None else Generator().manual_seed(seed)
    with global_seed(elsewhere):
        return conditioner.prepare(sample, generator)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python at a seed; as they were afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def duplicate(conditioner: Conditioner) -> Conditioner:
    """A deep copy in eval mode, its frozen submodules without gradients."""
    twin = copy.deepcopy(conditioner).eval()
    for name in twin.frozen:
        twin.get_submodule(name).requires_grad_(False)
    return twin


def clone(tensors: Tensors) -> Tensors:
    """Copies of the tensors."""
    return {name: value.clone() for name, value in tensors.items()}


def ports(answer: Conditioning) -> dict[str, Tensor]:
    """The ports that are there, without the mask."""
    return {name: value for name in PORTS if (value := getattr(answer, name)) is not None}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether tensors of any shape are equal in shape, type and every bit (NaN equals NaN)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if a.is_floating_point() else torch.equal(a, b)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether tensors of any shape are equal but for the rounding of another batch size."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * (1e-3 + float(b.abs().amax()))))


def said(error: BaseException) -> str:
    """An exception in one line."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def painted(canvas: Canvas) -> str:
    """A canvas in words."""
    (height, width), (rows, columns) = canvas.size, canvas.grid
    return f"a canvas of {height} x {width} pixels (latent grid {rows} x {columns}, {str(canvas.dtype)[6:]}, {canvas.device})"
