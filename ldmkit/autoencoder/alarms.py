"""What goes wrong while stage one trains, said as soon as the logged numbers show it, with what to try."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from ldmkit.autoencoder.adversarial import ADAPTIVE_CEILING


@dataclass(frozen=True)
class Alarm:
    """One finding: `name` for machines, `message` what was seen, `remedy` what to try."""

    step: int
    name: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.message}. Try: {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a number is alarming.

    Args:
        patience: observations in a row that must be alarming (not for numbers that are not finite: those speak at once).
        codes: perplexity of the codebook at or below which it has collapsed.
        fall: share of its best perplexity below which the codebook is collapsing.
        accuracy: share of patches told right above which the discriminator has won.
        movement: relative change of the discriminator's parameters below which it stands still.
        explosion: multiple of its running median above which a gradient norm explodes.
        memory: gradient norms the median is taken over.
    """

    patience: int = 5
    codes: float = 3.0
    fall: float = 0.1
    accuracy: float = 0.99
    movement: float = 1e-9
    explosion: float = 100.0
    memory: int = 50


class Alarms:
    """Reads the numbers a training loop logs; each alarm sounds once, and again only after its cause had gone.

    The names it knows are those of `AutoencoderLoss`'s parts (`perplexity`, `accuracy`, `adaptive_weight`), and
    `discriminator_change` (from `Movement`) and `gradient_norm`. Numbers that are not there raise nothing.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.raised: list[Alarm] = []
        self._streaks: dict[str, int] = {}
        self._best_perplexity = 0.0
        self._norms: deque[float] = deque(maxlen=self.limits.memory)

    def observe(self, step: int, numbers: Mapping[str, float | Tensor]) -> list[Alarm]:
        """The alarms that the numbers of generator step `step` set off; `raised` keeps all."""
        values = {name: float(torch.as_tensor(value).detach()) for name, value in numbers.items()}
        found = [
            *self._not_finite(values),
            *self._codebook(values),
            *self._discriminator(values),
            *self._weight(values),
        ]
        found += self._gradient(values)
        new = [
            Alarm(step, name, message, remedy)
            for name, alarming, message, remedy in found
            if self._first(name, alarming)
        ]
        self.raised += new
        return new

    def _first(self, name: str, alarming: bool) -> bool:
        """Whether this observation is the one at which `name` is to be said."""
        streak = self._streaks.get(name, 0) + 1 if alarming else 0
        self._streaks[name] = streak
        at_once = name in ("not-finite", "exploding-gradient")
        return streak == (1 if at_once else self.limits.patience)

    def _not_finite(self, values: Mapping[str, float]) -> Iterable[tuple[str, bool, str, str]]:
        broken = sorted(name for name, value in values.items() if not math.isfinite(value))
        yield (
            "not-finite",
            bool(broken),
            f"{', '.join(broken)} not finite",
            "a lower learning rate, gradient clipping (clip: 1.0), float32 in place of half precision",
        )

    def _codebook(self, values: Mapping[str, float]) -> Iterable[tuple[str, bool, str, str]]:
        if "perplexity" not in values:
            return
        perplexity = values["perplexity"]
        self._best_perplexity = max(self._best_perplexity, perplexity if math.isfinite(perplexity) else 0.0)
        low = perplexity <= self.limits.codes or perplexity < self.limits.fall * self._best_perplexity
        yield (
            "codebook-collapse",
            low,
            f"the codebook collapses: the latents use about {perplexity:.1f} codes (best so far {self._best_perplexity:.1f})",
            "revive: 20 (moves unused codes onto latents), ema: 0.99 (a codebook of running averages), a smaller codebook",
        )

    def _discriminator(self, values: Mapping[str, float]) -> Iterable[tuple[str, bool, str, str]]:
        if "discriminator_change" in values:
            yield (
                "discriminator-still",
                values["discriminator_change"] < self.limits.movement,
                f"the discriminator's parameters do not move (relative change {values['discriminator_change']:.1e})",
                "see that its optimizer holds its parameters and steps, and that its learning rate is not 0",
            )
        if "accuracy" in values:
            yield (
                "discriminator-wins",
                values["accuracy"] > self.limits.accuracy,
                f"the discriminator tells {values['accuracy']:.1%} of the patches right: the generator learns nothing from it",
                "adversarial.r1: 1.0 or adversarial.lecam: 0.01, fewer layers or channels, a later start",
            )

    def _weight(self, values: Mapping[str, float]) -> Iterable[tuple[str, bool, str, str]]:
        if "adaptive_weight" in values:
            yield (
                "adaptive-weight-at-clamp",
                values["adaptive_weight"] >= 0.99 * ADAPTIVE_CEILING,
                f"the adaptive adversarial weight is at its ceiling of {ADAPTIVE_CEILING:g}: the game has no gradient",
                "a later start, a smaller adversarial.weight, loss: hinge, reduction: mean",
            )

    def _gradient(self, values: Mapping[str, float]) -> Iterable[tuple[str, bool, str, str]]:
        norm = values.get("gradient_norm")
        if norm is None or not math.isfinite(norm):
            return
        usual = median(self._norms) if len(self._norms) >= self.limits.patience else math.inf
        self._norms.append(norm)
        yield (
            "exploding-gradient",
            norm > self.limits.explosion * usual > 0,
            f"the gradient norm is {norm:.3g}; it used to be about {usual:.3g}",
            "gradient clipping (clip: 1.0), a lower learning rate, a longer warmup",
        )


class Movement:
    """How far a module's parameters went since it was last asked: |now - then| / |then|, over all of them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before = self._copy()

    @torch.no_grad()
    def __call__(self) -> float:
        """The relative change since the last call (or construction); about as costly as copying the parameters."""
        now = self._copy()
        pairs = list(zip(now, self._before, strict=True))
        moved = sum(float((a - b).double().square().sum()) for a, b in pairs)
        size = sum(float(b.double().square().sum()) for _, b in pairs)
        self._before = now
        return math.sqrt(moved / size) if size else 0.0

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.module.parameters()]
