"""The methods of guidance by name: what a recipe's `sample.guidance_options` and `sample(guidance_options=...)` say.

`guidance` says how far to go, a method what is done with the branches' predictions: `plain` is classifier-free guidance,
`apg`, `plus-plus` and `perp-neg` are its variants, `autoguidance` goes away from a worse model in place of the null.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ldmkit.conditioning import Conditioning, KeptSlots
from ldmkit.diffusion import X0Predictor
from ldmkit.diffusion.objective import choose
from ldmkit.errors import UsageError
from ldmkit.guidance.apg import apg
from ldmkit.guidance.autoguidance import autoguided
from ldmkit.guidance.cfg_plus_plus import Levels, plus_plus
from ldmkit.guidance.classifier_free import Branches, ConditionalDenoiser, Interval, Weights, guided, within
from ldmkit.guidance.expressions import Guidance
from ldmkit.guidance.perp_neg import perp_neg
from ldmkit.plugins.ranges import Above, InRecipe, NotNegative, Share
from ldmkit.schedules import Schedule

Fractions = Annotated[Sequence[float] | Interval | None, InRecipe(tuple[Share, Share] | None)]

Strengths = Annotated[
    float | Sequence[float], InRecipe(NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)])
]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a method has to work with in one sampling; what costs something is a function, and called if it is needed.

    guidance: as the person wrote it. weights: over the branches, by the slots they keep (`parse`). conditional: the branch
    with every value that was given. null: the branch without those that training dropped. branch: what a branch reads.
    negatives: the conditional branch with negative values in it, one conditioning a negative. levels: the sampler's grid, for
    methods that are `on_grid`. other: a worse model's prediction of x_0, from a path or a model, and which weights.
    """

    denoiser: ConditionalDenoiser
    schedule: Schedule
    guidance: Guidance
    weights: Callable[[], Weights]
    conditional: KeptSlots
    null: Callable[[], KeptSlots]
    branch: Callable[[KeptSlots], Conditioning]
    negatives: Callable[[], Sequence[Conditioning]] = tuple
    levels: Levels | None = None
    other: Callable[[object, str], X0Predictor] | None = None

    @property
    def scale(self) -> float:
        """The guidance, where it is one number. Raises UsageError where it is not."""
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, int | float):
            raise UsageError(f"this method of guidance takes one number, and guidance is {self.guidance!r}")
        return float(self.guidance)

    def branches(self, *subsets: KeptSlots) -> Branches:
        """What these branches read."""
        return {kept: self.branch(kept) for kept in dict.fromkeys(subsets)}

    def alone(self) -> X0Predictor:
        """The conditional branch by itself."""
        conditioning = self.branch(self.conditional)
        return lambda x, t: self.denoiser(x, t, conditioning)


class Method(ABC):
    """What is done with the predictions of x_0. `interval`: the fractions of the timesteps, from 0 (data) to 1 (noise), between
    which guidance is on; outside, the conditional branch runs alone (Kynkaanniemi et al. 2024).

    replaces_null: a `negative` stands in for the null. on_grid: the method needs the sampler's noise levels.

    Raises UsageError unless the two fractions rise within [0, 1].
    """

    replaces_null: ClassVar[bool] = True
    on_grid: ClassVar[bool] = False

    def __init__(self, *, interval: Fractions = None) -> None:
        self.interval = interval
        if interval is None or isinstance(interval, Interval):
            return
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise UsageError(
                f"the guidance interval is {list(interval)}; it is two fractions of the timesteps, rising from 0 (data) to 1 "
                "(noise)"
            )

    @abstractmethod
    def __call__(self, given: Given) -> X0Predictor:
        """A guided denoiser, (x_t, t) -> x_0. Raises UsageError for a guidance that the method cannot take."""

    def _interval(self, schedule: Schedule) -> Interval | None:
        if self.interval is None or isinstance(self.interval, Interval):
            return self.interval
        return Interval.of_fraction(self.interval[0], self.interval[1], schedule)

    def _inside(self, denoiser: X0Predictor, given: Given) -> X0Predictor:
        interval = self._interval(given.schedule)
        return denoiser if interval is None else within(interval, denoiser, given.alone())


class Plain(Method):
    """Classifier-free guidance: the weighted sum of the branches (`guided`).

    rescale: how far the sample's contrast is brought back to the conditional prediction's.
    """

    def __init__(self, *, rescale: Share = 0.0, interval: Fractions = None) -> None:
        super().__init__(interval=interval)
        self.rescale = rescale

    def __call__(self, given: Given) -> X0Predictor:
        weights = given.weights()
        # Both need the conditional branch, also where its own weight is 0.
        needed = [given.conditional] if self.rescale or self.interval is not None else []
        return guided(
            given.denoiser,
            given.branches(*weights, *needed),
            weights,
            rescale=self.rescale,
            interval=self._interval(given.schedule),
        )


class APG(Method):
    """Adaptive projected guidance (`apg`).

    parallel: the share kept of what is parallel to the prediction.
    threshold: the greatest norm of the guiding difference.
    momentum: of its running sum, negative to push away from the past.
    """

    def __init__(
        self,
        *,
        parallel: float = 0.0,
        threshold: Above | None = None,
        momentum: float = 0.0,
        interval: Fractions = None,
    ) -> None:
        super().__init__(interval=interval)
        self.options: dict[str, Any] = {"parallel": parallel, "threshold": threshold, "momentum": momentum}

    def __call__(self, given: Given) -> X0Predictor:
        weights = given.weights()
        branches = given.branches(*weights, given.conditional)
        return self._inside(apg(given.denoiser, branches, weights, **self.options), given)


class PlusPlus(Method):
    """CFG++ (`plus_plus`): a guidance from 0 to 1, and a sampler whose step is DDIM's."""

    on_grid = True

    def __call__(self, given: Given) -> X0Predictor:
        if not 0 <= given.scale <= 1:
            raise UsageError(
                f"CFG++ takes a guidance from 0 to 1, and it is {given.scale:g}",
                hint="0.6 is about what guidance 7.5 is without CFG++",
            )
        assert given.levels is not None
        branches = given.branches(given.conditional, given.null())
        return self._inside(plus_plus(given.denoiser, branches, given.weights(), given.levels), given)


class PerpNeg(Method):
    """Perpendicular negatives (`perp_neg`): away from `sample.negative`, but not from what it shares with the condition.

    strength: of the negatives, one number or one each.
    """

    replaces_null = False

    def __init__(self, *, strength: Strengths = 1.0, interval: Fractions = None) -> None:
        super().__init__(interval=interval)
        self.strength = strength

    def __call__(self, given: Given) -> X0Predictor:
        negatives = given.negatives()
        count = len(negatives)
        strengths = [self.strength] * count if isinstance(self.strength, int | float) else list(self.strength)
        if not count or len(strengths) != count:
            raise UsageError(
                f"perp-neg with {count} negative{'' if count == 1 else 's'} and {len(strengths)} strengths: it needs a strength "
                "for each negative, and at least one",
                hint="give what to stay away from: negative={...}, on the command line --negative SLOT=VALUE",
            )
        positive, null = given.branch(given.conditional), given.branch(given.null())
        pairs = list(zip(negatives, strengths, strict=True))
        return self._inside(perp_neg(given.denoiser, positive, null, pairs, scale=given.scale), given)


class AutoGuidance(Method):
    """Away from a worse model under the same conditions (`autoguided`); nothing need have been dropped in training.

    model: the worse one, of the same latent space and slots: a `LatentDiffusion`, or what `ldmkit.load` reads.
    weights: which of its weights, `ema` or `raw`.
    """

    replaces_null = False

    def __init__(
        self,
        *,
        model: Annotated[object, InRecipe(str)],
        weights: Literal["ema", "raw"] = "ema",
        interval: Fractions = None,
    ) -> None:
        super().__init__(interval=interval)
        self.model, self.weights = model, weights

    def __call__(self, given: Given) -> X0Predictor:
        assert given.other is not None
        scale = given.scale
        if given.negatives():
            raise UsageError("autoguidance has no null that a negative could stand in for: leave one of the two out")
        worse = given.other(self.model, self.weights)
        return autoguided(given.alone(), worse, scale=scale, interval=self._interval(given.schedule))


METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "apg": APG,
    "plus-plus": PlusPlus,
    "perp-neg": PerpNeg,
    "autoguidance": AutoGuidance,
}


def make_method(choice: str | Mapping[str, Any] | None, methods: Mapping[str, type[Method]] = METHODS) -> Method:
    """A method by its name, or by a mapping of `type` and options: ``{type: apg, momentum: -0.5}``; without a type, plain.

    `methods` are the registered ones.

    Raises UsageError for unknown names and options, and for options out of range.
    """
    options = {"type": choice} if isinstance(choice, str) else {"type": "plain", **(choice or {})}
    try:
        return choose("guidance method", methods, options)
    except TypeError as error:  # an option without a default is missing
        raise UsageError(f"guidance method {options['type']}: {str(error).rpartition('__init__() ')[2]}") from error
