"""What frozen conditioners answer, computed once: a large text encoder then runs over the data, and not over every step.

A slot's answers are kept where that is worth it (it has weights, or encodes by the frozen autoencoder, `canvas.to_latent`) and
where they can be: nothing in it is trained in the whole run, its `prepare` draws nothing, its `encode` answers in training as it
does in evaluation and draws nothing either, and the data show the same views in every epoch. No conditioner says these things of
itself, so each is looked at: generators are compared before and after. What is kept is the answer to a sample that has the
condition; dropping and absence stay what they were, and so does the null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit import random
from ldmkit.autoencoder.statistics import weights_hash
from ldmkit.conditioning import Batch, Canvas, Conditioning, Tensors
from ldmkit.conditioning.checks import Examiner
from ldmkit.conditioning.types import pad_tokens
from ldmkit.data import Dataset, Order, slot_fields
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training.caching import shard_store
from ldmkit.training.caching.shard_store import Kept, Rows
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop

PORTS = ("tokens", "mask", "vector", "concat")
PROBED = 8  # samples that are asked before anything is kept
FORMAT = 1  # of what is kept: another one is computed anew


class AnswerCache:
    """The answers of some slots to every item of a finite data set, on the CPU.

    Args:
        answers: slot -> the ports of each item; a row without the condition holds zeros.
        order: the run's, which says the item of a position.
    """

    def __init__(self, answers: Mapping[str, Kept], order: Order) -> None:
        self.answers, self._order = dict(answers), order

    def attach(self, batch: Batch) -> Batch:
        """The batch with the answers to its rows."""
        items = [self._order.index(int(position))[1] for position in batch.positions]
        return replace(batch, answers={slot: _rows(own, items) for slot, own in self.answers.items()})


class CannotBeKeptError(Exception):
    """A slot's answers are no function of the sample; the message says why."""


def fixed(model: LatentDiffusion) -> list[str]:
    """The slots in which nothing is trained."""
    return [
        slot
        for slot, conditioner in model.conditioners.items()
        if not any(parameter.requires_grad for parameter in conditioner.parameters())
    ]


def build(
    model: LatentDiffusion,
    data: Dataset,
    *,
    folder: Path,
    key: Callable[[str], str],
    order: Order,
    most: int | None,
    batch: int = 64,
    runtime: Runtime | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
) -> AnswerCache | None:
    """Asks every slot in which nothing is trained for its answer to every item, or reads what an earlier process was told.

    None: no slot is kept.

    Args:
        folder: shards go to ``folder/KEY/shard-00000`` and on; a build that was stopped goes on where it was.
        key: slot -> a key of everything its answers depend on; see `fingerprint`.
        most: bytes of a slot's answers, above which it is not kept; None: any number.

    Raises:
        Interrupted: a signal came; finished shards stay.
    """
    runtime, console, ranks = runtime or Runtime(), console or Console(enabled=False), ranks or Ranks()
    runtime.place(model)
    answers: dict[str, Kept] = {}
    for slot in fixed(model) if data.finite else ():
        asking = _Asking(model, slot, data, runtime)
        reason = ranks.decide(lambda asking=asking: asking.objection(most))  # type: ignore[misc]
        if not asking.costly:
            continue  # read anew in every step, which is as fast
        if reason is not None:
            console.note(f"conditions of {slot} are encoded in every step: {reason}")
            continue
        own = key(slot)  # once: it is made of all weights
        try:
            answers[slot] = shard_store.build(
                folder / own,
                data.groups(),
                asking.answers,
                key=own,
                what=f"conditions of {slot}",
                join=_joined,
                batch=batch,
                console=console,
                stop=stop,
                ranks=ranks,
            )
        except CannotBeKeptError as found:
            console.note(f"conditions of {slot} are encoded in every step: {found}")
    return AnswerCache(answers, order) if answers else None


def fingerprint(model: LatentDiffusion, slot: str, description: Mapping[str, Any], precision: str) -> str:
    """A key that changes with any weight of the slot or of the autoencoder (and its scale), with the slot's plugin, its version,
    options and fields, the precision, and `description`, which says what the data are."""
    about = {
        "format": FORMAT,
        "weights": weights_hash(model.conditioners[slot].state_dict()),
        "autoencoder": weights_hash(model.autoencoder.state_dict()),
        "slot": model.slots[slot].to_json() if slot in model.slots else {},
        "file": _content(model.slots[slot].origin.get("file") if slot in model.slots else None),
        "fields": dict(model.conditioners.fields[slot]),
        "precision": precision,
        "data": description,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _content(file: str | None) -> str:
    """Of a plugin in a file, which has no version."""
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


class _Asking:
    """One slot, asked about items."""

    def __init__(self, model: LatentDiffusion, slot: str, data: Dataset, runtime: Runtime) -> None:
        self.model, self.slot, self.data, self.runtime = model, slot, data, runtime
        self.examiner: Examiner = model.conditioners.examiner(slot)
        self.copy: Examiner = model.conditioners.worker_copies()[slot]
        self.costly = any(True for _ in self.examiner.conditioner.parameters())

    def objection(self, most: int | None) -> str | None:
        """Why the answers of this slot cannot be kept, or None."""
        items = list(range(min(PROBED, len(self.data))))
        items = [item for item in items if self.data.size_of(item) == self.data.size_of(0)]
        try:
            rows = [row for item in items if (row := self._prepared(item)) is not None]
            if not rows:
                return f"none of the first {len(items)} samples has the condition"
            if (reason := self._unsteady(rows, items[0])) is not None:
                return reason
            answer = self._encoded(rows, items[0])
        except CannotBeKeptError as found:
            return str(found)
        size = sum(value.nbytes for value in answer.values()) // len(rows) * len(self.data)
        if most is not None and size > most:
            return f"they would take {size / 2**30:.1f} GiB; give runtime.cache a path to keep them there"
        return None

    def answers(self, items: Sequence[int]) -> Rows:
        """The ports of each item."""
        prepared = [self._prepared(item) for item in items]
        there = [row for row in prepared if row is not None]
        present = torch.tensor([row is not None for row in prepared])
        if not there:
            raise CannotBeKeptError(f"none of {len(items)} samples in a row has the condition")
        found = self._encoded(there, items[0])
        out: Rows = {}
        for name, value in found.items():
            out[name] = value.new_zeros(len(items), *value.shape[1:])
            out[name][present] = value
        return out

    def _prepared(self, item: int) -> Tensors | None:
        sample = self.data.readable(item)
        fields = slot_fields(sample, self.model.conditioners.fields[self.slot], self.slot)
        if fields is None:
            return None
        generator = random.generator(0, f"prepare/{self.slot}", item)
        before = generator.get_state()
        prepared = self.copy.prepare(fields, generator)
        if not torch.equal(generator.get_state(), before):
            raise CannotBeKeptError("its `prepare` draws at random")
        return prepared

    @torch.no_grad()
    def _encoded(self, rows: list[Tensors], item: int, *, train: bool = False) -> dict[str, Tensor]:
        collated = self.examiner.conditioner.collate(rows)
        moved = {name: value.to(self.runtime.device) for name, value in collated.items()}
        self.model.train(train)
        with self.runtime.autocast():
            answer = self.examiner.ask(moved, self._canvas(item), len(rows))
        return {p: v.float() if v.dtype == torch.float64 else v for p in PORTS if (v := _port(answer, p)) is not None}

    def _canvas(self, item: int) -> Canvas:
        canvas = self.model.canvas(self.data.size_of(item))

        def to_latent(images: Tensor) -> Tensor:
            self.costly = True
            return canvas.to_latent(images)

        return replace(canvas, to_latent=to_latent)

    def _unsteady(self, rows: list[Tensors], item: int) -> str | None:
        """Whether the slot answers in training as in evaluation, without drawing and without changing."""
        conditioner = self.examiner.conditioner
        before = _states(self.runtime.device)
        buffers = {name: value.clone() for name, value in conditioner.named_buffers()}
        trained = self._encoded(rows, item, train=True)
        if _states(self.runtime.device) != before:
            return "it draws at random in training (dropout)"
        changed = [
            (value, buffers[name]) for name, value in conditioner.named_buffers() if not value.equal(buffers[name])
        ]
        if changed:
            for value, was in changed:
                value.copy_(was)
            return "it changes as it answers"
        evaluated = self._encoded(rows, item)
        if any(not torch.equal(trained[port], evaluated[port]) for port in evaluated):
            return "it answers otherwise in training than in evaluation"
        return None


def _port(answer: Conditioning, port: str) -> Tensor | None:
    value = getattr(answer, port)
    return None if value is None else value.detach().cpu()


def _states(device: torch.device) -> list[bytes]:
    """The generators that a layer may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [bytes(state.numpy()) for state in states]


def _padded(parts: Sequence[Rows]) -> list[Rows]:
    """Tokens of different lengths at one, with a mask that says which are real."""
    lengths = {part["tokens"].shape[-2] for part in parts if "tokens" in part}
    if len(lengths) < 2:
        return list(parts)
    out = []
    for part in parts:
        tokens, mask = part["tokens"], part.get("mask")
        single = tokens.ndim == 2  # one row, without the dimension of the rows
        tokens, mask = (tokens[None], None if mask is None else mask[None]) if single else (tokens, mask)
        full = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        tokens, mask = pad_tokens(tokens, full, max(lengths))
        assert mask is not None
        out.append({**part, "tokens": tokens[0] if single else tokens, "mask": mask[0] if single else mask})
    return out


def _joined(parts: list[Rows]) -> Rows:
    return shard_store.joined(_padded(parts))


def _rows(own: Kept, items: Sequence[int]) -> Conditioning:
    rows = _padded([own.row(item) for item in items])
    return Conditioning(**{port: torch.stack([row[port] for row in rows]) for port in rows[0]})
