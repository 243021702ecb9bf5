"""Latents computed once: stage two then never runs the encoder (22 times faster with a large autoencoder).

What is kept is the posterior, mean and log-variance, not one draw of it: each step draws afresh, keyed by its position. A finite
data set shows the same views in every epoch, so an item number says which posterior is meant.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldmkit import random
from ldmkit.autoencoder import Autoencoder, LatentStatistics, Posterior, measure
from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, Order
from ldmkit.training.console import Console
from ldmkit.training.publish import DamagedError, discard, publish, sweep, verify
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop

SHARD = 2048  # items a file
LARGEST = 2 * 2**30  # bytes of latents that are kept in memory
MEASURED = 4096  # pictures that the latents' scale is measured on


class LatentCache:
    """Posteriors of every item of a finite data set.

    Args:
        posteriors: ``mean`` (n, c, h, w) and, for KL, ``logvar`` of the same shape; unscaled, on the CPU.
        seed: the run's, which sets the order of the data.
    """

    def __init__(self, posteriors: Mapping[str, Tensor], *, seed: int) -> None:
        self.posteriors = dict(posteriors)
        self._order = Order(seed, len(self))

    def __len__(self) -> int:
        return self.posteriors["mean"].shape[0]

    def attach(self, batch: Batch) -> Batch:
        """The batch with the posteriors of its rows."""
        items = torch.tensor([self._order.index(int(position))[1] for position in batch.positions])
        return replace(batch, latents={name: value[items] for name, value in self.posteriors.items()})


def fits(autoencoder: Autoencoder, data: Dataset) -> bool:
    """Whether the latents of `data` can be kept: it is finite, and they stay below `LARGEST` bytes."""
    if not data.finite:
        return False
    latent = math.prod(autoencoder.latent_shape(data.size))
    return 2 * 4 * len(data) * latent <= LARGEST  # mean and log-variance, float32


def build(
    autoencoder: Autoencoder,
    data: Dataset,
    *,
    folder: Path,
    key: str,
    seed: int,
    batch: int = 64,
    runtime: Runtime | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
) -> LatentCache:
    """Encodes every item, or reads what an earlier process encoded.

    Args:
        folder: shards go to ``folder/KEY/shard-00000`` and on; a build that was stopped goes on where it was.
        key: of everything the latents depend on; see `fingerprint`.

    Raises:
        Interrupted: a signal came; finished shards stay.
    """
    runtime, console = runtime or Runtime(), console or Console(enabled=False)
    autoencoder.eval().to(runtime.device)
    place = folder / key
    sweep(place)
    shards: list[dict[str, Tensor]] = []
    with console.progress("latents", total=len(data)) as progress:
        for number, first in enumerate(range(0, len(data), SHARD)):
            target = place / f"shard-{number:05d}"
            items = range(first, min(first + SHARD, len(data)))
            if (found := _read(target)) is None:
                parts = []
                for start in range(items.start, items.stop, batch):
                    rows = range(start, min(start + batch, items.stop))
                    images = torch.stack([data.readable(item)["image"] for item in rows])
                    parts.append(_encode(autoencoder, images, runtime))
                    progress.update(rows.stop)
                    if stop is not None:
                        stop.check(f"encoding latents, {rows.stop} of {len(data)}")
                found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                publish(target, {"latents": found}, {}, {"key": key})
            shards.append(found)
            progress.update(items.stop)
    return LatentCache({name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}, seed=seed)


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
) -> LatentStatistics:
    """Measures the latents of the training data and sets shift and scale, unless these weights were measured before.

    Args:
        scale: ``std``, ``per-channel`` or a number; see `Autoencoder.set_statistics`.
        cache: latents that are there already; without one, the first `MEASURED` pictures are encoded.

    Raises:
        DivergedError: constant or infinite latents.
    """
    weights = autoencoder.weights_hash()
    statistics = autoencoder.statistics
    if statistics is None or statistics.weights != weights:
        if cache is None:
            found = _posteriors(autoencoder, data, seed, batch, runtime or Runtime(), stop)
        else:
            chunks = {name: torch.split(value[:MEASURED], batch) for name, value in cache.posteriors.items()}
            found = ({name: chunk[i] for name, chunk in chunks.items()} for i in range(len(chunks["mean"])))
        statistics = measure(_draws(found, seed), weights=weights)
    autoencoder.set_statistics(statistics, scale=scale)
    return statistics


def _posteriors(
    autoencoder: Autoencoder, data: Dataset, seed: int, batch: int, runtime: Runtime, stop: Stop | None
) -> Iterator[dict[str, Tensor]]:
    order = Order(seed, data.count)
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


def _read(target: Path) -> dict[str, Tensor] | None:
    if not target.is_dir():
        return None
    try:
        verify(target)
    except DamagedError:
        discard(target)
        return None
    return load_file(target / "latents.safetensors")
