"""What extra terms of the loss compare with, computed once: a frozen encoder then runs over the data, and not over every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit.autoencoder.statistics import weights_hash
from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, Order
from ldmkit.losses import DiffusionTerm, ExtraLosses
from ldmkit.training.caching import shard_store
from ldmkit.training.caching.shard_store import Kept
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop

FORMAT = 1  # of what is kept: another one is computed anew
NAME = "target"


class TargetCache:
    """`DiffusionTerm.target` of every item of a finite data set, on the CPU.

    Args:
        targets: the term's name in the recipe -> the target of each item.
        order: the run's, which says the item of a position.
    """

    def __init__(self, targets: Mapping[str, Kept], order: Order) -> None:
        self.targets, self._order = dict(targets), order

    def attach(self, batch: Batch) -> Batch:
        """The batch with the targets of its rows."""
        items = [self._order.index(int(position))[1] for position in batch.positions]
        return replace(batch, targets={name: kept.rows(items)[NAME] for name, kept in self.targets.items()})


def terms(extra: ExtraLosses) -> dict[str, DiffusionTerm]:
    """The terms that have a target, by their names in the recipe."""
    found = {name: part.term for name, part in extra.parts.items() if isinstance(part.term, DiffusionTerm)}
    return {name: term for name, term in found.items() if type(term).target is not DiffusionTerm.target}


def build(
    extra: ExtraLosses,
    data: Dataset,
    *,
    folder: Path,
    keys: Mapping[str, str],
    order: Order,
    most: int | None,
    batch: int = 64,
    runtime: Runtime | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
) -> TargetCache | None:
    """Computes the targets of every item, or reads what an earlier process computed. None: no term has any.

    Args:
        folder: shards go to ``folder/KEY/shard-00000`` and on; a build that was stopped goes on where it was.
        keys: term -> a key of everything its target depends on; see `fingerprint`.
        most: bytes of a term's targets, above which it is computed in every step; None: any number.

    Raises:
        Interrupted: a signal came; finished shards stay.
    """
    runtime, console = runtime or Runtime(), console or Console(enabled=False)
    found: dict[str, Kept] = {}
    for name, term in terms(extra).items() if data.finite else ():
        term.to(runtime.device).eval()

        def made(items: Sequence[int], term: DiffusionTerm = term) -> dict[str, Tensor]:
            images = torch.stack([data.readable(item)["image"] for item in items]).to(runtime.device)
            with torch.no_grad(), runtime.autocast():
                value = term.target(images)
            assert value is not None, "a term with `target` returned None"
            return {NAME: value.float().cpu()}

        size = made([0])[NAME].nbytes * len(data)
        if most is not None and size > most:
            console.note(
                f"losses.{name}: its target is computed in every step; it would take {size / 2**30:.1f} GiB: give runtime.cache "
                "a path to keep it there"
            )
            continue
        found[name] = shard_store.build(
            folder / keys[name],
            data.groups(),
            made,
            key=keys[name],
            what=f"targets of {name}",
            join=shard_store.joined,
            batch=batch,
            console=console,
            stop=stop,
            ranks=ranks,
        )
    return TargetCache(found, order) if found else None


def fingerprint(term: DiffusionTerm, description: Mapping[str, Any]) -> str:
    """A key that changes with the frozen weights of the term, and with `description`: its options, its plugin, the data."""
    frozen = {
        f"{name}.{key}": value for name in term.frozen for key, value in term.get_submodule(name).state_dict().items()
    }
    about = {"format": FORMAT, "frozen": weights_hash(frozen), "term": type(term).__qualname__, **description}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]
