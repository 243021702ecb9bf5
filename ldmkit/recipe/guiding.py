"""`sample.guidance_options`: the method of guidance and its options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from ldmkit.recipe.base import Above, NotNegative, Section, Share, type_of


class AnyGuidance(Section):
    """The keys that every method has.

    `interval`: the fractions of the timesteps, from 0 (data) to 1 (noise), between which guidance is on.
    """

    type: str
    interval: tuple[Share, Share] | None = None


class PlainGuidance(AnyGuidance):
    """Classifier-free guidance. `rescale`: how far the sample's contrast is brought back to the conditional prediction's."""

    type: Literal["plain"] = "plain"
    rescale: Share = 0.0


class APG(AnyGuidance):
    """Adaptive projected guidance.

    `parallel`: the share kept of what is parallel to the prediction. `threshold`: the greatest norm of the guiding difference.
    `momentum`: of its running sum, negative to push away from the past.
    """

    type: Literal["apg"] = "apg"
    parallel: float = 0.0
    threshold: Above | None = None
    momentum: float = 0.0


class PlusPlus(AnyGuidance):
    """CFG++: a guidance from 0 to 1, with the samplers ddim (eta 0) and euler (s_churn 0)."""

    type: Literal["plus-plus"] = "plus-plus"


class PerpNeg(AnyGuidance):
    """Away from `sample.negative`, but not from what it shares with the condition. `strength`: one number, or one a negative."""

    type: Literal["perp-neg"] = "perp-neg"
    strength: NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)] = 1.0


class AutoGuidance(AnyGuidance):
    """Away from a worse model, from a run or a saved model, with the same autoencoder, slots and schedule."""

    type: Literal["autoguidance"] = "autoguidance"
    model: str
    weights: Literal["ema", "raw"] = "ema"


GuidanceOptions = Annotated[
    Annotated[PlainGuidance, Tag("plain")]
    | Annotated[APG, Tag("apg")]
    | Annotated[PlusPlus, Tag("plus-plus")]
    | Annotated[PerpNeg, Tag("perp-neg")]
    | Annotated[AutoGuidance, Tag("autoguidance")],
    type_of("plain"),
]
