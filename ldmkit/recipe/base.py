"""What every section of a recipe is: strict, with fixed keys, without infinities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Above = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
PerLevel = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]


class Section(BaseModel):
    """A mapping with fixed keys: nothing unknown, nothing converted, no infinities."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(field.alias or name for name, field in cls.model_fields.items())


class Component(Section):
    """A section of which some keys are the core's, and the rest are the options of what `type` names."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The component's own options, JSON values."""
        return dict(self.model_extra or {})


def type_of(default: str) -> Discriminator:
    """Chooses a section's model by its `type`."""

    def choose(value: Any) -> str:
        kind = value.get("type", default) if isinstance(value, Mapping) else getattr(value, "type", default)
        return str(kind)

    return Discriminator(choose)
