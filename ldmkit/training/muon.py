"""Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal before it is added; for hidden layers, beside AdamW.

K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); the factor of the learning rate is that of Liu et al.
2025, "Muon is scalable for LLM training" (arXiv 2502.16982), with which AdamW's rate and weight decay serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ldmkit.errors import ResourceError, UsageError
from ldmkit.plugins.ranges import Decay
from ldmkit.training.optimizers import ParameterGroup
from ldmkit.training.parallel.shards import is_split

# Of the quintic iteration: Jordan's, steepest at zero. It ends between 0.7 and 1.2, not at 1, which serves as well.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
Precision = Literal["auto", "bf16", "fp32"]
# First and last layers, what reads the timestep, and ways past the network: by their names in the denoisers of ldmkit.
EDGES = ("*input_blocks.0.*", "*.out.*", "*shortcut*", "*time_embed*", "*label_emb*", "*.stem.*", "*.head.*")


def muon(
    groups: Sequence[ParameterGroup],
    *,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    iterations: Annotated[int, Field(ge=1, le=20)] = 5,
    precision: Precision = "auto",
    besides: tuple[str, ...] = EDGES,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """Muon (Jordan 2024) on the weights of hidden linear and convolution layers, AdamW on all else.

    A kernel (out, in, h, w) is a matrix (out, in h w). The learning rate is multiplied by 0.2 sqrt(the matrix's larger side), so
    that an update is as large as AdamW's (arXiv 2502.16982): the rate that suits AdamW suits both.

    Args:
        momentum: of the running mean of gradients.
        nesterov: look one step ahead.
        iterations: of the Newton-Schulz iteration, which makes the momentum's singular values about 1.
        precision: of the iteration: `bf16` is the original's; `auto` is `fp32` on a CPU, where it is faster, else `bf16`.
        besides: patterns of parameters' names that AdamW moves too: the first and last layers.

    Raises:
        UsageError: nothing is left for Muon.
        ResourceError: weights that are split among processes: a part of a matrix cannot be made orthogonal.
    """
    hidden: list[ParameterGroup] = []
    rest: list[ParameterGroup] = []
    for group in groups:
        chosen = {name for name in group.parameters if _hidden(name, group, besides)}
        for wanted, found in ((True, hidden), (False, rest)):
            parameters = {n: p for n, p in group.parameters.items() if (n in chosen) is wanted}
            if parameters:
                found.append(ParameterGroup(parameters, group.modules, group.lr, group.weight_decay))
    if not hidden:
        raise UsageError(
            "train.optimizer is muon, and no weight of a hidden linear or convolution layer is trained",
            hint="take adamw, or let `besides` name fewer layers",
        )
    if any(is_split(p) for group in hidden for p in group.parameters.values()):
        raise ResourceError(
            "train.optimizer is muon, which needs whole matrices, and `runtime.distributed: fsdp` splits them",
            hint="take adamw, or `distributed: ddp`",
        )
    return Muon(
        hidden, rest, momentum=momentum, nesterov=nesterov, iterations=iterations, precision=precision, betas=betas
    )


def _hidden(name: str, group: ParameterGroup, besides: Sequence[str]) -> bool:
    module = group.modules.get(name)
    layer = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer and group.parameters[name].ndim > 1 and not any(fnmatchcase(name, pattern) for pattern in besides)


class Muon(Optimizer):
    """Muon for the groups `hidden`, AdamW for `rest`; see `muon`. The state of both is in `state`."""

    def __init__(
        self,
        hidden: Sequence[ParameterGroup],
        rest: Sequence[ParameterGroup],
        *,
        momentum: float,
        nesterov: bool,
        iterations: int,
        precision: Precision,
        betas: tuple[float, float],
    ) -> None:
        self.momentum, self.nesterov, self.iterations, self.precision = momentum, nesterov, iterations, precision
        super().__init__([group.argument() for group in (*hidden, *rest)], {"lr": hidden[0].lr})
        self._hidden = self.param_groups[: len(hidden)]
        self._adamw = AdamW([group.argument() for group in rest], lr=hidden[0].lr, betas=betas) if rest else None
        if self._adamw is not None:  # one list of groups, and one state, whose halves each optimizer reads
            self.param_groups[len(hidden) :] = self._adamw.param_groups
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. A closure is not supported."""
        if closure is not None:
            raise UsageError("Muon takes no closure: call backward, then step()")
        for group in self._hidden:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])
        if self._adamw is not None:
            self._adamw.step()

    def _move(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        gradient: Any = parameter.grad
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(mean, self.momentum) if self.nesterov else mean
        update = orthogonal(ahead.flatten(1), self.iterations, self._dtype(parameter))
        factor = 0.2 * math.sqrt(max(update.shape))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(update.reshape(parameter.shape), alpha=-lr * factor)

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        single = self.precision == "fp32" or (self.precision == "auto" and parameter.device.type == "cpu")
        return torch.float32 if single else torch.bfloat16


def orthogonal(matrix: Tensor, iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix (n, m) with its singular values brought to between 0.7 and 1.2: a quintic Newton-Schulz iteration in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype, copy=True)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x.div_(x.norm().clamp(min=EPS))  # no singular value above 1
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
