"""What stage two need not compute in every step: posteriors, what frozen conditioners answer, what extra losses compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, Order
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.losses import ExtraLosses
from ldmkit.recipe import Recipe
from ldmkit.training.caching import conditionings, latents, shard_store, targets
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop


class Attaching(Protocol):
    """Completes a batch with what was computed before."""

    def attach(self, batch: Batch) -> Batch: ...


@dataclass(frozen=True)
class Caches:
    """Several, one after the other."""

    caches: Sequence[Attaching]

    def attach(self, batch: Batch) -> Batch:
        """The batch with all they have."""
        for cache in self.caches:
            batch = cache.attach(batch)
        return batch


@dataclass(frozen=True)
class Caching:
    """How one run keeps things: `runtime.cache` of its recipe is ``auto`` (in the run's directory, what fits into memory),
    ``off``, or a path, where all is kept whatever its size, for every recipe that needs the same.

    Args:
        folder: the run's directory.
        content: a digest of the data's files, and of the plugin that reads them.
    """

    recipe: Recipe
    folder: Path
    content: str
    runtime: Runtime
    console: Console
    stop: Stop
    ranks: Ranks

    @property
    def automatic(self) -> bool:
        """Whether nobody said where to."""
        return self.recipe.runtime.cache == "auto"

    def latents(self, model: LatentDiffusion, data: Dataset) -> latents.LatentCache | None:
        """The posteriors of every item, computed now where they are not there yet; None where they are not kept.

        Less than an epoch sees each item once at most: to encode all of them first would cost more than it saves.
        """
        if self.recipe.runtime.cache == "off" or not data.finite:
            return None
        seen = self.recipe.train.steps * self.recipe.train.batch
        if self.automatic and max(seen, latents.ENOUGH) < len(data):  # less than an epoch: each would be read once
            self.console.note(f"latents {seen}/{len(data)}: those that the steps read, encoded then")
            return None
        if self.automatic and not latents.fits(model.autoencoder, data):
            return None
        return latents.build(
            model.autoencoder,
            data,
            folder=self._place("latents"),
            key=latents.fingerprint(model.autoencoder, self._described(data) | {"precision": self.runtime.precision}),
            seed=self.recipe.seed,
            order=self._order(data),
            runtime=self.runtime,
            console=self.console,
            stop=self.stop,
            ranks=self.ranks,
        )

    def answers(self, model: LatentDiffusion, data: Dataset) -> conditionings.AnswerCache | None:
        """What the slots answer in which nothing is trained; the autoencoder is scaled already."""
        if not self._repeats(data):
            return None
        described, precision = self._described(data), self.runtime.precision
        return conditionings.build(
            model,
            data,
            folder=self._place("conditions"),
            key=lambda slot: conditionings.fingerprint(model, slot, described, precision),
            order=self._order(data),
            most=shard_store.LARGEST if self.automatic else None,
            runtime=self.runtime,
            console=self.console,
            stop=self.stop,
            ranks=self.ranks,
        )

    def targets(self, extra: ExtraLosses, data: Dataset, origins: dict[str, str]) -> targets.TargetCache | None:
        """What the extra terms compare with; `origins`: term -> the plugin it is from."""
        if not self._repeats(data):
            return None
        described = {"data": self._described(data), "precision": self.runtime.precision}
        keys = {
            name: targets.fingerprint(
                term, described | {"options": self.recipe.losses[name].options, "origin": origins.get(name, "")}
            )
            for name, term in targets.terms(extra).items()
        }
        return targets.build(
            extra,
            data,
            folder=self._place("targets"),
            keys=keys,
            order=self._order(data),
            most=shard_store.LARGEST if self.automatic else None,
            runtime=self.runtime,
            console=self.console,
            stop=self.stop,
            ranks=self.ranks,
        )

    def _repeats(self, data: Dataset) -> bool:
        """Whether what is computed of an item may be kept, and is asked for more than once."""
        section, settings = self.recipe.runtime.cache, self.recipe.train
        if section == "off" or not data.finite:
            return False
        return not self.automatic or settings.steps * settings.batch > len(data)

    def _place(self, name: str) -> Path:
        where = self.recipe.runtime.cache
        return self.folder / name if where == "auto" else Path(where).expanduser()

    def _order(self, data: Dataset) -> Order:
        return data.order(self.recipe.seed, self.recipe.train.batch)

    def _described(self, data: Dataset) -> dict[str, Any]:
        """What the data are, and how they are cut; the seed only where it decides a view, so that runs of other seeds share."""
        section: dict[str, Any] = self.recipe.resolved(redact=False)["data"]
        drawn = {"seed": self.recipe.seed} if data.drawn else {}
        return {**section, **drawn, "files": self.content}
