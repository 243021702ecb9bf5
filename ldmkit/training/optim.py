"""Optimizers, learning rates, and their state as plain tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldmkit.errors import CheckpointError, PluginError
from ldmkit.training.optimizers import MAKERS, MakesOptimizer, ParameterGroup
from ldmkit.training.parallel.shards import gathered, is_split, placed

if TYPE_CHECKING:
    from ldmkit.recipe import Train

Decay = Literal["constant", "linear", "cosine"]
Number = int | float | bool
# Where the optimizers of torch and those of bitsandbytes keep their two moments, each of the parameter's shape.
PLAIN, STATE1 = ("exp_avg", "exp_avg_sq"), ("state1", "state2")
MOMENTS = (*PLAIN, *STATE1)
NUMBERS: dict[str, Callable[[float], Number]] = {"int": int, "float": float, "bool": bool}
MARK = ":type:"  # beside the state of a plugin's optimizer: whose it is


@dataclass(frozen=True)
class Made:
    """An optimizer by name: what makes it, and its options. `MAKERS` has the core's."""

    name: str
    make: MakesOptimizer
    options: Mapping[str, Any] = field(default_factory=dict)


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
    """An optimizer over groups of named parameters, with its learning-rate schedule.

    Args:
        groups: the parameters; one without any is left out.
        lr: the stage's learning rate.
        betas: of those that take them.
        weight_decay: decoupled (Loshchilov & Hutter 2017); None means plain Adam in place of AdamW.
        steps, warmup, decay: see `rate_factor`.
        optimizer: a name of the core's (`MAKERS`), or a plugin's.
        schedule: step -> factor of the learning rate, in place of `rate_factor`.
        modules: parameter's name -> the module that it is an attribute of, for optimizers that tell them apart.

    Raises:
        ResourceError: an optimizer that cannot run here.
        PluginError: a plugin's that left parameters out, or has groups without a learning rate.
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
        optimizer: str | Made = "adamw",
        schedule: Callable[[int], float] | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.schedule = schedule or partial(rate_factor, steps=steps, warmup=warmup, decay=decay)
        self._names: dict[Tensor, str] = {p: name for g in self.groups for name, p in g.parameters.items()}
        name = optimizer if isinstance(optimizer, str) else optimizer.name
        plain = name == "adamw" and weight_decay is None
        made = Made("adam", MAKERS["adam"]) if plain else optimizer
        self.made = Made(made, MAKERS[made]) if isinstance(made, str) else made
        self._moments = STATE1 if name == "adamw-8bit" else PLAIN
        owners = modules or {}
        self.optimizer: Optimizer = _make(
            self.made, [_argument(group, lr, weight_decay, owners) for group in self.groups], betas
        )
        self._check()
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        settings: Train,
        *,
        optimizer: Made | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> Self:
        """The optimizer that a recipe's `train` section describes; `scale_lr` is for the groups' own learning rates too.

        `optimizer` is what the section names, where a plugin has it.
        """
        scale = settings.rate / settings.lr
        return cls(
            [replace(group, lr=None if group.lr is None else group.lr * scale) for group in groups],
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            steps=settings.steps,
            optimizer=optimizer or settings.optimizer.type,
            schedule=schedule_of(settings),
            modules=modules,
        )

    def _check(self) -> None:
        there = [p for group in self.optimizer.param_groups for p in group["params"]]
        missing = (
            [name for p, name in self._names.items() if not any(p is other for other in there)]
            if (len(there) != len(self._names))
            else []
        )
        if missing or len(there) != len(self._names):
            raise PluginError(
                f"the optimizer {self.made.name} has {len(there)} of {len(self._names)} parameters"
                + (f"; {missing[0]} is not among them" if missing else ""),
                hint="put each parameter of `groups` into one parameter group",
            )
        if any("lr" not in group for group in self.optimizer.param_groups):
            raise PluginError(
                f"the optimizer {self.made.name} has a parameter group without `lr`",
                hint="the learning-rate schedule multiplies each group's `lr`",
            )

    @property
    def _core(self) -> bool:
        return MAKERS.get(self.made.name) is self.made.make

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
        found = {}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                number = "" if self._core or isinstance(value, Tensor) else f":{type(value).__name__}"
                found[f"{self._names[parameter]}:{key}{number}"] = (
                    value
                    if isinstance(value, Tensor)
                    else torch.tensor(float(value), dtype=torch.float64 if number else None)
                )
        return found if self._core else {**found, f"{MARK}{self.made.name}": torch.zeros(1)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from saved `tensors`.

        Raises:
            CheckpointError: a parameter's name or shape differs, or the state is another optimizer's.
        """
        written_by = next((name.removeprefix(MARK) for name in tensors if name.startswith(MARK)), None)
        if written_by != (None if self._core else self.made.name):
            raise CheckpointError(
                f"the optimizer's state is {written_by or 'that of one of the core'}'s, and this is {self.made.name}",
                hint=ANOTHERS,
            )
        parameters = {name: p for p, name in self._names.items()}
        states: dict[Tensor, dict[str, Any]] = {}
        for full, value in tensors.items():
            if full.startswith(MARK):
                continue
            name, key, number = (*full.split(":"), "")[:3]
            if name not in parameters or (key in MOMENTS and value.shape != parameters[name].shape):
                raise CheckpointError(f"the optimizer's state of {name} does not fit the model")
            parameter = parameters[name]
            if self._core and key in MOMENTS and key not in self._moments:
                raise CheckpointError(f"the optimizer's state of {name} ({key}) is another optimizer's", hint=ANOTHERS)
            states.setdefault(parameter, {})[key] = (
                NUMBERS[number](float(value)) if number else self._restored(key, value, parameter)
            )
        if self._moments is STATE1:  # which counts its steps in Python's numbers
            states = {p: {**state, "step": int(state["step"])} for p, state in states.items()}
        self.optimizer.state.clear()
        self.optimizer.state.update(states)

    def _restored(self, key: str, value: Tensor, parameter: Tensor) -> Tensor:
        """Moments have the parameter's own dtype and layout; the fused optimizers keep `step` beside the parameter."""
        if key in MOMENTS or (not self._core and value.dim() and value.shape == parameter.shape):
            return _laid_out(placed(value, parameter), parameter)
        if not self._core and key == "step" and not self.optimizer.defaults.get("fused"):
            return value.clone()
        return value.to(parameter.device).clone()


ANOTHERS = "go on with the `train.optimizer` that the run was started with"


def _laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """A copy that lies in memory as the parameter does: the fused optimizers read both from end to end."""
    if is_split(moment):
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype, requires_grad=False).copy_(moment)


def _argument(group: Group, lr: float, weight_decay: float | None, owners: Mapping[str, nn.Module]) -> ParameterGroup:
    own = group.weight_decay if group.weight_decay is not None else weight_decay
    modules = {name: owners[name] for name in group.parameters if name in owners}
    return ParameterGroup(group.parameters, modules, lr if group.lr is None else group.lr, own or 0.0)


def _make(made: Made, groups: Sequence[ParameterGroup], betas: tuple[float, float]) -> Optimizer:
    takes = "betas" in inspect.signature(made.make).parameters
    optimizer: Any = made.make(groups, **({"betas": betas} if takes else {}), **made.options)
    if not isinstance(optimizer, Optimizer):
        raise PluginError(
            f"the optimizer {made.name} gave {type(optimizer).__name__}; expected a torch.optim.Optimizer"
        )
    return optimizer


def owners(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Parameter's full name -> the module that it is an attribute of."""
    return {
        f"{prefix}{path}{'.' if path else ''}{name}": owner
        for path, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }
