"""The sections of a recipe that say how it is trained, where, and how fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ldmkit.plugins.ranges import Above, Count, Decay, NotNegative, Positive
from ldmkit.recipe.base import Component, Section
from ldmkit.recipe.core_schema import RuntimeKeys

PerCycle = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
Width = Annotated[float, Field(gt=0.0, lt=0.2886)]  # 1 / sqrt(12): the width of a flat average over all steps


class LambdaSchedule(Section):
    """The released code's learning-rate schedules, as factors of `lr`; they replace `warmup` and `decay`.

    A cycle of `length` steps rises linearly from `start` to `high` over its first `warmup` steps, then falls to `low`: straight
    to the cycle's end (`lambda-linear`), or on a cosine from the end of the warm-up on (`lambda-cosine`). Lists of numbers give
    several cycles, one after the other; the end of the last one is held.
    """

    type: Literal["lambda-linear", "lambda-cosine"]
    warmup: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = 10_000
    start: NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)] = 1e-6
    high: NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)] = 1.0
    low: NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)] = 1.0
    length: PerCycle = 10_000_000_000_000

    @model_validator(mode="after")
    def _cycles(self) -> Self:
        given = self.model_dump(exclude={"type"})
        numbers = {key: len(value) for key, value in given.items() if isinstance(value, tuple) and len(value) > 1}
        if len(set(numbers.values())) > 1:
            raise ValueError(
                "the lists say how many cycles there are, and differ: "
                + ", ".join(f"{k} has {n}" for k, n in numbers.items())
            )
        return self


class PostHoc(Section):
    """Averages of weights whose length is chosen after training (Karras et al. 2024, section 3); `ldmkit ema` makes them.

    `sigma_rel`: the lengths of the two averages that are tracked, as shares of the training. `every`: steps between the
    snapshots of both that are kept, each as large as the model.
    """

    sigma_rel: tuple[Width, Width] = (0.05, 0.1)
    every: Positive = 500


class Optimizer(Component):
    """What moves the weights: a name, or a mapping of `type` and options. It gets `betas` and `weight_decay` beside them."""

    type: str = "adamw"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


class Train(Section):
    """How one stage is trained. All intervals are in optimizer steps.

    `scale_lr`: the learning rate is `lr` times `batch` (the whole batch, over all parts and ranks), the released code's rule.
    `keep`: the newest checkpoints that stay, besides the one with the best validation.
    """

    steps: Positive
    batch: Positive = 64
    lr: Above = 1e-3
    scale_lr: bool = False
    optimizer: Optimizer = Field(default_factory=Optimizer)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NotNegative | None = 0.01
    warmup: Count = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    lr_schedule: LambdaSchedule | None = None
    ema: Decay | None = 0.9999
    post_hoc: PostHoc | None = None
    clip: Above | None = 1.0
    accumulate: Positive = 1
    log_every: Positive = 10
    sample_every: Positive = 200
    checkpoint_every: Positive = 500
    validate_every: Positive = 200
    keep: Positive = 2

    @property
    def rate(self) -> float:
        """The learning rate before any schedule."""
        return self.lr * self.batch if self.scale_lr else self.lr

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer.type == "adam" and "weight_decay" not in self.model_fields_set:
            self.weight_decay = None
        if self.optimizer.type == "adam" and self.weight_decay:
            raise ValueError(
                f"optimizer adam has no weight decay, and weight_decay is {self.weight_decay:g}; take adamw"
            )
        if self.lr_schedule is not None and (self.warmup or self.decay != "constant"):
            raise ValueError(f"{self.lr_schedule.type} has its own warm-up and decay; leave out warmup and decay")
        return self


class AutoencoderTrain(Train):
    """The autoencoder's stage: the released code's betas, no decay of weights, and no average of them unless asked for.

    `crop`: train on random windows of this many pixels a side instead of whole pictures.
    """

    crop: Positive | None = None
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    weight_decay: NotNegative | None = 0.0
    ema: Decay | None = None
    post_hoc: None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.accumulate > 1:
            raise ValueError(
                "the autoencoder's stage takes each batch whole: the adversarial weight and the codes in use are those of all "
                "its pictures; leave accumulate out, and take a smaller batch or crop, or more processes"
            )
        return self


class Runtime(RuntimeKeys):
    """Where, how fast and in which precision; it changes no random draw.

    `distributed`: what several processes hold: `ddp` a copy each, `fsdp` a shard each of the diffusion model; `auto` is `ddp`.
    `trackers`: where the numbers go besides `metrics.jsonl` and TensorBoard: wandb, mlflow, trackio, whatever Accelerate has.
    """

    distributed: Literal["auto", "ddp", "fsdp"] = "auto"
    cache: str = "auto"
    trackers: tuple[str, ...] = ()
