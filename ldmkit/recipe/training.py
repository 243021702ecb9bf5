"""The sections of a recipe that say how it is trained, where, and how fast."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldmkit.recipe.base import Above, Count, NotNegative, PerLevel, Positive, Section

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
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
    length: PerLevel = 10_000_000_000_000

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


class Train(Section):
    """How one stage is trained. All intervals are in optimizer steps.

    `scale_lr`: the learning rate is `lr` times `batch` (the whole batch, over all parts and ranks), the released code's rule.
    `keep`: the newest checkpoints that stay, besides the one with the best validation.
    """

    steps: Positive
    batch: Positive = 64
    lr: Above = 1e-3
    scale_lr: bool = False
    optimizer: Literal["adamw", "adam", "adamw-8bit"] = "adamw"
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
        if self.optimizer == "adam" and "weight_decay" not in self.model_fields_set:
            self.weight_decay = None
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(f"optimizer adam decays no weights, and weight_decay is {self.weight_decay:g}; take adamw")
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


class Runtime(Section):
    """Where, how fast and in which precision; it changes no random draw.

    `precision`: `auto` is bf16 (fp16 on older ones) on a GPU; on a CPU the diffusion stage measures bf16 against fp32 on its own
    steps, takes it where it is faster, and the run keeps the choice; all else is fp32, which is the reference.
    `tf32`: matrix products of a CUDA device in TensorFloat-32. `channels_last`: convolutions see their channels last in memory.
    `checkpointing`: the denoiser's activations are computed again in the backward pass: less memory, about a third more time.
    `deterministic`: a CUDA device gives the same bits in every run, for some of its speed; a CPU does so anyway.
    `distributed`: what several processes hold: `ddp` a copy each, `fsdp` a shard each of the diffusion model; `auto` is `ddp`.
    `workers`: processes that read and prepare data; 0 is none, `auto` one for each core beside the first, at most 2.
    `worker_timeout`: seconds without a batch after which a data worker counts as hung.
    `threads`: of a CPU: `auto` measures on each stage's own steps how many are fastest, and the run keeps the number; a number is
    taken as it is, so that two runs have the same bits; null leaves what torch (OMP_NUM_THREADS) takes.
    `trackers`: where the numbers go besides `metrics.jsonl` and TensorBoard: wandb, mlflow, trackio, whatever Accelerate has.
    """

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    deterministic: bool = False
    distributed: Literal["auto", "ddp", "fsdp"] = "auto"
    workers: Count | Literal["auto"] = 0
    worker_timeout: Positive = 300
    threads: Positive | Literal["auto"] | None = "auto"
    cache: str = "auto"
    trackers: tuple[str, ...] = ()
