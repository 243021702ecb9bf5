"""Latents computed once: stage two then never runs the encoder (22 times faster with a large autoencoder).

What is kept is the posterior, mean and log-variance, not one draw of it: each step draws afresh, keyed by its position. A finite
data set shows the same views in every epoch, so an item number says which posterior is meant.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit import random
from ldmkit.autoencoder import Autoencoder, LatentStatistics, Posterior, measure
from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, Order
from ldmkit.training.caching import shard_store
from ldmkit.training.caching.shard_store import Kept
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop

MEASURED = 4096  # pictures that the latents' scale is measured on


class LatentCache:
    """Posteriors of every item of a finite data set: ``mean`` (c, h, w) and, for KL, ``logvar``; unscaled, on the CPU.

    Args:
        groups: all items, in groups of one size.
        order: the run's, which says the item of a position.
    """

    def __init__(self, posteriors: Kept, groups: Sequence[Sequence[int]], order: Order) -> None:
        self.posteriors, self.groups, self._order = posteriors, groups, order

    def __len__(self) -> int:
        return len(self.posteriors)

    def attach(self, batch: Batch) -> Batch:
        """The batch with the posteriors of its rows."""
        items = [self._order.index(int(position))[1] for position in batch.positions]
        return replace(batch, latents=self.posteriors.rows(items))

    def chunks(self, count: int, batch: int) -> Iterator[dict[str, Tensor]]:
        """About `count` posteriors, `batch` at a time: the first ones of each group, by its share."""
        for group in self.groups:
            own = group[: math.ceil(count * len(group) / len(self))]
            for first in range(0, len(own), batch):
                yield self.posteriors.rows(own[first : first + batch])


def fits(autoencoder: Autoencoder, data: Dataset) -> bool:
    """Whether the latents of `data` are kept without being asked for: it is finite, and they stay below `kept.LARGEST` bytes."""
    if not data.finite:
        return False
    numbers = sum(len(group) * math.prod(autoencoder.latent_shape(data.size_of(group[0]))) for group in data.groups())
    return 2 * 4 * numbers <= shard_store.LARGEST  # mean and log-variance, float32


def build(
    autoencoder: Autoencoder,
    data: Dataset,
    *,
    folder: Path,
    key: str,
    seed: int,
    order: Order | None = None,
    batch: int = 64,
    runtime: Runtime | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
) -> LatentCache:
    """Encodes every item, or reads what an earlier process encoded. With several ranks the first one does.

    Args:
        folder: shards go to ``folder/KEY/shard-00000`` and on; a build that was stopped goes on where it was.
        key: of everything the latents depend on; see `fingerprint`.
        seed: the run's, which sets the order of the data.
        order: the run's; needed with buckets, whose order depends on the run's batch.

    Raises:
        Interrupted: a signal came; finished shards stay.
    """
    runtime = runtime or Runtime()
    autoencoder.eval().to(runtime.device)

    def encoded(items: Sequence[int]) -> dict[str, Tensor]:
        return _encode(autoencoder, torch.stack([data.readable(item)["image"] for item in items]), runtime)

    groups = data.groups()
    found = shard_store.build(
        folder / key,
        groups,
        encoded,
        key=key,
        what="latents",
        join=shard_store.joined,
        batch=batch,
        console=console,
        stop=stop,
        ranks=ranks,
    )
    assert order is not None or not data.buckets
    return LatentCache(found, groups, order or data.order(seed, batch))


def fingerprint(autoencoder: Autoencoder, description: Mapping[str, Any]) -> str:
    """A key that changes with any weight of the autoencoder and with `description`, which says what the data are."""
    about = {"autoencoder": autoencoder.weights_hash(), "data": description}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]


def calibrate(
    autoencoder: Autoencoder,
    data: Dataset,
    *,
    scale: str | float,
    seed: int,
    cache: LatentCache | None = None,
    batch: int = 64,
    runtime: Runtime | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
) -> LatentStatistics:
    """Measures the latents of the training data and sets shift and scale, unless these weights were measured before.

    Args:
        scale: ``std``, ``per-channel`` or a number; see `Autoencoder.set_statistics`.
        cache: latents that are there already; without one, the first `MEASURED` pictures are encoded.

    Raises:
        DivergedError: constant or infinite latents.
    """

    def measured() -> LatentStatistics:
        weights = autoencoder.weights_hash()
        known = autoencoder.statistics
        if known is not None and known.weights == weights:
            return known
        if cache is None:
            found = _posteriors(autoencoder, data, seed, batch, runtime or Runtime(), stop)
        else:
            found = cache.chunks(MEASURED, batch)
        return measure(_draws(found, seed), weights=weights)

    statistics = (ranks or Ranks()).decide(measured)
    autoencoder.set_statistics(statistics, scale=scale)
    return statistics


def _posteriors(
    autoencoder: Autoencoder, data: Dataset, seed: int, batch: int, runtime: Runtime, stop: Stop | None
) -> Iterator[dict[str, Tensor]]:
    order = data.order(seed, batch)
    count = min(MEASURED, MEASURED if data.count is None else data.count)
    autoencoder.eval().to(runtime.device)
    for first in range(0, count, batch):
        if stop is not None:
            stop.check("measuring latents")
        places = [order.index(position) for position in range(first, min(first + batch, count))]
        yield _encode(
            autoencoder, torch.stack([data.readable(item, epoch)["image"] for epoch, item in places]), runtime
        )


def _draws(posteriors: Iterable[Mapping[str, Tensor]], seed: int) -> Iterator[Tensor]:
    for number, found in enumerate(posteriors):
        noise = torch.randn(found["mean"].shape, generator=random.generator(seed, "statistics", number))
        yield Posterior(found["mean"], found.get("logvar")).sample(noise)


@torch.no_grad()
def _encode(autoencoder: Autoencoder, images: Tensor, runtime: Runtime) -> dict[str, Tensor]:
    with runtime.autocast():
        posterior = autoencoder.posterior(images.to(runtime.device))
    found = {"mean": posterior.mean.float().cpu()}
    if posterior.logvar is not None:
        found["logvar"] = posterior.logvar.float().cpu()
    return found
