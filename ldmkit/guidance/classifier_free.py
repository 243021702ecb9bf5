"""Classifier-free guidance over branches of conditions (Ho & Salimans 2022; several conditions: Brooks et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning, KeptSlots, concatenate
from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.schedules import Schedule

Branches = Mapping[KeptSlots, Conditioning]
Weights = Mapping[KeptSlots, float]

# (x_t (b, c, h, w), t (b,), conditioning of b rows) -> x_0 (b, c, h, w)
ConditionalDenoiser = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Interval:
    """The timesteps from `low` to `high`, both included, in which guidance is on (Kynkaanniemi et al. 2024)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UsageError(f"a guidance interval from {self.low:g} to {self.high:g} is empty")

    @classmethod
    def of_fraction(cls, low: float, high: float, schedule: Schedule) -> Interval:
        """From fraction `low` to `high` of the timesteps: 0 is the data's end, 1 the noise's.

        Raises UsageError unless 0 <= low <= high <= 1.
        """
        if not 0 <= low <= high <= 1:
            raise UsageError(f"a guidance interval from {low:g} to {high:g}: fractions rise from 0 to 1")
        return cls(low * (schedule.timesteps - 1), high * (schedule.timesteps - 1))

    @classmethod
    def of_log_snr(cls, low: float, high: float, schedule: Schedule) -> Interval:
        """Where the log-SNR, which falls with the timestep, lies between `low` and `high`."""
        late, early = schedule.timestep(torch.tensor([low, high], dtype=torch.float64)).tolist()
        return cls(early, late)

    def holds(self, t: Tensor) -> Tensor:
        """Whether t (b,) lies inside: (b,) bool."""
        return (t >= self.low) & (t <= self.high)


def guided(
    denoiser: ConditionalDenoiser,
    branches: Branches,
    weights: Weights,
    *,
    rescale: float = 0.0,
    interval: Interval | None = None,
) -> X0Predictor:
    """The weighted sum of the branches' predictions of x_0; one batched call of `denoiser` a step.

    Args:
        denoiser: (x_t, t, conditioning) -> x_0.
        branches: what each branch reads, all of one batch size. The one that keeps most slots is the conditional one.
        weights: a weight for some of them, summing to 1 (see `parse`). Those of weight zero are not run.
        rescale: phi in [0, 1] of Lin et al. 2023, section 3.4: how far each sample's standard deviation is brought back
            to the conditional prediction's. They rescale the network's output, v; here it is x_0, which is -v where it
            matters most, at zero SNR.
        interval: where guidance is on; outside, the conditional branch runs alone.

    Raises UsageError for weights that do not sum to 1, a branch that is missing, or a `rescale` outside [0, 1].
    """
    weights = check(branches, weights)
    if not 0 <= rescale <= 1:
        raise UsageError(f"rescale={rescale:g}; it lies between 0 (off) and 1")
    conditional = max(branches, key=len)
    run = [kept for kept in branches if kept in weights or (rescale and kept == conditional)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        predictions = evaluate(denoiser, x, t, [branches[kept] for kept in run])
        result = combine(predictions, [weights.get(kept, 0.0) for kept in run])
        if rescale:
            like = predictions[run.index(conditional)]
            result = torch.lerp(result, result * (deviation(like) / deviation(result).clamp(min=1e-12)), rescale)
        return result

    if interval is None or run == [conditional]:
        return denoise
    return within(interval, denoise, lambda x, t: denoiser(x, t, branches[conditional]))


def check(branches: Branches, weights: Weights) -> dict[KeptSlots, float]:
    """The weights that are not zero; UsageError where they do not sum to 1 or a branch is missing."""
    kept_weights = {kept: float(weight) for kept, weight in weights.items() if weight}
    total = sum(kept_weights.values())
    if not abs(total - 1) < 1e-6:
        raise UsageError(f"the guidance weights sum to {total:g}; they must sum to 1")
    if missing := [kept for kept in kept_weights if kept not in branches]:
        raise UsageError(f"guidance weighs the branch that keeps {named(missing[0])}, which was not given")
    return kept_weights


def named(subset: KeptSlots) -> str:
    """A subset of slots for a message."""
    return "+".join(sorted(subset)) or "nothing"


def evaluate(denoiser: ConditionalDenoiser, x: Tensor, t: Tensor, given: Sequence[Conditioning]) -> Sequence[Tensor]:
    """x_0 (b, c, h, w) for each of k conditionings of b rows, from one call of `denoiser` on k b rows."""
    if len(given) == 1:
        return [denoiser(x, t, given[0])]
    count = len(given)
    return denoiser(x.repeat(count, 1, 1, 1), t.repeat(count), concatenate(given)).chunk(count)


def combine(predictions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of predictions (b, c, h, w)."""
    result = predictions[0] * weights[0]
    for prediction, weight in zip(predictions[1:], weights[1:], strict=True):
        result = torch.add(result, prediction, alpha=weight)
    return result


def deviation(x: Tensor) -> Tensor:
    """Each sample's standard deviation, (b, 1, 1, 1)."""
    return x.std(dim=(1, 2, 3), keepdim=True)


def within(interval: Interval, inside: X0Predictor, outside: X0Predictor) -> X0Predictor:
    """`inside` for the rows whose timestep lies in the interval, `outside` for the others; neither runs for nothing."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        holds = interval.holds(t)
        if bool(holds.all()):
            return inside(x, t)
        if not bool(holds.any()):
            return outside(x, t)
        return torch.where(holds[:, None, None, None], inside(x, t), outside(x, t))

    return denoise
