"""Numbers: Fourier features of standardised columns and a small MLP; a missing one has an embedding of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Range
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.data import NO_FIELDS, Fields
from ldmkit.errors import DataError, LdmkitError, RecipeError, UsageError
from ldmkit_numbers.values import Row, opened, row

LONGEST = 16.0  # wavelength of the slowest feature, in standard deviations; each next one is half as long


class NumbersConditioner(Conditioner):
    """One number or several, as a vector or as one cross-attention token a number.

    Args:
        columns: the names of the numbers, in their order; `fit` takes those of the data.
        mean: of each column, over the training part; `fit` measures it. Of a column in `log`, the mean of its logarithm.
        deviation: the standard deviation of each column, likewise.
        log: columns whose logarithm counts: prices, distances, doses.
        frequencies: sines and cosines a number, of wavelengths of 16, 8, 4 ... standard deviations (Tancik et al. 2020,
            arXiv 2006.10739, with octaves instead of drawn frequencies).
        width: width of the vector or the tokens.
        port: `vector` (added to the time embedding) or `tokens` (cross-attended).

    A number may be missing while others of its row are there: it then has a learned embedding, one a column. The null is
    learned too, and is not a row of missing numbers.
    """

    reads = ("number",)

    def __init__(
        self,
        *,
        columns: list[str] | None = None,
        mean: list[float] | None = None,
        deviation: list[float] | None = None,
        log: list[str] | None = None,
        frequencies: Annotated[int, Range(gt=0, le=16)] = 8,
        width: Annotated[int, Range(gt=0)] = 128,
        port: Literal["vector", "tokens"] = "vector",
    ) -> None:
        super().__init__()
        self.columns = columns if columns is not None else ["number"]
        count = len(self.columns)
        if not count or len(set(self.columns)) < count:
            raise RecipeError(f"columns is {columns}; at least one name is needed, and each once")
        if mean is None or deviation is None:
            raise RecipeError(
                "the range of the numbers is not known", hint="give `mean` and `deviation`, or let `fit` measure them"
            )
        if len(mean) != count or len(deviation) != count or not all(0 < one < math.inf for one in deviation):
            raise RecipeError(
                f"mean is {mean} and deviation {deviation}; {count} of each are needed, deviations above 0"
            )
        self.log = _logs(log, self.columns)
        self.mean, self.deviation = list(mean), list(deviation)
        self.port, self.frequencies = port, frequencies
        self.emits = Ports(vector=width) if port == "vector" else Ports(tokens=width, length=count)
        inputs = 2 * frequencies + 1
        self.weight = nn.Parameter(torch.randn(count, inputs, width) * inputs**-0.5)
        self.bias = nn.Parameter(torch.randn(count, width) * 0.5)
        self.missing = nn.Parameter(torch.randn(count, width))
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.absent = nn.Parameter(torch.randn(1, width) * 0.1)

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`columns` (the names that the source or the data's mappings give), `mean` and `deviation` of each.

        Raises:
            DataError: a row is none, a column is missing in every row, or a logarithm is asked of a number that is not positive.
        """
        values = [value for sample in samples if (value := opened(sample["number"])) is not None]
        columns = options.get("columns") or _names(values, fields)
        log = _logs(options.get("log"), columns)
        rows = [_logged(row(value, columns, DataError, "number"), columns, log, DataError) for value in values]
        mean, deviation = [], []
        for index, name in enumerate(columns):
            known = torch.tensor([value for one in rows if (value := one[index]) is not None], dtype=torch.float64)
            if not len(known):
                raise DataError(f"number: no sample has a {name}", hint="leave the column out of `columns`")
            mean.append(float(known.mean()))
            deviation.append(float(known.std(correction=0)) or 1.0)  # a constant column: any scale will do
        return {"columns": list(columns), "mean": mean, "deviation": deviation}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"number": (columns,) in standard deviations from the mean, 0 where missing; "known": (columns,) bool}."""
        return self._prepared(sample["number"], DataError)

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A number where there is one column; a mapping or JSON object by name; a list. What is not given is missing."""
        return self._prepared(value, UsageError)

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """Numbers are many values where there is one column, and one value where there are several."""
        plain = all(one is None or isinstance(one, int | float) for one in value)
        return not plain or len(self.columns) == 1

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The tokens are an MLP of each number's features; the vector one of their sum, over the root of their count."""
        features = fourier(prepared["number"].float(), self.frequencies).to(self.weight.dtype)
        hidden = torch.einsum("bnf,nfw->bnw", features, self.weight) + self.bias
        hidden = torch.where(prepared["known"][..., None], hidden, self.missing)
        if self.port == "tokens":
            return Conditioning(tokens=self.mlp(hidden).to(canvas.dtype))
        return Conditioning(vector=self.mlp(hidden.sum(1) / len(self.columns) ** 0.5).to(canvas.dtype))

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned vector, or one learned token."""
        absent = self.absent.to(canvas.dtype)
        return Conditioning(tokens=absent[None]) if self.port == "tokens" else Conditioning(vector=absent)

    def preview(self, prepared: Tensors) -> str:
        """The numbers by name; a missing one as a question mark."""
        shown = []
        for index, name in enumerate(self.columns):
            value = float(prepared["number"][index]) * self.deviation[index] + self.mean[index]
            text = f"{math.exp(value) if name in self.log else value:.4g}" if prepared["known"][index] else "?"
            shown.append(text if len(self.columns) == 1 else f"{name} {text}")
        return ", ".join(shown)

    def _prepared(self, value: Any, error: type[LdmkitError]) -> Tensors:
        values = _logged(row(value, self.columns, error, "number"), self.columns, self.log, error)
        scaled = [
            0.0 if value is None else (value - mean) / deviation
            for value, mean, deviation in zip(values, self.mean, self.deviation, strict=True)
        ]
        return {"number": torch.tensor(scaled), "known": torch.tensor([value is not None for value in values])}


def fourier(values: Tensor, frequencies: int) -> Tensor:
    """(...) -> (..., 2 frequencies + 1): the value v, sin(2 pi 2^k v / 16) and cos(2 pi 2^k v / 16) for k = 0, 1 ..."""
    rates = 2.0 * math.pi / LONGEST * 2.0 ** torch.arange(frequencies, device=values.device)
    angles = values[..., None] * rates
    return torch.cat([values[..., None], angles.sin(), angles.cos()], dim=-1)


def _names(values: list[Any], fields: Fields) -> list[str]:
    """The columns by the source's names, by the keys of mappings, or by their order."""
    if not values:
        raise DataError("no sample has a `number`", hint="name the data's column: `fields: {number: height_m}`")
    known = fields.get("number")
    if known is not None and known.names:
        return list(known.names)
    if all(isinstance(value, Mapping) for value in values):
        return list(dict.fromkeys(str(name) for value in values for name in value))
    if isinstance(values[0], list) and len(values[0]) != 1:
        return [f"number {index}" for index in range(len(values[0]))]
    return ["number"]


def _logs(log: list[str] | None, columns: list[str]) -> list[str]:
    if unknown := [name for name in log or [] if name not in columns]:
        raise RecipeError(f"log names {unknown[0]!r}; the columns are {', '.join(columns)}")
    return list(log or [])


def _logged(values: Row, columns: list[str], log: list[str], error: type[LdmkitError]) -> Row:
    out: Row = []
    for value, name in zip(values, columns, strict=True):
        if value is not None and name in log and value <= 0:
            raise error(f"number: {name} is {value:g}, and its logarithm needs a number above 0", hint="see `log`")
        out.append(math.log(value) if value is not None and name in log else value)
    return out
