"""Optimizers, learning rates, and their state as plain tensors."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldmkit.errors import CheckpointError, ResourceError
from ldmkit.training.parallel.shards import gathered, is_split, placed

if TYPE_CHECKING:
    from ldmkit.recipe import Train

Decay = Literal["constant", "linear", "cosine"]
Kind = Literal["adamw", "adam", "adamw-8bit"]
# Where the optimizers of torch and those of bitsandbytes keep their two moments, each of the parameter's shape.
PLAIN, STATE1 = ("exp_avg", "exp_avg_sq"), ("state1", "state2")
MOMENTS = (*PLAIN, *STATE1)


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


def cycle_factor(
    step: int,
    *,
    cosine: bool,
    warmup: Sequence[int],
    start: Sequence[float],
    high: Sequence[float],
    low: Sequence[float],
    length: Sequence[int],
) -> float:
    """The released code's schedules (`LambdaLinearScheduler`, `LambdaWarmUpCosineScheduler` and the latter's cycles).

    Each sequence has one number a cycle. A step on the border of two cycles belongs to the earlier one, as there; after the last
    cycle its end is held (the released code has a value there for one cosine only).
    """
    ends = list(accumulate(length))
    cycle = next((index for index, end in enumerate(ends) if step <= end), len(ends) - 1)
    n = min(step, ends[cycle]) - (ends[cycle] - length[cycle])
    if n < warmup[cycle]:
        return start[cycle] + (high[cycle] - start[cycle]) * n / warmup[cycle]
    if cosine:
        gone = min((n - warmup[cycle]) / max(length[cycle] - warmup[cycle], 1), 1.0)
        return low[cycle] + 0.5 * (high[cycle] - low[cycle]) * (1.0 + math.cos(math.pi * gone))
    return low[cycle] + (high[cycle] - low[cycle]) * (length[cycle] - n) / length[cycle]


def schedule_of(settings: Train) -> Callable[[int], float]:
    """Step -> factor of the learning rate, as a recipe's `train` section says."""
    own = settings.lr_schedule
    if own is None:
        return partial(rate_factor, steps=settings.steps, warmup=settings.warmup, decay=settings.decay)
    given = own.model_dump(exclude={"type"})
    lists = {key: value if isinstance(value, tuple) else (value,) for key, value in given.items()}
    cycles = max(len(value) for value in lists.values())
    full: dict[str, Any] = {key: value if len(value) == cycles else value * cycles for key, value in lists.items()}
    return partial(cycle_factor, cosine=own.type == "lambda-cosine", **full)


class Optimization:
    """An Adam over groups of named parameters, with its learning-rate schedule; fused, where torch has it.

    Args:
        groups: the parameters; one without any is left out.
        lr: the stage's learning rate.
        betas: of Adam.
        weight_decay: of AdamW (decoupled, Loshchilov & Hutter 2017); None means plain Adam.
        steps, warmup, decay: see `rate_factor`.
        optimizer: ``adamw``, ``adam``, or ``adamw-8bit``, whose moments take 8 bits a value (Dettmers et al. 2021).
        schedule: step -> factor of the learning rate, in place of `rate_factor`.

    Raises:
        ResourceError: an 8-bit optimizer without `bitsandbytes`, or on a CPU.
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
        optimizer: Kind = "adamw",
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.schedule = schedule or partial(rate_factor, steps=steps, warmup=warmup, decay=decay)
        self._rates = [lr if g.lr is None else g.lr for g in self.groups]
        self._names: dict[Tensor, str] = {p: name for g in self.groups for name, p in g.parameters.items()}
        arguments = [_arguments(group, self._rates[i], weight_decay) for i, group in enumerate(self.groups)]
        self._moments = STATE1 if optimizer == "adamw-8bit" else PLAIN
        make = _maker(optimizer if weight_decay is not None or optimizer != "adamw" else "adam", list(self._names))
        self.optimizer: Optimizer = make(arguments, lr=lr, betas=betas)

    @classmethod
    def of(cls, groups: Sequence[Group], settings: Train) -> Self:
        """The optimizer that a recipe's `train` section describes; `scale_lr` is for the groups' own learning rates too."""
        scale = settings.rate / settings.lr
        return cls(
            [replace(group, lr=None if group.lr is None else group.lr * scale) for group in groups],
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            steps=settings.steps,
            optimizer=settings.optimizer,
            schedule=schedule_of(settings),
        )

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
        factor = self.schedule(step)
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
        norm = gathered(torch.nn.utils.get_total_norm(self.gradients))
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        return norm

    @property
    def gradients(self) -> list[Tensor]:
        """Those that are there now, in group order."""
        return [p.grad for p in self._names if p.grad is not None]

    @property
    def decides_on_the_device(self) -> bool:
        """Whether `step` can leave an update out without anybody waiting for the device: torch's fused optimizers can."""
        return bool(self.groups) and all(group.get("fused") for group in self.optimizer.param_groups)

    def step(self, good: Tensor | None = None) -> None:
        """One update; where `good` () is False the weights and moments stay, which `decides_on_the_device` alone takes."""
        if good is None:
            self.optimizer.step()
            return
        # What torch's own loss scaler hands to a fused optimizer.
        self.optimizer.found_inf = (~good).to(torch.float32)  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

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
        states: dict[Tensor, dict[str, Any]] = {}
        for full, value in tensors.items():
            name, key = full.rsplit(":", 1)
            if name not in parameters or (key in MOMENTS and value.shape != parameters[name].shape):
                raise CheckpointError(f"the optimizer's state of {name} does not fit the model")
            parameter = parameters[name]
            if key in MOMENTS and key not in self._moments:
                raise CheckpointError(
                    f"the optimizer's state of {name} ({key}) is another optimizer's",
                    hint="go on with the `train.optimizer` that the run was started with",
                )
            # The fused optimizers keep `step` beside the parameter; moments have the parameter's own dtype.
            moved = placed(value, parameter) if key in MOMENTS else value.to(parameter.device)
            states.setdefault(parameter, {})[key] = _laid_out(moved, parameter) if key in MOMENTS else moved.clone()
        if self._moments is STATE1:  # which counts its steps in Python's numbers
            states = {p: {**state, "step": int(state["step"])} for p, state in states.items()}
        self.optimizer.state.clear()
        self.optimizer.state.update(states)


def _laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """A copy that lies in memory as the parameter does: the fused optimizers read both from end to end."""
    if is_split(moment):
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype, requires_grad=False).copy_(moment)


def _arguments(group: Group, lr: float, weight_decay: float | None) -> dict[str, object]:
    own = group.weight_decay if group.weight_decay is not None else weight_decay
    return {"params": list(group.parameters.values()), "lr": lr, "weight_decay": own or 0.0}


def _maker(kind: Kind, parameters: Sequence[Tensor]) -> Callable[..., Optimizer]:
    if kind == "adamw-8bit":
        return _eight_bit(parameters)
    return partial(Adam if kind == "adam" else AdamW, fused=_can_fuse(parameters))


def _eight_bit(parameters: Sequence[Tensor]) -> Callable[..., Optimizer]:
    try:
        library = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ResourceError(
            f"train.optimizer is adamw-8bit, which bitsandbytes has, and that cannot be loaded: {error}",
            hint="pip install bitsandbytes, or take adamw",
        ) from error
    if any(is_split(parameter) for parameter in parameters):
        raise ResourceError(
            "train.optimizer is adamw-8bit, whose moments cannot be split as `runtime.distributed: fsdp` splits the weights",
            hint="take adamw, or `distributed: ddp`",
        )
    if any(parameter.device.type == "cpu" for parameter in parameters):
        raise ResourceError("train.optimizer is adamw-8bit, which runs on a GPU only", hint="take adamw here")
    found: Callable[..., Optimizer] = library.optim.AdamW8bit
    return found


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in parameters)
