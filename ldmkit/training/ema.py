"""The exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ldmkit.errors import CheckpointError
from ldmkit.training.parallel.shards import is_split, placed, swap


class EMA:
    """An average of named parameters, ``e <- e + (1 - d_n) (p - e)`` with ``d_n = min(decay, (1 + n) / (10 + n))``.

    The warm-up is that of the released code (`LitEma`), n counted from 1. All parameters are moved by one `foreach` call.

    Args:
        parameters: name -> parameter; those that are trained, conditioners included.
        decay: the largest decay, in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = dict(parameters)
        self._average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._average:
            live = [p.detach() for p in self.live.values()]
            torch._foreach_lerp_(list(self._average.values()), live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def copy_to_parameters(self) -> None:
        """The parameters become the average, for good."""
        for name, parameter in self.live.items():
            parameter.data.copy_(self._average[name])

    def _swap(self) -> None:
        for name, parameter in self.live.items():
            average = self._average[name]
            if is_split(parameter):
                swap(parameter, average)
            else:
                self._average[name], parameter.data = parameter.data, average

    def tensors(self) -> dict[str, Tensor]:
        """The average, name -> tensor."""
        return dict(self._average)

    def load(self, tensors: Mapping[str, Tensor], *, updates: int) -> None:
        """Goes on from a saved average.

        Raises:
            CheckpointError: other names or shapes than the parameters have.
        """
        different = set(tensors) ^ set(self._average)
        different |= {n for n in set(tensors) & set(self._average) if tensors[n].shape != self._average[n].shape}
        if different:
            raise CheckpointError(
                f"the saved average does not fit the model in {len(different)} tensors, {sorted(different)[0]} first"
            )
        for name, value in tensors.items():
            self._average[name].copy_(placed(value, self._average[name]))
        self.updates = updates


@contextmanager
def averaged(module: nn.Module, ema: EMA | None) -> Iterator[None]:
    """Inside, the module is in eval mode and has its average weights, if there are any."""
    module.eval()
    with nullcontext() if ema is None else ema.applied():
        yield
