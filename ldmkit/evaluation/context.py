"""`Evaluation`: everything costly that metrics share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ldmkit.evaluation.statistics import count_of, difference_interval, mean_interval, share_interval
from ldmkit.random import generator

if TYPE_CHECKING:
    from ldmkit.data import Dataset
    from ldmkit.latent_diffusion import LatentDiffusion

# Cached properties that sampler, steps, guidance and options change nothing of.
SHARED = frozenset(
    {
        *("items", "groups", "samples", "truth", "rows", "batch", "shuffled", "posterior"),
        *("reconstructions", "baseline", "baseline_slot"),
    }
)

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
    alone: bool = False  # whether the autoencoder alone was trained, and nothing can be sampled
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
    def groups(self) -> Tensor:
        """(n,) int64: the source image of each row. Views of one image, and repeats of a row, have the same one."""
        views = self.validation.views or 1
        return torch.tensor([item // views for item in self.items])

    @property
    def sources(self) -> int:
        """How many independent images the rows come from."""
        return count_of(self.groups)

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
            pictures.append(self.sampled(part))
        return torch.cat(pictures)

    def sampled(self, part: slice, **more: Any) -> Tensor:
        """The model's images (m, c, h, w) in [-1, 1] for the rows `part`, made now; `more` are further settings of sampling."""
        images = self.model.sample_batch(
            self.batch.select(range(part.start, part.stop)).to(self.device),
            seed=self.seed + part.start,
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            options=self.options,
            **more,
        )
        return images.float().cpu().clamp(-1, 1)

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
        """The held-out images (distinct, c, h, w) through the autoencoder and back, in [-1, 1], on the CPU."""
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

    def sampled_otherwise(self, **changes: Any) -> Evaluation:
        """The same rows with other sampling settings; what does not depend on these is not computed again."""
        other = replace(self, neighbours=None, **changes)
        for name in SHARED & set(vars(self)):
            vars(other)[name] = vars(self)[name]
        return other

    # for metrics

    def figure(
        self,
        name: str,
        value: float | Tensor,
        *,
        rows: Tensor | Sequence[int] | None = None,
        beside: Mapping[str, float | Tensor | Scores] | None = None,
        **rest: Any,
    ) -> Figure:
        """A `Figure` with this evaluation's n and seed.

        A tensor (m,) of values becomes its mean and interval; `rows` (m,) says which rows of the evaluation they belong to, by
        default the first m. So do those `beside` it, and the interval of the difference is over the rows that both have.
        Numbers that are no tensors have no interval. Units of resampling are sources: see `groups`.
        """
        beside = beside or {}
        if not isinstance(value, Tensor):
            plain = {key: _mean(other) for key, other in beside.items()}
            return Figure(
                name, value, beside=plain, **{"n": self.n, "sources": self.sources, "seed": self.seed, **rest}
            )
        own = Scores(value, _rows(value, rows))
        interval = share_interval if rest.get("unit") == "fraction" else mean_interval
        mean, span = interval(own.values, self.groups[own.rows])
        differences = {}
        for key, other in beside.items():
            if (found := self._difference(own, other)) is not None:
                differences[key] = found
        given = {
            "n": value.numel(),
            "sources": count_of(self.groups[own.rows]),
            "seed": self.seed,
            "interval": span,
        }
        means = {key: _mean(other) for key, other in beside.items()}
        return Figure(name, mean, beside=means, **{"differences": differences, **given, **rest})

    def _difference(self, own: Scores, other: float | Tensor | Scores) -> tuple[float, float] | None:
        """95 % of the mean of own minus other over the rows that both have; None where they share none."""
        if isinstance(other, int | float):  # chance, known exactly
            difference, rows = own.values.double() - other, own.rows
        else:
            pair = other if isinstance(other, Scores) else Scores(other, _rows(other, None))
            place = {int(row): index for index, row in enumerate(pair.rows)}
            both = [(index, place[int(row)]) for index, row in enumerate(own.rows) if int(row) in place]
            if not both:
                return None
            left, right = torch.tensor(both).T
            difference, rows = own.values[left].double() - pair.values[right].double(), own.rows[left]
        return difference_interval(difference, self.groups[rows])

    def _each(self, what: str, items: Any, *, scale: int = 1, total: int | None = None) -> Iterator[Any]:
        items = list(items)
        total = len(items) if total is None else total
        for done, item in enumerate(items):
            self.check()
            self.progress(what, min(done * scale, total), total)
            yield item
        self.progress(what, total, total)


@dataclass(frozen=True)
class Scores:
    """One number (m,) for each of the rows (m,) int64 of an evaluation."""

    values: Tensor
    rows: Tensor


def _rows(values: Tensor, rows: Tensor | Sequence[int] | None) -> Tensor:
    return torch.arange(len(values)) if rows is None else torch.as_tensor(rows, dtype=torch.long)


def _mean(other: float | Tensor | Scores) -> float:
    if isinstance(other, Scores):
        other = other.values
    return float(other.double().mean()) if isinstance(other, Tensor) else float(other)


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
