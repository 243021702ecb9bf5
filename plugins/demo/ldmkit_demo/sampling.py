"""One click: what the page asked for -> images, step by step. Loads no gradio."""

from __future__ import annotations

import queue
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ldmkit import LatentDiffusion, LdmkitError, UsageError
from ldmkit.latent_diffusion import to_pil

PAUSE = 0.2  # seconds between two images of the way there
MOST_IMAGES = 16
MOST_STEPS = 1000
MOST_PIXELS = 2048 * 2048  # of one image that a condition implies


class Condition(Protocol):
    """What one slot was given."""

    @property
    def value(self) -> str: ...
    @property
    def shown(self) -> str: ...


@dataclass(frozen=True)
class Request:
    """What the page asks of a model; what is None or missing is as the model was saved."""

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    count: int = 4
    steps: int = 50
    sampler: str = "ddim"
    guidance: float | dict[str, float] | str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for a number out of its range: what comes from a page can be anything."""
        for name, value, most in (("count", self.count, MOST_IMAGES), ("steps", self.steps, MOST_STEPS)):
            if not 1 <= value <= most:
                raise UsageError(f"{name} lies from 1 to {most} here; given: {value}")
        if not 0 <= self.seed < 2**53:
            raise UsageError(f"the seed is a whole number from 0 up; given: {self.seed}")

    def command(self, run: str, files: Sequence[str] = (), weights: str = "ema") -> str:
        """The command line that makes the same images of the same model."""
        words = ["ldmkit", "sample", run]
        for slot, condition in self.conditions.items():
            words += ["-c", f"{slot}={condition.shown}"]
        words += ["-n", str(self.count), "--sampler", self.sampler, "--steps", str(self.steps)]
        if isinstance(self.guidance, dict):
            words += [w for slot, scale in self.guidance.items() for w in ("--guidance", f"{slot}={scale:g}")]
        elif self.guidance is not None:
            words += ["--guidance", self.guidance if isinstance(self.guidance, str) else f"{self.guidance:g}"]
        words += ["--seed", str(self.seed)]
        words += ["--weights", weights] * (weights != "ema")
        words += [word for file in files for word in ("-p", file)]
        return shlex.join(words)


@dataclass(frozen=True)
class Frame:
    """What the page shows at one moment."""

    done: int = 0
    total: int = 0
    images: tuple[Image.Image, ...] = ()
    asked: Mapping[str, Image.Image | str] = field(default_factory=dict)  # slot -> the condition as the model reads it
    notes: tuple[str, ...] = ()
    error: str | None = None
    seconds: float | None = None  # when all is done


class _StoppedError(Exception):
    """The person went away, or asked for something else."""


def frames(model: LatentDiffusion, request: Request) -> Iterator[Frame]:
    """The way there: the x_0 predicted so far, decoded, then the images. An error is a frame too, never raised."""
    ready: queue.Queue[Frame | None] = queue.Queue()
    gone = threading.Event()

    def work() -> None:
        try:
            _sample(model, request, ready.put, gone)
        except _StoppedError:
            pass
        finally:
            ready.put(None)

    thread = threading.Thread(target=work, name="sampling", daemon=True)
    thread.start()
    try:
        while (frame := ready.get()) is not None:
            yield frame
    finally:
        gone.set()
        thread.join()


def _sample(model: LatentDiffusion, request: Request, show: Callable[[Frame], None], gone: threading.Event) -> None:
    start = time.perf_counter()
    frame = Frame(total=request.steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            request.check()
            asked, size = previews(model, request)
            frame = replace(frame, asked=asked, notes=_said(caught))
            show(frame)
            images = model.sample(
                {slot: condition.value for slot, condition in request.conditions.items()} or None,
                count=request.count,
                sampler=request.sampler,
                steps=request.steps,
                guidance=request.guidance,
                seed=request.seed,
                callback=_Way(model, frame, size, show, gone),
            )
        except LdmkitError as error:
            show(replace(frame, error=str(error)))
            return
        except _StoppedError:
            raise
        except Exception as error:
            show(replace(frame, error=f"internal error: {type(error).__name__}: {error}"))
            return
    assert isinstance(images, list)
    seconds = time.perf_counter() - start
    show(replace(frame, done=request.steps, images=tuple(images), notes=_said(caught), seconds=seconds))


class _Way:
    """A sampler's callback: shows the x_0 predicted in a step, a few times a second."""

    def __init__(
        self,
        model: LatentDiffusion,
        frame: Frame,
        size: tuple[int, int],
        show: Callable[[Frame], None],
        gone: threading.Event,
    ) -> None:
        self.model, self.frame, self.size, self.show, self.gone = model, frame, size, show, gone
        self.shown = 0.0

    def __call__(self, done: int, total: int, noisy: Tensor, clean: Tensor) -> None:
        if self.gone.is_set():
            raise _StoppedError
        if done == total or time.perf_counter() - self.shown < PAUSE:
            return
        with torch.no_grad():
            decoded = self.model.autoencoder.decode(clean)[..., : self.size[0], : self.size[1]]
        self.show(replace(self.frame, done=done, total=total, images=tuple(to_pil(decoded.clamp(-1, 1)))))
        self.shown = time.perf_counter()


def previews(model: LatentDiffusion, request: Request) -> tuple[dict[str, Image.Image | str], tuple[int, int]]:
    """Each condition as the model reads it, and the size (h, w) of the images. Raises what `from_user` does."""
    shown: dict[str, Image.Image | str] = {}
    size = model.size
    for slot, condition in request.conditions.items():
        conditioner: Any = model.conditioners[slot]
        prepared = conditioner.from_user(condition.value, model.size)
        implied = conditioner.output_size(prepared)
        if implied is not None and implied[0] * implied[1] > MOST_PIXELS:
            raise UsageError(
                f"{slot} asks for an image of {implied[0]} x {implied[1]} pixels, and this page makes up to {MOST_PIXELS}",
                hint="on the command line there is no such bound: ldmkit sample",
            )
        size = implied or size
        preview = conditioner.preview(prepared)
        shown[slot] = condition.value if preview is None else preview
    return shown, size


def _said(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """What a person is told, once each: a plugin's own warnings."""
    texts = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return tuple(dict.fromkeys(texts))
