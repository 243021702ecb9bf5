"""Everything that a stage must remember, and nothing else: weights, averages, optimizers, counters.

ShuffledOrder, augmentation, noise and dropout are functions of (seed, purpose, position), so no generator is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, DivergedError
from ldmkit.messages import tensor_differences
from ldmkit.training.buffer_guard import Running
from ldmkit.training.checkpointing.checkpoints import Checkpoint, Checkpoints
from ldmkit.training.ema import EMA
from ldmkit.training.optim import Optimization
from ldmkit.training.parallel.shards import placed
from ldmkit.training.posthoc import PostHoc

EARLY = 20  # the step of a first picture, long before `sample_every`: somebody is waiting for it
PATIENCE = 3  # updates in a row that may be skipped because a gradient was not finite


@dataclass
class TrainingState:
    """What is trained and how far it is.

    Attributes:
        modules: name -> module whose weights are saved as ``NAME.safetensors``; frozen parameters are left out.
        optimizers: name -> optimizer, saved as ``NAME-optimizer.safetensors``.
        ema: the average, saved as ``ema.safetensors``.
        post_hoc: two averages to make others of, saved as ``post-hoc.safetensors``.
        scaler: of the loss, in fp16.
        step: optimizer steps done, skipped ones included.
        position: samples consumed.
        skipped: updates left out in all, and in a row up to now.
        deferred: whether updates are left out on the device, and counted when `look` is called: nothing waits in between.
            Averages then follow in any case, towards weights that stayed where they were.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimization]
    ema: EMA | None = None
    post_hoc: PostHoc | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    step: int = 0
    position: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    deferred: bool = False
    _unread: Unread = field(init=False, repr=False)
    _in_a_row: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _running: Running = field(init=False, repr=False)
    _spoilt: bool = field(default=False, init=False, repr=False)  # whether an update of this step was skipped

    def __post_init__(self) -> None:
        self._running, self._unread = Running(self.modules.values()), Unread()

    # one update

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss` (), scaled in fp16."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, name: str, *, clip: float | None) -> tuple[bool, Tensor]:
        """One step of the optimizer `name`; skipped where the gradient is not finite. Returns (done, gradient norm ()).

        One such gradient in the moments of Adam would spoil the weights for ever.
        """
        optimization = self.optimizers[name]
        self.scaler.unscale_(optimization.optimizer)
        norm = optimization.gradient_norm(clip)
        good = bool(torch.isfinite(norm))
        if good:
            self.scaler.step(optimization.optimizer)
        searching = self.scaler.is_enabled() and not good and self.scaler.get_scale() > 1.0
        self.scaler.update()
        self.skipped += not good
        self._spoilt |= not good
        if not searching:  # fp16 finds its scale by trial
            before = self._in_a_row.get(name, self.skipped_in_a_row)
            self._in_a_row[name] = 0 if good else before + 1
            # One side's good updates do not hide the other's bad ones.
            self.skipped_in_a_row = max(self._in_a_row.values())
        return good, norm

    def defer_update(self, name: str, *, clip: float | None) -> tuple[Tensor, Tensor]:
        """The same where `deferred`: (done () bool, gradient norm), both still on the device."""
        optimization = self.optimizers[name]
        norm = optimization.gradient_norm(clip)
        good = torch.isfinite(norm)
        optimization.step(good)
        self._unread.add(good)
        return good, norm

    def look(self) -> bool:
        """Whether `defer_update` has left any out since the last time; waits for the device."""
        before = self.skipped
        self.skipped, self.skipped_in_a_row = self._unread.read(self.skipped, self.skipped_in_a_row)
        return self.skipped > before

    def average(self) -> None:
        """The averages follow the weights, after an update that was made."""
        if self.ema is not None:
            self.ema.update()
        if self.post_hoc is not None:
            self.post_hoc.update()

    @property
    def diverged(self) -> bool:
        """Whether too many updates in a row were skipped."""
        return self.skipped_in_a_row >= PATIENCE

    def advance(self, samples: int) -> None:
        """One optimizer step is over. What its forward pass spoilt, if its update was skipped, is what it was before."""
        if self.deferred:
            self._running.mend_on_the_device()
        elif self._spoilt:
            self._running.mend()
        self._running.keep()
        self._spoilt = False
        self.step += 1
        self.position += samples

    # on disk

    def save(self, checkpoints: Checkpoints, *, score: float | None = None) -> None:
        """Publishes a checkpoint of this step."""
        self.look()
        tensors = {name: trained_tensors(module) for name, module in self.modules.items()}
        tensors |= {f"{name}-optimizer": o.tensors() for name, o in self.optimizers.items() if o.groups}
        if self.ema is not None:
            tensors["ema"] = self.ema.tensors()
        if self.post_hoc is not None:
            tensors["post-hoc"] = self.post_hoc.tensors()
        checkpoints.save(self.step, tensors, self._counters(), score=score)

    def _counters(self) -> dict[str, Any]:
        counters = {name: getattr(self, name) for name in ("step", "position", "skipped", "skipped_in_a_row")}
        return {
            **counters,
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "post_hoc_updates": 0 if self.post_hoc is None else self.post_hoc.updates,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint.

        Raises:
            CheckpointError: it does not fit what is trained.
        """
        for name, module in self.modules.items():
            load_trained(module, checkpoint.tensors(name), where=str(checkpoint.path))
        for name, optimization in self.optimizers.items():
            if optimization.groups and checkpoint.has(f"{name}-optimizer"):
                optimization.load(checkpoint.tensors(f"{name}-optimizer"))
        counters = checkpoint.state
        if self.ema is not None and checkpoint.has("ema"):
            self.ema.load(checkpoint.tensors("ema"), updates=int(counters["ema_updates"]))
        elif self.ema is not None:  # an average that was switched on later starts from the weights as they are
            self.ema = EMA(self.ema.live, decay=self.ema.decay)
        if self.post_hoc is not None and checkpoint.has("post-hoc"):
            self.post_hoc.load(checkpoint.tensors("post-hoc"), updates=int(counters["post_hoc_updates"]))
        if self.scaler.is_enabled() and counters["scaler"]:
            self.scaler.load_state_dict(counters["scaler"])
        for name in ("step", "position", "skipped", "skipped_in_a_row"):
            setattr(self, name, int(counters[name]))
        self._running = Running(self.modules.values())


class Unread:
    """Whether updates were made, by tensors on the device that nobody has read yet."""

    def __init__(self) -> None:
        self._good: list[Tensor] = []

    def add(self, good: Tensor) -> None:
        """`good` () bool of the next update."""
        self._good.append(good)

    def read(self, skipped: int, in_a_row: int) -> tuple[int, int]:
        """Both counters after these updates; in a row is PATIENCE where it was that at any time."""
        made = torch.stack(self._good).tolist() if self._good else []
        self._good.clear()
        for good in made:
            skipped += not good
            if in_a_row < PATIENCE:  # too many in a row end the stage, whatever came after them
                in_a_row = 0 if good else in_a_row + 1
        return skipped, in_a_row


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's state without frozen parameters."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Loads what `trained_tensors` gave.

    Raises:
        CheckpointError: names or shapes differ.
    """
    expected = trained_tensors(module)
    if wrong := tensor_differences(expected, tensors):
        raise CheckpointError(f"the checkpoint does not fit the model: {wrong}", where=where)
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(placed(tensors[name], value))


def diverged(step: int, what: str, saved: str) -> DivergedError:
    """The DivergedError that ends a stage whose gradients stay infinite."""
    return DivergedError(
        f"the gradient of {what} was not finite {PATIENCE} times in a row, up to step {step}",
        hint=f"a lower `lr`, a longer `warmup` or `precision: fp32` helps; the batch is saved in {saved}, the last "
        "checkpoint before is intact",
    )
