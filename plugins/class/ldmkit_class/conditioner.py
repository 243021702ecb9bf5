"""Class labels: one learned row a class, and one for no class (paper, section 4.3.2 and appendix E.2.1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, ForeignStage, Ports, Tensors
from ldmkit.conditioning.widgets import Choice
from ldmkit.data import NO_FIELDS, Field, Fields
from ldmkit.errors import CheckpointError, DataError, LdmkitError, RecipeError, UsageError


class ClassConditioner(Conditioner):
    """A class, by its number or its name, as one cross-attention token or as a vector.

    Args:
        classes: how many there are, or their names in the order of their numbers; `fit` learns it from the data.
        width: width of the token or vector.
        port: `tokens` (the paper's: one token, cross-attended) or `vector` (added to the time embedding).

    The null is a learned row, the last of the table. Raises RecipeError for no classes at all, or a name given twice.
    """

    reads = ("label",)

    def __init__(
        self,
        *,
        classes: int | list[str] | None = None,
        width: int = 512,
        port: Literal["tokens", "vector"] = "tokens",
    ) -> None:
        super().__init__()
        if classes is None:
            raise RecipeError("the classes are not known", hint="give `classes`, or let `fit` learn them from the data")
        self.names = None if isinstance(classes, int) else _unique(classes)
        self.count = classes if isinstance(classes, int) else len(classes)
        if self.count < 1:
            raise RecipeError(f"classes is {classes!r}; at least one class is needed")
        self.port = port
        self.emits = Ports(tokens=width, length=1) if port == "tokens" else Ports(vector=width)
        self.embedding = nn.Embedding(self.count + 1, width)

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`classes` from what the source knows (names, in the order of their ids, or how many); else from the labels.

        Raises:
            DataError: the recipe's `classes` leave out a class of the data, or no sample has a label.
        """
        known = fields.get("label", Field("label"))
        if (given := options.get("classes")) is not None:
            _check_known(given, known)
            return {}
        if known.kind == "label" and known.classes:
            return {"classes": list(known.names) if known.names else known.classes}
        labels = {_plain(label) for sample in samples if (label := sample["label"]) is not None}
        if not labels:
            raise DataError("no sample has a `label`", hint="choose data with labels, or give `fields: {label: ...}`")
        if all(isinstance(label, str) for label in labels):
            return {"classes": sorted(labels)}
        wrong = [label for label in labels if not isinstance(label, int) or label < 0]
        if wrong:
            raise DataError(f"the label {wrong[0]!r} is no class: labels are all names, or all numbers from 0 up")
        return {"classes": max(labels) + 1}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"label": () int64}; raises `DataError` for a label that is no class.

        Where both the source and the recipe name the classes, a label is matched by its name, whatever its number there.
        """
        label, theirs = _plain(sample["label"]), self._source_names
        if isinstance(label, int) and self.names is not None and theirs is not None and 0 <= label < len(theirs):
            label = theirs[label]
        return {"label": torch.tensor(self._number(label, DataError))}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A name, a number, or a number in digits (a name of that spelling goes first)."""
        names = self._shown_names
        known = isinstance(value, str) and names is not None and value in names
        if isinstance(value, str) and not known and value.strip().isdecimal():
            value = int(value)
        return {"label": torch.tensor(self._number(value, UsageError))}

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """Always: one class is no list."""
        return True

    @property
    def _source_names(self) -> tuple[str, ...] | None:
        known = self.known_fields.get("label")
        return None if known is None else known.names

    @property
    def _shown_names(self) -> Sequence[str] | None:
        """The names of the classes by number: the recipe's, else the source's where it names all."""
        if self.names is not None:
            return self.names
        theirs = self._source_names
        return theirs if theirs is not None and len(theirs) <= self.count else None

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """One row of the table for each label."""
        return self._conditioning(self.embedding(prepared["label"]), canvas)

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned last row."""
        return self._conditioning(self.embedding.weight[-1:], canvas)

    def preview(self, prepared: Tensors) -> str:
        """The class' name, or its number where it has none."""
        number, names = int(prepared["label"]), self._shown_names
        return str(number) if names is None or number >= len(names) else names[number]

    def widget(self) -> Choice:
        """A menu of the classes: their names, or their numbers where they have none."""
        named = list(self._shown_names or ())
        return Choice(names=(*named, *map(str, range(len(named), self.count))))

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """CompVis' `ClassEmbedder`; `null_class` in its parameters says which row stands for no class.

        Where that is the last row, it is no class here. Where it lies elsewhere it keeps its number and is copied to the end. A
        model without one never saw a null: its row is the mean of all.

        Raises:
            CheckpointError: the table is not in the checkpoint.
            UsageError: `null_class` is none of its rows.
        """
        if stage.target.rpartition(".")[2] != "ClassEmbedder":
            return None
        table = stage.tensors.get("embedding.weight")
        if table is None:
            raise CheckpointError("the class embedding (embedding.weight) is not in the checkpoint")
        rows, width = table.shape
        null = stage.params.get("null_class")
        if null is not None and not 0 <= null < rows:
            raise UsageError(f"null_class is {null}; the table has the rows 0 to {rows - 1}")
        if null != rows - 1:
            table = torch.cat([table, table.mean(0, keepdim=True) if null is None else table[null : null + 1]])
        conditioner = cls(
            classes=table.shape[0] - 1, width=width, port="vector" if stage.port == "vector" else "tokens"
        )
        conditioner.load_state_dict({"embedding.weight": table})
        return conditioner

    def _conditioning(self, rows: Tensor, canvas: Canvas) -> Conditioning:
        rows = rows.to(canvas.dtype)
        return Conditioning(tokens=rows[:, None]) if self.port == "tokens" else Conditioning(vector=rows)

    def _number(self, label: Any, error: type[LdmkitError]) -> int:
        label, names = _plain(label), self._shown_names
        if isinstance(label, str) and names is not None:
            if label in names:
                return names.index(label)
            near = difflib.get_close_matches(label, names, n=1)
            raise error(
                f"there is no class {label!r}; the {self.count} classes are {_some(names)}",
                hint=f"did you mean {near[0]!r}?" if near else None,
            )
        if isinstance(label, int) and 0 <= label < self.count:
            return label
        allowed = f"the number of a class, from 0 to {self.count - 1}"
        raise error(f"the label {label!r} is not {allowed}" + (", or its name" if names else ""))


def _plain(label: Any) -> Any:
    """Numbers of numpy and torch as Python's, whole floats (tables are full of them) as int."""
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    return int(float(label)) if isinstance(label, Real) and float(label).is_integer() else label


def _check_known(classes: int | list[str], known: Field) -> None:
    """Raises `DataError` for a class that the data have and the recipe does not."""
    names = [] if isinstance(classes, int) else classes
    count = classes if isinstance(classes, int) else len(classes)
    if names and known.names is not None and (missing := [name for name in known.names if name not in names]):
        raise DataError(
            f"the data have the classes {_some(missing)}, and `classes` lists {_some(names)}",
            hint="add them, or leave `classes` out: it is learned from the data",
        )
    if (not names or known.names is None) and known.classes is not None and known.classes > count:
        raise DataError(
            f"the data have {known.classes} classes, and `classes` says {count}", hint="leave `classes` out"
        )


def _unique(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"classes names {', '.join(map(repr, twice))} more than once")
    return list(names)


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
