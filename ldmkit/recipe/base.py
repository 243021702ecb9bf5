"""What every section of a recipe is: strict, with fixed keys, without infinities."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping with fixed keys: nothing unknown, nothing converted, no infinities."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(field.alias or name for name, field in cls.model_fields.items())


class Component(Section):
    """A section of which some keys are the core's, and the rest are the options of what `type` names."""

    model_config = ConfigDict(extra="allow")

    type: str

    @property
    def options(self) -> dict[str, Any]:
        """The component's own options, JSON values: those written down, and the defaults where they are known."""
        return dict(self.model_extra or {})
