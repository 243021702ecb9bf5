"""`Evaluation`: everything costly that metrics share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ldmkit.autoencoder import Posterior
from ldmkit.conditioning import Batch, Tensors
from ldmkit.errors import DataError
from ldmkit.evaluation.images import to_tensor
from ldmkit.evaluation.results import Figure
from ldmkit.evaluation.statistics import mean_interval
from ldmkit.random import generator

if TYPE_CHECKING:
    from ldmkit.data import Dataset
    from ldmkit.latent_diffusion import LatentDiffusion

Progress = Callable[[str, int, int], None]  # what, done, total


def _silent(what: str, done: int, total: int) -> None:
    return None


def _go_on() -> None:
    return None


@dataclass
class Evaluation:
    """A model, its held-out data, and what the model makes of it.

    Row i of everything belongs together: `samples[i]` is a held-out sample, `truth[i]` its picture, `batch` its conditions,
    `generated[i]` what the model makes of these conditions with the seed `seed + i`. Nothing is selected. Where the held-out
    data have fewer than `n` pictures they are taken again, with other seeds; the first `distinct` rows have no repeats, and
    `truth` and `reconstructions` hold only these.
    """

    model: LatentDiffusion
    train: Dataset
    validation: Dataset
    n: int = 512
    seed: int = 0
    sampler: str | None = None  # this and the next three: None = what the model was saved with
    steps: int | None = None
    guidance: float | Mapping[str, float] | str | None = None
    options: Mapping[str, Any] | None = None  # of the sampler
    chunk: int = 64  # pictures at a time; changes no number beyond rounding
    progress: Progress = _silent
    check: Callable[[], None] = _go_on  # called between chunks; raises to stop the evaluation
    neighbours: list[tuple[int, float]] | None = (
        None  # row -> nearest training item, grey levels away; once it was measured
    )

    # the held-out data

    @cached_property
    def items(self) -> list[int]:
        """The validation item behind each row: a permutation of finite data, the first n of endless data."""
        total = self.validation.count
        if total is None:
            return list(range(self.n))
        order = torch.randperm(total, generator=generator(self.seed, "evaluation", 0)).tolist()
        return [order[row % total] for row in range(self.n)]

    @property
    def distinct(self) -> int:
        """How many of the first rows are different pictures."""
        return len(set(self.items))

    @cached_property
    def samples(self) -> list[Mapping[str, Any]]:
        """The held-out sample of each row."""
        loaded = {}
        for item in self._each("reading held-out pictures", dict.fromkeys(self.items)):
            loaded[item] = self.validation.readable(item)
        return [loaded[item] for item in self.items]

    @cached_property
    def truth(self) -> Tensor:
        """The held-out pictures (distinct, c, h, w) in [-1, 1]."""
        return torch.stack([sample["image"] for sample in self.samples[: self.distinct]])

    @cached_property
    def rows(self) -> list[dict[str, Tensors | None]]:
        """What each slot's `prepare` makes of each row's sample, None where the sample has no such condition.

        Without a generator, as when sampling: no augmentation.
        """
        workers = self.model.conditioners.worker_copies()
        rows: list[dict[str, Tensors | None]] = []
        for sample in self.samples:
            row: dict[str, Tensors | None] = {}
            for slot in self.model.conditioners:
                fields = None
                if slot in workers:  # those that the model was loaded without are absent
                    fields = condition_fields(sample, self.model.conditioners.fields[slot], slot)
                row[slot] = None if fields is None else workers[slot].prepare(fields)
            rows.append(row)
        return rows

    @cached_property
    def batch(self) -> Batch:
        """The conditions of all rows, prepared and collated, on the CPU."""
        images = torch.stack([sample["image"] for sample in self.samples])
        return self.model.conditioners.collate(images, self.rows, torch.arange(self.n))

    @cached_property
    def shuffled(self) -> Tensor:
        """(n,) int64: the row whose conditions stand in for row i's. No row keeps its own: one random cycle."""
        order = torch.randperm(self.n, generator=generator(self.seed, "shuffle", 0))
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        return partner

    def training_pictures(self, count: int, small: Callable[[Tensor], Tensor]) -> tuple[list[int], Tensor]:
        """At most `count` items of the training data, drawn without selection, and their pictures (m, d) reduced by `small`.

        Reduced one chunk at a time: the pictures themselves may not fit into memory.
        """
        train = self.train.at_one_size()
        total = train.count
        if total is None:
            items = list(range(count))
        else:
            items = torch.randperm(total, generator=generator(self.seed, "training", 0))[:count].tolist()
        reduced = []
        for part in self.chunks("reading training pictures", len(items)):
            reduced.append(small(torch.stack([train.readable(item)["image"] for item in items[part]])))
        return items, torch.cat(reduced)

    # what the model makes of it

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def chunks(self, what: str, total: int) -> Iterator[slice]:
        """Slices that cover `total` rows; reports progress and answers a request to stop in between."""
        for start in self._each(what, range(0, total, self.chunk), scale=self.chunk, total=total):
            yield slice(start, min(start + self.chunk, total))

    @cached_property
    def generated(self) -> Tensor:
        """The model's pictures (n, c, h, w) in [-1, 1] for the conditions of each row."""
        pictures = []
        for part in self.chunks("sampling", self.n):
            batch = self.batch.select(range(part.start, part.stop)).to(self.device)
            images = self.model.sample_batch(
                batch,
                seed=self.seed + part.start,
                sampler=self.sampler,
                steps=self.steps,
                guidance=self.guidance,
                options=self.options,
            )
            pictures.append(images.float().cpu().clamp(-1, 1))
        return torch.cat(pictures)

    @cached_property
    def posterior(self) -> Posterior:
        """What the encoder says about the held-out pictures (distinct, c, h, w), unscaled, on the CPU."""
        means, logvars = [], []
        with torch.no_grad():
            for part in self.chunks("encoding", len(self.truth)):
                found = self.model.autoencoder.posterior(self.truth[part].to(self.device))
                means.append(found.mean.float().cpu())
                if found.logvar is not None:
                    logvars.append(found.logvar.float().cpu())
        return Posterior(torch.cat(means), torch.cat(logvars) if logvars else None)

    @cached_property
    def reconstructions(self) -> Tensor:
        """The held-out pictures through the autoencoder and back: the bound of everything painted in its latent space."""
        pictures = []
        autoencoder = self.model.autoencoder
        with torch.no_grad():
            for part in self.chunks("decoding", len(self.truth)):
                latents = autoencoder.draw(Posterior(self.posterior.mean[part].to(self.device)))  # the mode, scaled
                pictures.append(autoencoder.decode(latents).float().cpu().clamp(-1, 1))
        return torch.cat(pictures)

    def encoded(self, batch: Batch) -> Batch:
        """`batch` of all rows with its latents beside it, so that the loss need not encode again."""
        rows = torch.arange(self.n) % self.distinct
        latents = {"mean": self.posterior.mean[rows]}
        if self.posterior.logvar is not None:
            latents["logvar"] = self.posterior.logvar[rows]
        return replace(batch, latents=latents)

    @cached_property
    def baseline(self) -> Tensor | None:
        """Bicubic enlargement (n, c, h, w) of a condition that is a smaller picture; None where no slot has one."""
        slot = self.baseline_slot
        if slot is None:
            return None
        examiner = self.model.conditioners.examiner(slot)
        channels, height, width = self.truth.shape[1:]
        pictures = []
        for row in self.rows:
            prepared = row[slot]
            if prepared is None:
                return None
            small = examiner.preview(prepared)
            assert isinstance(small, Image.Image)
            pictures.append(to_tensor(small.resize((width, height), Image.Resampling.BICUBIC), channels))
        return torch.stack(pictures)

    @cached_property
    def baseline_slot(self) -> str | None:
        """The slot whose condition implies the size of the picture (a low-resolution picture), if there is one."""
        for slot in self.model.conditioners:
            prepared, examiner = self.rows[0][slot], self.model.conditioners.examiner(slot)
            if prepared is None or examiner.output_size(prepared) is None:
                continue
            if isinstance(examiner.preview(prepared), Image.Image):
                return slot
        return None

    # for metrics

    def figure(self, name: str, value: float | Tensor, **rest: Any) -> Figure:
        """A `Figure` with this evaluation's n and seed; a tensor (n,) of values becomes its mean and interval."""
        if isinstance(value, Tensor):
            rest.setdefault("n", value.numel())
            value, rest["interval"] = mean_interval(value)
        return Figure(name, value, **{"n": self.n, "seed": self.seed, **rest})

    def _each(self, what: str, items: Any, *, scale: int = 1, total: int | None = None) -> Iterator[Any]:
        items = list(items)
        total = len(items) if total is None else total
        for done, item in enumerate(items):
            self.check()
            self.progress(what, min(done * scale, total), total)
            yield item
        self.progress(what, total, total)


def condition_fields(sample: Mapping[str, Any], fields: Mapping[str, str], slot: str) -> dict[str, Any] | None:
    """What a conditioner reads of a sample: its own field names -> values; None where one of them is absent.

    `fields` maps the conditioner's field to the sample's. A field the sample has no key for is a `DataError`.
    """
    out = {"image": sample["image"]}
    for name, key in fields.items():
        if key not in sample:
            raise DataError(
                f"slot {slot} reads the field {key!r}; the data have {', '.join(sample)}",
                hint=f"choose other data, or map a field: conditioners.{slot}.fields: {{{name}: ...}}",
            )
        if sample[key] is None:
            return None
        out[name] = sample[key]
    return out
