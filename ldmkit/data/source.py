"""The protocol of a data source, and of a judge that reads its pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

from torch import Tensor

from ldmkit.data.sample import Info, Problem

Part = Literal["train", "validation"]
Crop = Literal["center", "random"]


class ViewOptions(TypedDict, total=False):
    """How a `Dataset` cuts pictures; the options of the same names there."""

    crop: Crop
    flip: bool
    views: int | None
    zoom: tuple[float, float] | None


class Source(ABC):
    """Where samples come from. The constructor's keyword-only, annotated parameters are the options of a recipe.

    A source must pickle without its decoded pictures: data workers get a copy.
    """

    view_defaults: ClassVar[ViewOptions] = {}  # what a recipe that says nothing about cutting should get

    @abstractmethod
    def info(self) -> Info:
        """What there is, without decoding a picture."""

    @abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Sample `index` in [0, count), as `Field` describes it. Deterministic, its fields loaded when read."""

    @abstractmethod
    def split(self, part: Part) -> Source:
        """The samples to train on, or those held out; no picture is in both."""

    def judge(self, field: str) -> Judge | None:
        """What reads this field back from a picture, if the source knows how."""
        return None

    def attribution(self) -> str:
        """Whose pictures these are, for the report."""
        return self.info().licence or ""

    @property
    def problems(self) -> Sequence[Problem]:
        """Files passed over so far, with the reason."""
        return ()


class Judge(ABC):
    """Says how well pictures show what was asked for. It is ours, so its figure on real pictures belongs beside each result."""

    name: ClassVar[str]
    chance: float | None = None  # what pictures of something else score, where it is known; else shuffle the samples

    @abstractmethod
    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) in [0, 1]: how well `images` (n, c, h, w) in [-1, 1] show what `samples` say; 1 is all of it."""
