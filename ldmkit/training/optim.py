"""Optimizers, learning rates, and their state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldmkit.errors import CheckpointError

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate.

    `lr` and `weight_decay` None take the stage's; before optimizer step `starts` the group stands still.
    """

    parameters: Mapping[str, nn.Parameter]
    lr: float | None = None
    weight_decay: float | None = None
    starts: int = 0


def rate_factor(step: int, *, steps: int, warmup: int = 0, decay: Decay = "constant") -> float:
    """What the learning rate is multiplied with at `step` in [0, steps): a linear rise over `warmup` steps, then `decay` to 0."""
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    gone = (step - warmup) / max(steps - warmup, 1)
    if decay == "linear":
        return 1.0 - gone
    return 0.5 * (1.0 + math.cos(math.pi * gone))


class Optimization:
    """A fused Adam or AdamW over groups of named parameters, with its learning-rate schedule.

    Args:
        groups: the parameters; one without any is left out.
        lr: the stage's learning rate.
        betas: of Adam.
        weight_decay: of AdamW (decoupled, Loshchilov & Hutter 2017); None means plain Adam.
        steps, warmup, decay: see `rate_factor`.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        lr: float,
        steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float | None = 0.01,
        warmup: int = 0,
        decay: Decay = "constant",
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.steps, self.warmup, self.decay = steps, warmup, decay
        self._rates = [lr if g.lr is None else g.lr for g in self.groups]
        self._names: dict[Tensor, str] = {p: name for g in self.groups for name, p in g.parameters.items()}
        arguments = [_arguments(group, self._rates[i], weight_decay) for i, group in enumerate(self.groups)]
        kind = Adam if weight_decay is None else AdamW
        self.optimizer: Optimizer = kind(arguments, lr=lr, betas=betas, fused=_can_fuse(self._names))

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in group order."""
        return list(self._names)

    @property
    def rate(self) -> float:
        """The first group's learning rate now."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.groups else 0.0

    def begin(self, step: int) -> None:
        """Sets the learning rates of `step` and clears the gradients."""
        factor = rate_factor(step, steps=self.steps, warmup=self.warmup, decay=self.decay)
        for argument, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            argument["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)

    def hold_back(self, step: int) -> None:
        """Drops the gradients of groups that do not move yet: the optimizer skips a parameter without one."""
        for group in self.groups:
            if step < group.starts:
                for parameter in group.parameters.values():
                    parameter.grad = None

    def gradient_norm(self, clip: float | None) -> Tensor:
        """The 2-norm () of all gradients, which are scaled down to `clip` where it is larger. May be inf or nan."""
        gradients = [p.grad for p in self._names if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        return norm

    def step(self) -> None:
        """One update."""
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as ``NAME:exp_avg`` and the like; parameters that never moved have none."""
        return {
            f"{self._names[parameter]}:{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from saved `tensors`.

        Raises:
            CheckpointError: a parameter's name or shape differs.
        """
        parameters = {name: p for p, name in self._names.items()}
        states: dict[Tensor, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            name, key = full.rsplit(":", 1)
            if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
                raise CheckpointError(f"the optimizer's state of {name} does not fit the model")
            parameter = parameters[name]
            # The fused optimizers keep `step` beside the parameter; moments have the parameter's own dtype.
            states.setdefault(parameter, {})[key] = value.to(parameter.device, copy=True)
        self.optimizer.state.clear()
        self.optimizer.state.update(states)


def _arguments(group: Group, lr: float, weight_decay: float | None) -> dict[str, object]:
    own = group.weight_decay if group.weight_decay is not None else weight_decay
    return {"params": list(group.parameters.values()), "lr": lr, "weight_decay": own or 0.0}


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in parameters)
