"""Numbers with a range, for the annotations of options. Loads no torch.

    def __init__(self, *, features: Positive = 4, dropout: Share = 0.0): ...

Any `Annotated[int, Field(gt=0)]` of pydantic's does; these are the ones that occur again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Portion = Annotated[float, Field(gt=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Above = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


@dataclass(frozen=True)
class InRecipe:
    """`Annotated[object, InRecipe(str)]`: what a recipe may say, where Python may hand in more."""

    annotation: object
