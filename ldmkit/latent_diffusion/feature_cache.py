"""Feature caching while sampling: most evaluations take a denoiser's inner blocks from an earlier one (DeepCache).

From one noise level to the next, what the deep blocks compute changes little, and what the shallow ones compute changes much
(Ma et al. 2023, arXiv 2312.00858). It is an approximation: faster, and not the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The inner blocks run in every `every`-th evaluation of the denoiser; `depth` blocks at either end run in each.

    every: 1 caches nothing. depth: 1 is the paper's, the shallowest skip connection of a UNet.
    """

    every: int = 3
    depth: int = 1

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("depth", self.depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"cache: {name} is {value!r}; it is a whole number from 1 up")

    @classmethod
    def of(cls, given: FeatureCache | Mapping[str, Any] | int | None) -> FeatureCache | None:
        """What a recipe or a call says; a number is `every`. Raises UsageError for what is neither."""
        if given is None or isinstance(given, cls):
            return given
        options = given if isinstance(given, Mapping) else {"every": given}
        if unknown := sorted(options.keys() - {"every", "depth"}):
            raise UsageError(
                f"cache has no option {unknown[0]!r}", hint="it has every and depth, for example {every: 3}"
            )
        return cls(**options)

    @contextmanager
    def applied(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, the inner ones of `blocks` (a denoiser's, in the order in which they run) run in some evaluations only.

        An evaluation of another batch size or grid than the last full one is full, and so is one with gradients.
        Raises UsageError where the blocks are too few for two ends and something between.
        """
        inner = list(blocks)[self.depth : len(blocks) - self.depth]
        if len(inner) < 2 and self.every > 1:
            raise UsageError(
                f"cache: depth is {self.depth}, and a denoiser of {len(blocks)} blocks has {max(len(inner), 0)} between its ends",
                hint=f"take a depth up to {max((len(blocks) - 2) // 2, 0)}, or leave the cache out",
            )
        if self.every == 1:
            yield
            return
        turns = _Turns(self.every)
        for index, block in enumerate(inner):
            block.forward = turns.around(block, first=index == 0, last=block is inner[-1])
        try:
            yield
        finally:
            for block in inner:
                del block.forward  # the class's own is seen again


class _Turns:
    """Which evaluations are full, and what they left."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.since = 0  # evaluations since the last full one
        self.shape: torch.Size | None = None  # of what entered its inner blocks
        self.full = True
        self.kept: dict[nn.Module, Tensor] = {}

    def around(self, block: nn.Module, *, first: bool, last: bool) -> Callable[..., Tensor]:
        """A `forward` for `block` that computes in full evaluations, and returns what it returned then in the others."""
        compute = block.forward

        def forward(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            if first:
                self._begin(x)
            if not self.full:
                return self.kept[block]
            result: Tensor = compute(x, *rest, **named)
            # Of the blocks before the last only the shape is needed: skip connections from them lead to blocks that do not run.
            self.kept[block] = result if last else result.new_zeros(()).expand(result.shape)
            return result

        return forward

    def _begin(self, x: Tensor) -> None:
        self.since += 1
        self.full = torch.is_grad_enabled() or x.shape != self.shape or self.since >= self.every
        if self.full:
            self.since, self.shape = 0, x.shape
