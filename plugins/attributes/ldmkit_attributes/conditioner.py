"""Attributes: a learned row for each word that holds, their sum as a vector or each as a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Range
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.data import NO_FIELDS, Fields
from ldmkit.errors import DataError, LdmkitError, RecipeError, UsageError
from ldmkit_attributes.words import check_known, said


class AttributesConditioner(Conditioner):
    """Any subset of a list of words, none included, as a vector or as tokens.

    Args:
        words: the words in the order of their rows; `fit` learns them from the data.
        width: width of the vector or the tokens.
        port: `vector` (added to the time embedding) or `tokens` (cross-attended: one that is always there, and one a word
            that holds).

    The order of the words given says nothing, nor does a word given twice. The null is a learned row of its own: an image of
    which nothing is known is not an image with no attribute.
    """

    reads = ("attributes",)

    def __init__(
        self,
        *,
        words: list[str] | None = None,
        width: Annotated[int, Range(gt=0)] = 128,
        port: Literal["vector", "tokens"] = "vector",
    ) -> None:
        super().__init__()
        if words is None:
            raise RecipeError("the words are not known", hint="give `words`, or let `fit` learn them from the data")
        if not words or len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise RecipeError(f"words is {words}; at least one word is needed, and each once")
        self.words, self.port = list(words), port
        self.emits = Ports(vector=width) if port == "vector" else Ports(tokens=width, length=len(words) + 1)
        self.rows = nn.Parameter(torch.randn(len(words), width))
        self.always = nn.Parameter(torch.randn(1, width))
        self.absent = nn.Parameter(torch.randn(1, width))
        if port == "vector":
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`words` from what the source knows, else those of the training part, sorted (a mapping's also where none holds).

        Raises:
            DataError: no sample has attributes, or the recipe's `words` leave out one of the data.
        """
        known, given = fields.get("attributes"), options.get("words")
        if known is not None and known.names:
            if given is not None:
                check_known(known.names, given, DataError)
            return {} if given is not None else {"words": list(known.names)}
        found: set[str] = set()
        for sample in samples:
            if (value := sample["attributes"]) is not None:
                found |= (
                    {str(word) for word in value} if isinstance(value, Mapping) else set(said(value, given, DataError))
                )
        if given is not None:
            check_known(sorted(found), given, DataError)
            return {}
        if not found:
            raise DataError("no sample has `attributes`", hint="name the data's column: `fields: {attributes: tags}`")
        return {"words": sorted(found)}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"attributes": (words,) bool}; raises `DataError` for an unknown word, with the nearest."""
        return self._prepared(sample["attributes"], DataError)

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A list of words, "a, b" or a mapping of words to 0 and 1; an empty text or list: none of them."""
        return self._prepared(value, UsageError)

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """A list of words is one value; a list of lists, mappings or arrays is many."""
        return bool(value) and not all(isinstance(one, str | int | float) for one in value)

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The vector: an MLP of the sum of the rows that hold. The tokens: each of those rows, and one that always holds."""
        held = prepared["attributes"]
        if self.port == "vector":
            summed = held.to(self.rows.dtype) @ self.rows + self.always
            return Conditioning(vector=self.mlp(summed).to(canvas.dtype))
        tokens = torch.cat([self.always, self.rows]).to(canvas.dtype).expand(held.shape[0], -1, -1)
        return Conditioning(tokens=tokens, mask=torch.cat([torch.ones_like(held[:, :1]), held], dim=1))

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned row."""
        absent: Tensor = self.absent.to(canvas.dtype)
        return Conditioning(tokens=absent[None]) if self.port == "tokens" else Conditioning(vector=absent)

    def preview(self, prepared: Tensors) -> str:
        """The words that hold."""
        held = prepared["attributes"].tolist()
        return ", ".join(word for word, holds in zip(self.words, held, strict=True) if holds) or "(none)"

    def _prepared(self, value: Any, error: type[LdmkitError]) -> Tensors:
        found = said(value, self.words, error)
        check_known(found, self.words, error)
        return {"attributes": torch.tensor([word in found for word in self.words])}
