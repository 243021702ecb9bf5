"""Averages of weights whose length is chosen after training (Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C).

Two averages of different length are tracked, and snapshots of both are kept. Any other length is a linear combination of the
snapshots: the one whose weighting of the training's steps comes closest in the least squares.

A profile of exponent g gives step s of t the weight p(s; t) = (g + 1) s^g / t^(g + 1); its width, the standard deviation as a
share of the training, is sigma_rel = sqrt(g + 1) / ((g + 2) sqrt(g + 3)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, UsageError
from ldmkit.training.checkpointing.atomic_dir import DamagedError, discard, publish, sweep, verify
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.parallel.shards import on_first, placed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ldmkit.recipe.training import PostHoc as Settings

SNAPSHOTS = "post-hoc"  # the folder beside a stage's checkpoints
PREFIX = "step-"
WIDEST = 12**-0.5  # a flat average


def exponent(sigma_rel: float) -> float:
    """The exponent of a profile of this width.

    Raises:
        UsageError: a width that no profile has; they lie between 0 and 1 / sqrt(12), a flat average.
    """
    if not 0.0 < sigma_rel <= WIDEST:
        raise UsageError(f"sigma_rel is {sigma_rel:g}; it is above 0 and at most {WIDEST:.4f}, a flat average")
    t = sigma_rel**-2  # (g + 2)^2 (g + 3) = t (g + 1)
    return float(max(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real))


def width(exponent: float) -> float:
    """The sigma_rel of a profile; the inverse of `exponent`."""
    return float((exponent + 1) ** 0.5 / ((exponent + 2) * (exponent + 3) ** 0.5))


@dataclass(frozen=True)
class Profile:
    """A weighting of the steps up to `end` (counted in updates) by a power `exponent`."""

    end: float
    exponent: float

    def dot(self, other: Profile) -> float:
        """The integral of the product of both profiles, in logarithms because the powers are huge."""
        a, b = self.exponent, other.exponent
        shorter = np.log(min(self.end, other.end))
        powers = (a + b + 1) * shorter - (a + 1) * np.log(self.end) - (b + 1) * np.log(other.end)
        return float((a + 1) * (b + 1) / (a + b + 1) * np.exp(powers))


def combination(stored: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """What each stored profile is multiplied with to come closest to the wanted one, and the distance that is left.

    The factors of the least squares are divided by their sum, as the authors' own code does: every profile integrates to one, so
    must what is made of them, or the average of equal weights would be another weight.

    Returns:
        the factors (n,), which sum to one, and the root of the squared distance over that of the wanted profile: 0 is exact.
    """
    gram = np.array([[one.dot(other) for other in stored] for one in stored])
    aim = np.array([one.dot(wanted) for one in stored])
    factors = np.linalg.lstsq(gram, aim, rcond=1e-14)[0]
    factors = factors / factors.sum()
    total = wanted.dot(wanted)
    left = total - 2 * factors @ aim + factors @ gram @ factors
    return factors, float(np.sqrt(max(left, 0.0) / total))


class PostHoc:
    """Two power-function averages of named parameters.

    Args:
        parameters: name -> parameter; those that are trained, conditioners included.
        sigma_rel: the widths of the two.
        every: optimizer steps between snapshots.

    Raises UsageError where the two widths are one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, sigma_rel: Sequence[float], every: int) -> None:
        self.live, self.every = dict(parameters), every
        self.exponents = {f"{value:g}": exponent(value) for value in sigma_rel}
        if len(self.exponents) < 2:
            raise UsageError(f"sigma_rel is {list(sigma_rel)}; two different widths are tracked")
        self.updates = 0
        self._averages = {key: {n: p.detach().clone() for n, p in parameters.items()} for key in self.exponents}

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter], settings: Settings | None) -> PostHoc | None:
        """What a recipe's `train.post_hoc` asks for."""
        return None if settings is None else cls(parameters, sigma_rel=settings.sigma_rel, every=settings.every)

    @torch.no_grad()
    def update(self) -> None:
        """Step t: a <- a + (1 - (1 - 1/t)^(g + 1)) (p - a), which gives each step the integral of its profile."""
        self.updates += 1
        live = [p.detach() for p in self.live.values()]
        for key, power in self.exponents.items():
            share = 1.0 - (1.0 - 1.0 / self.updates) ** (power + 1)
            if live:
                torch._foreach_lerp_(list(self._averages[key].values()), live, share)

    def tensors(self) -> dict[str, Tensor]:
        """Both averages, ``WIDTH/NAME`` -> tensor."""
        return {f"{key}/{name}": v for key, average in self._averages.items() for name, v in average.items()}

    def load(self, tensors: Mapping[str, Tensor], *, updates: int) -> None:
        """Goes on from saved averages.

        Raises:
            CheckpointError: other widths, names or shapes than are tracked.
        """
        mine = self.tensors()
        different = set(mine) ^ set(tensors)
        different |= {name for name in set(mine) & set(tensors) if mine[name].shape != tensors[name].shape}
        if different:
            there = sorted({name.partition("/")[0] for name in tensors})
            raise CheckpointError(
                f"the run tracks averages of sigma_rel {', '.join(there)}, and these differ from what is asked for in "
                f"{len(different)} tensors, {min(different)} first",
                hint="leave train.post_hoc as the run was started with",
            )
        with torch.no_grad():
            for name, value in tensors.items():
                mine[name].copy_(placed(value, mine[name]))
        self.updates = updates

    def snapshot(self, folder: Path, step: int, ranks: Ranks | None = None) -> None:
        """Keeps both averages of this step in ``FOLDER/step-N``; with several ranks, the first one writes.

        Raises:
            ResourceError: the disk did not take it.
        """
        if self.updates:
            facts = {"step": step, "updates": self.updates, "exponents": self.exponents}
            ranks = ranks or Ranks()
            whole = {"average": on_first(self.tensors(), ranks)}
            ranks.decide(lambda: publish(folder / f"{PREFIX}{step:08d}", whole, {}, facts))


@dataclass(frozen=True)
class Snapshot:
    """The two averages of one step on disk."""

    path: Path
    step: int
    updates: int
    exponents: Mapping[str, float]


def snapshots(folder: Path) -> list[Snapshot]:
    """Those that are there and whole, oldest first."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.removeprefix(PREFIX).isdecimal():
            continue
        try:
            manifest = verify(path)
        except DamagedError:
            continue
        found.append(Snapshot(path, manifest["step"], manifest["updates"], manifest["exponents"]))
    return sorted(found, key=lambda snapshot: snapshot.step)


def forget_after(folder: Path, step: int) -> None:
    """Removes snapshots of steps that a run which continues from `step` makes again, maybe with other settings.

    And what a process that died left half-written.
    """
    sweep(folder)
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        number = path.name.removeprefix(PREFIX)
        if number.isdecimal() and int(number) > step:
            discard(path)


@dataclass(frozen=True)
class Reconstruction:
    """An average of the wanted width at `step`. `error`: how far its profile is from that, 0 is exact."""

    tensors: Mapping[str, Tensor]
    step: int
    snapshots: int
    error: float


def reconstruct(folder: Path, sigma_rel: float, *, step: int | None = None) -> Reconstruction:
    """The average of width `sigma_rel` at a step, from the snapshots in `folder`.

    Args:
        step: of one of the snapshots; default: the last.

    Raises:
        UsageError: there are no snapshots, none of this step, or no profile has this width.
    """
    found = snapshots(folder)
    if not found:
        raise UsageError(
            f"there are no snapshots in {folder}", hint="train with `train: {post_hoc: {}}`, which keeps them"
        )
    steps = [snapshot.step for snapshot in found]
    if step is not None and step not in steps:
        raise UsageError(f"there is no snapshot of step {step}", hint=f"there are {', '.join(map(str, steps))}")
    used = [snapshot for snapshot in found if step is None or snapshot.step <= step]
    stored = [(s, key, Profile(s.updates, power)) for s in used for key, power in s.exponents.items()]
    wanted = Profile(used[-1].updates, exponent(sigma_rel))
    factors, error = combination([profile for _, _, profile in stored], wanted)
    sums: dict[str, Tensor] = {}
    for snapshot in used:
        tensors = load_file(snapshot.path / "average.safetensors")
        shares = {key: float(f) for (own, key, _), f in zip(stored, factors, strict=True) if own is snapshot}
        for full, value in tensors.items():
            key, _, name = full.partition("/")
            if name not in sums:
                sums[name] = torch.zeros_like(value, dtype=torch.float64)
            sums[name].add_(value.double(), alpha=shares[key])  # in double: the factors have both signs
    return Reconstruction({name: value.float() for name, value in sums.items()}, used[-1].step, len(used), error)
