"""The extra terms of one stage together: weighted, switched off after a step, their features read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldmkit.denoiser import Denoiser
from ldmkit.errors import PluginError
from ldmkit.losses.base import AutoencoderPass, DiffusionPass, DiffusionTerm, Loss

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One term in a recipe: what it is multiplied with, and the step from which on it is left out (None: never)."""

    term: Loss
    weight: float = 1.0
    until: int | None = None


class ExtraLosses(nn.Module):
    """Terms by name. `step` (optimizer steps done), `seed` (the run's) and `average` (`DiffusionPass.average`) are set by the
    training loop."""

    def __init__(self, parts: Mapping[str, Part] | None = None) -> None:
        super().__init__()
        self.parts: dict[str, Part] = dict(parts or {})
        self.terms = nn.ModuleDict({name: part.term for name, part in self.parts.items()})
        self.step, self.seed = 0, 0
        self.average: Callable[[], AbstractContextManager[None]] | None = None
        for term in self._terms():
            for name in term.frozen:
                term.get_submodule(name).requires_grad_(False)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what is frozen."""
        super().train(mode)
        for term in self._terms():
            for name in term.frozen:
                term.get_submodule(name).eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that the stage's optimizer moves."""
        return {f"losses.{name}": p for name, p in self.terms.named_parameters() if p.requires_grad}

    def active(self, name: str) -> bool:
        """Whether the term is on at the present step."""
        until = self.parts[name].until
        return until is None or self.step < until

    @contextmanager
    def reading(self, denoiser: Denoiser) -> Iterator[Parts]:
        """Inside, a forward pass of the denoiser leaves the features that the terms ask for."""
        terms = [self._term(name) for name in self.parts if self.active(name)]
        layers = {layer for term in terms if isinstance(term, DiffusionTerm) for layer in term.layers}
        with layer_features(denoiser, layers) as found:
            yield found

    def of_autoencoder(self, given: AutoencoderPass) -> tuple[Tensor, Parts]:
        """What is added to the mean loss (), and each term, unweighted and detached."""
        return self._summed(given, ())

    def of_diffusion(self, given: DiffusionPass) -> tuple[Tensor, Parts]:
        """What is added to the loss of each row (b,), and the mean of each term, unweighted and detached."""
        return self._summed(given, (len(given.batch),))

    def _summed(self, given: Any, shape: tuple[int, ...]) -> tuple[Tensor, Parts]:
        total: Tensor | None = None
        parts: Parts = {}
        for name, part in self.parts.items():
            if self.active(name):
                value: Any = part.term(replace(given, name=name, seed=self.seed, step=self.step))
                _check(name, part.term, value, shape)
                parts[f"losses/{name}"] = value.detach().mean()
                value = part.weight * value
            else:  # its parameters take part in every step, as several processes need it
                value = sum((p.sum() * 0.0 for p in part.term.parameters() if p.requires_grad), start=0.0)
            total = value if total is None else total + value
        if not isinstance(total, Tensor):
            total = torch.zeros(shape, device=given.positions.device)
        return total, parts

    def _term(self, name: str) -> Loss:
        return self.parts[name].term

    def _terms(self) -> list[Loss]:
        return [part.term for part in self.parts.values()]


@contextmanager
def layer_features(denoiser: Denoiser, layers: Iterable[str]) -> Iterator[Parts]:
    """Inside, a forward pass of the denoiser leaves the outputs of `layers` by their names. Raises UsageError."""
    found: Parts = {}
    hooks = [denoiser.layer(name).register_forward_hook(partial(_kept, found, name)) for name in sorted(set(layers))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _kept(found: Parts, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    found[name] = output


def _check(name: str, term: Loss, value: object, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        wanted = "a scalar" if not shape else f"one number a row, of shape {shape}"
        raise PluginError(f"the loss {name} ({type(term).__name__}) gave {got}; expected {wanted}")
