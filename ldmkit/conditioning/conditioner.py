"""The protocol a modality implements: tau_theta of the paper (arXiv 2112.10752, section 3.3)."""

from __future__ import annotations

import copy
import inspect
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image as Images
from torch import Generator, Tensor, nn
from torch.utils.data import default_collate

from ldmkit.conditioning.types import Canvas, Conditioning, ForeignStage, Ports, Tensors
from ldmkit.conditioning.widgets import Text, Widget, of_field
from ldmkit.errors import UsageError
from ldmkit.fields import NO_FIELDS, Fields
from ldmkit.images.pixels import to_pixels, to_tensor
from ldmkit.images.reader import UNKNOWN, read_field

if TYPE_CHECKING:
    from PIL.Image import Image

MANY = (str, os.PathLike, Images.Image, np.ndarray, Tensor, Mapping)  # what a list holds one of an image
RESERVED = (
    "type",
    "fields",
    "dropout",
    "lr",
    "weight_decay",
    "freeze",
    "known",
)  # a slot's own keys: no constructor may use them


class Conditioner(nn.Module, ABC):
    """Turns one modality into conditioning. The smallest one writes `reads`, `__init__`, `encode` and `null`, as below.

    `reads` (class attribute): the fields of a sample it needs.
    `aligned` (class attribute): those of them that lie pixel on pixel with `image`: cropped, flipped, resized with it.
    `emits` (set in `__init__`): the `Ports` it feeds, with their widths.
    `frozen` (set in `__init__` or on the class): submodules that are never trained.
    `options` (noted by the core): what the constructor was given; construction from it gives every shape.

    ```python
    class Depth(Conditioner):
        reads = aligned = ("depth",)

        def __init__(self, *, far: float = 10.0, features: int = 4):
            super().__init__()
            self.far, self.emits = far, Ports(concat=features)
            self.net = nn.Conv2d(1, features, 3, padding=1)

        def encode(self, prepared, canvas):
            depth = canvas.extend(prepared["depth"].to(canvas.dtype).clamp(0, self.far) / self.far)
            return Conditioning(concat=self.net(F.interpolate(depth, canvas.grid, mode="area")))

        def null(self, canvas):
            return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))
    ```

    The constructor is the schema: its keyword-only, annotated parameters are the options of a recipe. It downloads nothing and
    keeps Python values as plain attributes: they are what a data worker sees.
    """

    reads: ClassVar[tuple[str, ...]]
    aligned: ClassVar[tuple[str, ...]] = ()
    emits: Ports
    frozen: tuple[str, ...] = ()  # in eval mode, without gradient, in neither optimizer nor EMA
    known_fields: Fields = NO_FIELDS
    options: Mapping[str, Any]

    def __new__(cls, **options: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__["options"] = options
        return made

    # before training: on the class, no weights

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """Constructor options learned from data (class list, vocabulary): JSON values; a value the recipe gives wins.

        `fields` is what the data source knows of each field in `reads` (`ldmkit.data.Field`: kind, classes, names, palette,
        ignored number, range). The form without `fields` is still called.
        """
        return {}

    def load_pretrained(self) -> None:
        """Fill `frozen` submodules from outside. Called by `build`; never by `load`, on meta, or in a worker."""
        return None

    # one sample: in a data worker, on a copy without parameters, buffers and submodules

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """Tokenise, resize, degrade: CPU tensors of one sample. All randomness of a conditioner is here.

        Default: the fields of `reads` as tensors. Without a generator it is deterministic.
        """
        return {name: as_tensor(sample[name]) for name in self.reads}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """ONE value a person gave (str from the command line, PIL, array, tensor) -> what `prepare` returns.

        `size` is the (h, w) in pixels of the image to be made. Default: the value stands for the one field in `reads`; a
        conditioner of several fields takes a mapping, or a JSON object. Each field is read as the data source reads its own
        (`ldmkit.images.read_field`, told by `known_fields`): an image by its path, a class by its name.

        Raises UsageError for a value that cannot be read, or a mapping that lacks a field.
        """
        values = {self.reads[0]: value} if len(self.reads) == 1 else self._several(value)
        return self.prepare(
            {
                name: read_field(one, self.known_fields.get(name, UNKNOWN), size, aligned=name in self.aligned)
                for name, one in values.items()
            }
        )

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """Whether a list that a person gave holds one value an image; False where it is one value itself.

        Default: a list of texts, paths, images, arrays or mappings holds many; numbers, and lists of them, are one value.
        """
        return all(one is None or isinstance(one, MANY) for one in value)

    def _several(self, value: Any) -> Mapping[str, Any]:
        """A value for each field in `reads`."""
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UsageError(f"{value!r:.80} is not valid JSON: {error}") from error
        if isinstance(value, Mapping) and set(value) == set(self.reads):
            return value
        example = ", ".join(f'"{name}": ...' for name in self.reads)
        given = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise UsageError(
            f"{type(self).__name__} reads {', '.join(self.reads)} and was given {given}",
            hint=f"give a mapping with these fields, or JSON: {{{example}}}",
        )

    def collate(self, prepared: list[Tensors]) -> Tensors:
        """What `prepare` returned for each row -> one batch. Default: `default_collate`; for different lengths, `pad_stack`."""
        return dict(default_collate(prepared))

    # a batch: on the device

    @abstractmethod
    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """Deterministic in eval mode; row i depends on row i alone; spatial input is resized to `canvas.grid`, whatever it is.

        What lies pixel on pixel with the picture goes through `canvas.extend` first, so that pictures of any size can be made.
        """

    @abstractmethod
    def null(self, canvas: Canvas) -> Conditioning:
        """What stands for no condition: ONE row on every port in `emits`, of its own length; the core expands and pads."""

    def forward(self, prepared: Tensors | None, canvas: Canvas) -> Conditioning:
        """`encode`, or `null` where there is nothing: so that DDP, FSDP and compile see the call."""
        return self.null(canvas) if prepared is None else self.encode(prepared, canvas)

    # for people: optional

    def output_size(self, prepared: Tensors) -> tuple[int, int] | None:
        """The image size (h, w) that this condition of one sample implies."""
        return None

    def finish(self, images: Tensor, prepared: Tensors) -> Tensor:
        """Decoded images (b, c, h, w) in [-1, 1] -> what `sample` returns: where a condition holds pixels that are to stay.

        Called for the rows that have the condition, with their batch of it. An image that is smaller than the canvas it was
        painted on lies in its upper left corner. Default: the images as they are.
        """
        return images

    def preview(self, prepared: Tensors) -> Image | str | None:
        """One sample's condition for a person to see, in grids and reports."""
        return None

    def widget(self) -> Widget:
        """What a page shows to give this condition with: plain data (`ldmkit.conditioning.widgets`).

        What a person does with it reaches `from_user` as the text or the path that the command line would give. Default: what
        suits the one field in `reads`, by `known_fields`; else a text box.
        """
        return of_field(self.known_fields.get(self.reads[0], UNKNOWN)) if len(self.reads) == 1 else Text()

    def fidelity(self, images: Tensor, prepared: Tensors) -> Tensor | None:
        """(b,), higher is better: how well images (b, c, h, w) in [-1, 1] obey the conditions of the batch."""
        return None

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """A foreign checkpoint's conditioning stage as this conditioner, weights loaded; None = not mine."""
        return None

    # for the core

    def weightless(self) -> Self:
        """A copy without parameters, buffers and submodules: what a data worker gets, small and picklable."""
        twin = object.__new__(type(self))
        nn.Module.__init__(twin)
        own = set(twin.__dict__)
        twin.__dict__.update({name: copy.copy(value) for name, value in self.__dict__.items() if name not in own})
        twin.training = False  # not `eval`, which would look for the frozen submodules
        return twin

    def frozen_parameters(self) -> set[str]:
        """Names of the parameters below `frozen`."""
        prefixes = tuple(f"{name}." for name in self.frozen)
        return {name for name, _ in self.named_parameters() if name.startswith(prefixes)} if prefixes else set()

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for the frozen submodules, which stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def as_tensor(value: Any) -> Tensor:
    """A field as a CPU tensor: numbers and arrays as they are, pictures as float (c, h, w) in [-1, 1]."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Images.Image):
        return to_tensor(to_pixels(value, 1 if value.mode in ("1", "L") else 3))
    return torch.as_tensor(value)


def fitted(
    kind: type[Conditioner],
    options: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
    fields: Fields,
) -> Mapping[str, Any]:
    """`kind.fit`, also of a plugin that was written before it took `fields`."""
    parameters = inspect.signature(kind.fit).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return kind.fit(options, samples, fields)
    return kind.fit(options, samples)
