"""What comes between two steps of a stage: the score of held-out data, pictures, checkpoints, the end by a signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldmkit.conditioning import Batch
from ldmkit.errors import DivergedError
from ldmkit.training.checkpointing.atomic_dir import publish
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.checkpointing.state import EARLY, TrainingState, diverged
from ldmkit.training.logging.log import StageLog
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Stop

if TYPE_CHECKING:
    from ldmkit.recipe import Train


@dataclass(frozen=True, kw_only=True)
class Between:
    """Called after each step, on every rank.

    Args:
        what: the stage in words, for whoever stops it.
        out: its log.
        score: the figure of the held-out data, as it is logged, and the same as a number of which the lowest is the best.
        pictures: called with the step, to draw what a person looks at.
    """

    what: str
    settings: Train
    checkpoints: Checkpoints
    out: StageLog
    stop: Stop
    ranks: Ranks
    score: Callable[[], tuple[dict[str, float], float]]
    pictures: Callable[[int], None] | None

    def __call__(self, state: TrainingState) -> None:
        """All that is due after `state.step` steps. Raises Interrupted where a signal came; a checkpoint is saved then."""
        settings, step = self.settings, state.step
        last = step == settings.steps
        kept = last or step % settings.checkpoint_every == 0
        score = None  # of a checkpoint: the best one stays
        if kept or step % settings.validate_every == 0:
            figures, score = self.score()
            self.out.write(step, figures)
        stopping = self.ranks.agree(self.stop)
        if stopping or kept:  # before the pictures, which take their time
            with self.out.saving(step):
                state.save(self.checkpoints, score=score)
        if stopping:
            self.stop.check(f"{self.what}, step {step} of {settings.steps}")
        drawn = last or step == EARLY or step % settings.sample_every == 0
        if self.pictures is not None and drawn:
            self.pictures(step)


def give_up(batch: Batch, state: TrainingState, checkpoints: Checkpoints, *, stage: str, what: str) -> DivergedError:
    """The error that ends a stage, with each rank's rows of the batch kept: any of them may have been the cause."""
    place = checkpoints.folder / checkpoints.ranks.own_name(f"diverged-{state.step:08d}")
    tensors = {"images": batch.images, "positions": batch.positions}
    for slot, prepared in batch.prepared.items():
        tensors |= {f"{slot}/{name}": value for name, value in (prepared or {}).items()}
    publish(place, {"batch": tensors}, {"about": {"step": state.step, "stage": stage}}, {})
    return diverged(state.step + 1, what, str(place))
