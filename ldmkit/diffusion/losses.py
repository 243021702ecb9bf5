"""How far an output is from its target: l2, l1, Huber."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Above


class Distance(ABC):
    """Two tensors (b, ...) -> their distance, element by element."""

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def config(self) -> str | dict[str, Any]:
        """What a recipe says for it."""


class L2(Distance):
    """The squared difference."""

    config = "l2"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target) ** 2


class L1(Distance):
    """The absolute difference."""

    config = "l1"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()


class Huber(Distance):
    """Half the squared difference below `delta`, `delta` (|difference| - `delta` / 2) above.

    Raises UsageError where delta is not above 0.
    """

    def __init__(self, *, delta: Above = 1.0) -> None:
        if not delta > 0:
            raise UsageError(f"a Huber loss with delta {delta:g}: delta is above 0")
        self.delta = delta

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output, target, reduction="none", delta=self.delta)

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "huber", "delta": self.delta}


DISTANCES: dict[str, type[Distance]] = {"l2": L2, "l1": L1, "huber": Huber}
