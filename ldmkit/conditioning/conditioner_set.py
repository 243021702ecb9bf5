"""`ConditionerSet`: what is the same for every conditioner, done once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ldmkit.conditioning.checks import Examiner, called, check_shapes, check_tensors
from ldmkit.conditioning.conditioner import Conditioner
from ldmkit.conditioning.dropout import Dropout
from ldmkit.conditioning.stored_null import StoredNull
from ldmkit.conditioning.types import Batch, Canvas, Conditioning, Tensors, pad_tokens
from ldmkit.errors import DataError, UsageError

CLOSE_LOOK = 100  # every so many calls, the first one included, outputs are examined closely (see `Examiner`)


class ConditionerSet(nn.Module):
    """A mapping of slot name to conditioner that gives the UNet one `Conditioning`.

    Args:
        conditioners: slot -> conditioner, in recipe order (which is the order of concat channels and of tokens).
        vector_width: the width of the UNet's time embedding; vectors are projected to it and summed.
        fields: slot -> {the conditioner's field: the sample's field}; a field that is not named keeps its name.
        dropout: the distribution over dropped subsets; default: nothing is dropped.
        origins: slot -> the plugin a conditioner is from ("ldmkit-depth 1.2"), for messages.

    Raises UsageError for a slot named ``training``.

    Tokens are padded, projected to the context width (the widest token conditioner's; no projection where equal) and joined along
    length; concat is joined along channels.
    """

    _token_projections: nn.ModuleDict
    _vector_projections: nn.ModuleDict

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner],
        *,
        vector_width: int,
        fields: Mapping[str, Mapping[str, str]] | None = None,
        dropout: Dropout | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if "training" in conditioners:
            raise UsageError("a slot cannot be named training: torch keeps the mode of a module under that name")
        self.slots = tuple(conditioners)
        self.vector_width = vector_width
        self._origins, self._calls = dict(origins or {}), 0
        self.dropout = dropout or Dropout.independent(dict.fromkeys(self.slots, 0.0))
        given = fields or {}
        self.fields: Mapping[str, Mapping[str, str]] = {
            s: {f: given.get(s, {}).get(f, f) for f in c.reads} for s, c in conditioners.items()
        }
        self.context_width = max((c.emits.tokens for c in conditioners.values()), default=0)
        self.concat_channels = sum(c.emits.concat for c in conditioners.values())
        self.has_vector = any(c.emits.vector for c in conditioners.values())
        # Written past `add_module`, which refuses slots that share a name with an attribute (`type`, `fields`): the weights
        # are then simply `conditioners.<slot>.*`. No slot starts with an underscore.
        self._modules.update(conditioners)
        self._modules["_token_projections"] = nn.ModuleDict()
        self._modules["_vector_projections"] = nn.ModuleDict()
        self._token_projections._modules.update(self._projections("tokens", self.context_width))
        self._vector_projections._modules.update(self._projections("vector", vector_width))
        for conditioner in self.values():
            for name in conditioner.frozen:
                conditioner.get_submodule(name).requires_grad_(False).eval()

    def _projections(self, port: str, width: int) -> dict[str, nn.Linear]:
        widths = {slot: getattr(conditioner.emits, port) for slot, conditioner in self.items()}
        return {slot: nn.Linear(own, width) for slot, own in widths.items() if own not in (0, width)}

    # a mapping

    def __getitem__(self, slot: str) -> Conditioner:
        if slot not in self.slots:
            raise UsageError(f"there is no slot {slot!r}; this model has {', '.join(self.slots) or 'none'}")
        conditioner = self._modules[slot]
        assert isinstance(conditioner, Conditioner)
        return conditioner

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __contains__(self, slot: object) -> bool:
        return slot in self.slots

    def keys(self) -> tuple[str, ...]:
        """The slots, in recipe order."""
        return self.slots

    def values(self) -> list[Conditioner]:
        """The conditioners, in recipe order."""
        return [self[slot] for slot in self.slots]

    def items(self) -> list[tuple[str, Conditioner]]:
        """(slot, conditioner), in recipe order."""
        return [(slot, self[slot]) for slot in self.slots]

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but frozen submodules."""
        super().train(mode)
        for conditioner in self.values():
            conditioner.train(mode)
        return self

    # for data

    @property
    def aligned(self) -> frozenset[str]:
        """Fields of a sample that lie pixel on pixel with the image."""
        return frozenset(self.fields[slot][name] for slot, c in self.items() for name in c.aligned)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The slots that the model was loaded without: absent in every sample."""
        return tuple(slot for slot, conditioner in self.items() if isinstance(conditioner, StoredNull))

    def worker_copies(self) -> dict[str, Examiner]:
        """The conditioners without weights, as data workers need them, to be asked for what they `prepare`."""
        copies: dict[str, Examiner] = {}
        for slot, conditioner in self.items():
            if slot not in self.left_out:
                copy = called(self.examiner(slot).who, "its copy for data workers", conditioner.weightless)
                copies[slot] = Examiner(slot, copy, self._origins.get(slot, ""))
        return copies

    def collate(self, images: Tensor, prepared: Sequence[Mapping[str, Tensors | None]], positions: Tensor) -> Batch:
        """Rows that `prepare` or `from_user` made (None = absent) -> a batch; absent rows are filled with a present row's.

        Args:
            images: (b, c, h, w) in [-1, 1].
            prepared: b mappings slot -> tensors of one sample.
            positions: (b,) int64.

        Raises DataError for images that are not finite: looked at here, on the CPU, where nothing waits for it.
        """
        _check_images(images, positions)
        present: dict[str, Tensor] = {}
        collated: dict[str, Tensors | None] = {}
        for slot in self.slots:
            rows = [row.get(slot) for row in prepared]
            present[slot] = torch.tensor([row is not None for row in rows], dtype=torch.bool)
            filler = next((row for row in rows if row is not None), None)
            if filler is None:
                collated[slot] = None
            else:
                collated[slot] = self._collated(slot, [filler if row is None else row for row in rows])
        return Batch(images=images, prepared=collated, present=present, positions=positions)

    def _collated(self, slot: str, rows: list[Tensors]) -> Tensors:
        who = self.examiner(slot).who
        for row in rows:
            check_tensors(who, "prepared", row)
        if type(self[slot]).collate is Conditioner.collate:
            check_shapes(who, rows)
        found = called(who, "collate", lambda: self[slot].collate(rows))
        check_tensors(who, "collated", found)
        return found

    # for the UNet

    def examiner(self, slot: str) -> Examiner:
        """Asks the slot's conditioner and names it where its output is wrong."""
        return Examiner(slot, self[slot], self._origins.get(slot, ""))

    def forward(
        self,
        prepared: Mapping[str, Tensors | None],
        present: Mapping[str, Tensor],
        canvas: Canvas,
        rows: int,
        *,
        dropped: Mapping[str, Tensor] | None = None,
        negative: Mapping[str, Tensors] | None = None,
        known: Mapping[str, Conditioning] | None = None,
        closely: bool | None = None,
    ) -> Conditioning:
        """The joined conditioning of `rows` rows.

        `present[slot]` and `dropped[slot]` (b,) bool are on the CPU, where it is decided who is asked: nothing waits for the
        device. Rows that are dropped get the slot's null. `negative[slot]`: prepared tensors of `rows` rows that stand in for
        the slot's null. `known[slot]`: what the slot returned for these rows before; it is not called again. `closely`: whether
        answers are looked at closely (see `Examiner`); default: in every hundredth call.
        """
        closely = self._calls % CLOSE_LOOK == 0 if closely is None else closely
        answers: dict[str, Conditioning] = {}
        for slot in self.slots:
            keep = present[slot].cpu()
            if dropped is not None and slot in dropped:
                keep = keep & ~dropped[slot].cpu()
            stand_in = (negative or {}).get(slot)
            answers[slot] = self._answer(
                slot, prepared[slot], keep, canvas, rows, stand_in, (known or {}).get(slot), closely
            )
        self._calls += 1
        return self._join(answers)

    def _answer(
        self,
        slot: str,
        prepared: Tensors | None,
        keep: Tensor,
        canvas: Canvas,
        rows: int,
        stand_in: Tensors | None,
        known: Conditioning | None,
        closely: bool,
    ) -> Conditioning:
        examiner = self.examiner(slot)
        training = torch.is_grad_enabled() and examiner.conditioner.training
        if prepared is not None and not training and bool(keep.all()):
            return examiner.ask(prepared, canvas, rows, closely=closely)
        if stand_in is not None:
            null = examiner.ask(stand_in, canvas, rows, closely=closely)
        else:
            null = examiner.ask(None, canvas, 1, closely=closely).expand(rows)
        if prepared is None or not bool(keep.any()):
            return _touch(null, examiner.conditioner) if training else null
        keep = keep.to(canvas.device, non_blocking=True)
        return where(keep, known or examiner.ask(prepared, canvas, rows, closely=closely), null)

    def _join(self, answers: Mapping[str, Conditioning]) -> Conditioning:
        tokens: list[Tensor] = []
        masks: list[Tensor | None] = []
        vector: Tensor | None = None
        for slot, answer in answers.items():
            if answer.tokens is not None:
                tokens.append(_project(self._token_projections, slot, answer.tokens))
                masks.append(answer.mask)
            if answer.vector is not None:
                own = _project(self._vector_projections, slot, answer.vector)
                vector = own if vector is None else vector + own
        concat = [answer.concat for answer in answers.values() if answer.concat is not None]
        return Conditioning(
            tokens=torch.cat(tokens, dim=1) if tokens else None,
            mask=_join_masks(tokens, masks),
            vector=vector,
            concat=torch.cat(concat, dim=1) if concat else None,
        )

    def finish(self, images: Tensor, batch: Batch) -> Tensor:
        """Decoded images (b, c, h, w) through `Conditioner.finish` of every slot, in recipe order, in the rows that have it."""
        for slot in self.slots:
            prepared, present = batch.prepared[slot], batch.present[slot]
            if prepared is None or type(self[slot]).finish is Conditioner.finish or not bool(present.any()):
                continue
            finished = self.examiner(slot).finish(images, prepared)
            images = torch.where(present.to(images.device)[:, None, None, None], finished, images)
        return images

    def nulls(self, canvas: Canvas) -> dict[str, Tensor]:
        """Every null, materialised as ``slot.port`` -> one row: with these a model samples without a plugin's code."""
        out: dict[str, Tensor] = {}
        for slot in self.slots:
            null = self.examiner(slot).ask(None, canvas, 1)
            for port in ("tokens", "mask", "vector", "concat"):
                value = getattr(null, port)
                if value is not None:
                    out[f"{slot}.{port}"] = value.detach()
        return out


def _check_images(images: Tensor, positions: Tensor) -> None:
    if bool(torch.isfinite(images.sum())):
        return
    bad = [int(position) for position, image in zip(positions, images, strict=True) if not image.isfinite().all()]
    if bad:  # a sum of finite numbers may overflow
        raise DataError(
            f"the images have values that are not finite (NaN or infinite), first at position {bad[0]} of the data",
            hint="look at the data source's images; `bad_samples` in the run's directory lists those left out",
        )


def _project(projections: nn.ModuleDict, slot: str, value: Tensor) -> Tensor:
    if slot not in projections:
        return value
    projected: Tensor = projections[slot](value)
    return projected


def where(keep: Tensor, answer: Conditioning, null: Conditioning) -> Conditioning:
    """`answer`, an output, in rows where `keep` (b,) is True, `null` elsewhere; tokens are padded to the longer of the two."""
    tokens, mask = answer.tokens, answer.mask
    if answer.tokens is not None and null.tokens is not None:
        length = max(answer.tokens.shape[1], null.tokens.shape[1])
        tokens, mask = pad_tokens(answer.tokens, answer.mask, length)
        null_tokens, null_mask = pad_tokens(null.tokens, null.mask, length)
        tokens = torch.where(keep[:, None, None], tokens, null_tokens.to(tokens.dtype))
        if mask is not None or null_mask is not None:
            full = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            mask = torch.where(keep[:, None], full if mask is None else mask, full if null_mask is None else null_mask)
    vector, concat = answer.vector, answer.concat
    if vector is not None and null.vector is not None:
        vector = torch.where(keep[:, None], vector, null.vector.to(vector.dtype))
    if concat is not None and null.concat is not None:
        concat = torch.where(keep[:, None, None, None], concat, null.concat.to(concat.dtype))
    return Conditioning(tokens, mask, vector, concat)


def _touch(conditioning: Conditioning, conditioner: Conditioner) -> Conditioning:
    """Joins every parameter to the graph times zero: DDP needs each of them at every step."""
    parameters = [p for p in conditioner.parameters() if p.requires_grad]
    if not parameters:
        return conditioning
    nothing = torch.stack([parameter.sum() for parameter in parameters]).sum() * 0.0
    return conditioning.map(lambda value: value if value.dtype == torch.bool else value + nothing.to(value.dtype))


def _join_masks(tokens: list[Tensor], masks: list[Tensor | None]) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    full = [
        torch.ones(value.shape[:2], dtype=torch.bool, device=value.device) if mask is None else mask
        for value, mask in zip(tokens, masks, strict=True)
    ]
    return torch.cat(full, dim=1)
