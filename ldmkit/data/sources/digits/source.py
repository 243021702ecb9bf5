"""`digits`: the handwritten digits that scikit-learn ships inside its wheel, with their labels."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmkit.data.sample import Info, Sample
from ldmkit.data.source import Judge, Part, Source
from ldmkit.data.sources.photos import package_folder
from ldmkit.fields import Field

NAMES = tuple("0123456789")
LICENCE = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, CC BY 4.0"
)


class DigitsSource(Source):
    """1,797 digits of 8 x 8 pixels, 17 greys, one channel; every fifth of each class is held out (355 in all).

    The `Dataset` enlarges them smoothly to the size asked for. `label` is the digit.
    """

    def __init__(self) -> None:
        self.rows: NDArray[np.intp] = _part("train")

    def split(self, part: Part) -> DigitsSource:
        """Four fifths of each class, or the fifth held out."""
        twin = copy.copy(self)
        twin.rows = _part(part)
        return twin

    def info(self) -> Info:
        """1,442 digits to train on or 355 held out, in ten classes."""
        fields = {"image": Field("image"), "label": Field("label", classes=10, names=NAMES)}
        return Info(len(self.rows), fields, channels=1, licence=LICENCE)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        return Sample(
            {"image": lambda: Image.fromarray(load()[0][row]), "label": lambda: int(load()[1][row])},
            name=f"digits/{row}",
        )

    def judge(self, field: str) -> Judge | None:
        """A classifier fitted on the digits that are trained on."""
        if field != "label":
            return None
        from ldmkit.data.sources.digits.judge import DigitJudge

        return DigitJudge(self.split("train"))

    def attribution(self) -> str:
        """Whose digits these are."""
        return f"{LICENCE}, from scikit-learn"


@cache
def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (1797, 8, 8) uint8 and labels (1797,). Read from the wheel's own table; scikit-learn itself is not imported."""
    path = package_folder("sklearn") / "datasets" / "data" / "digits.csv.gz"
    table: NDArray[Any] = np.loadtxt(path, delimiter=",", dtype=np.int64)
    pixels = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return pixels, table[:, 64]


@cache
def _part(part: Part) -> NDArray[np.intp]:
    labels = load()[1]
    rank = np.zeros(len(labels), dtype=np.int64)  # which of its class a digit is
    for label in range(10):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    return np.flatnonzero((rank % 5 == 4) == (part == "validation"))
