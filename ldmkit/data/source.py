"""The protocol of a data source, and of a judge that reads its pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

from torch import Tensor

from ldmkit.data.sample import Info, Problem
from ldmkit.images.view import Crop, Resample

Part = Literal["train", "validation"]


@dataclass(frozen=True)
class Shards:
    """Samples in runs of `sizes`, one after the other. An epoch takes the runs in a drawn order, and the samples of `together`
    runs at a time in a drawn order: with 1, samples of one run follow each other; with all, any follows any.
    """

    sizes: tuple[int, ...]
    together: int = 1


class ViewOptions(TypedDict, total=False):
    """How a `Dataset` cuts pictures; the options of the same names there."""

    crop: Crop
    flip: bool
    views: int | None
    zoom: tuple[float, float] | None
    portion: tuple[float, float] | None
    resample: Resample


class Source(ABC):
    """Where samples come from. The constructor's keyword-only, annotated parameters are the options of a recipe.

    A source must pickle without its decoded pictures: data workers get a copy.
    """

    view_defaults: ClassVar[ViewOptions] = {}  # what a recipe that says nothing about cutting should get
    exact: bool = True  # sample `index` is always the same one; False where a library's shuffle buffer decides

    @abstractmethod
    def info(self) -> Info:
        """What there is, without decoding a picture."""

    @abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Sample `index` in [0, count), as `Field` describes it. Deterministic, its fields loaded when read."""

    @abstractmethod
    def split(self, part: Part) -> Source:
        """The samples to train on, or those held out; no picture is in both."""

    def holds_out(self) -> bool:
        """Whether ``split("validation")`` has samples. Where it has none, the training samples stand in, and that is said."""
        return True

    def shards(self) -> Shards | None:
        """Runs of samples that are cheap to read together, for the order of an epoch; None: any order is as good."""
        return None

    def sizes(self) -> Sequence[tuple[int, int]] | None:
        """(h, w) of every picture, upright, without decoding it: what `data.buckets` sorts by. None: not known."""
        return None

    def fingerprint(self) -> str:
        """Changes with the content: what is kept of these pictures (latents) is made anew. "": the options say it all."""
        return ""

    def contents(self) -> Mapping[str, str]:
        """File -> what changes with its content, of this part; nothing where the options say all there is to say.

        A run that continues compares it with what it began with.
        """
        return {}

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
