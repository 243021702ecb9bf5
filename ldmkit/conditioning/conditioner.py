"""The protocol a modality implements: tau_theta of the paper (arXiv 2112.10752, section 3.3)."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import default_collate

from ldmkit.conditioning.types import Canvas, Conditioning, ForeignStage, Ports, Tensors
from ldmkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

RESERVED = (
    "type",
    "fields",
    "dropout",
    "lr",
    "weight_decay",
    "freeze",
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
    options: Mapping[str, Any]

    def __new__(cls, **options: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__["options"] = options
        return made

    # before training: on the class, no weights

    @classmethod
    def fit(cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Constructor options learned from data (class list, vocabulary): JSON values; a value the recipe gives wins."""
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
        conditioner of several fields takes a mapping.
        """
        if len(self.reads) == 1:
            return self.prepare({self.reads[0]: value})
        if isinstance(value, Mapping) and set(value) == set(self.reads):
            return self.prepare(value)
        raise UsageError(
            f"{type(self).__name__} reads {', '.join(self.reads)} and was given {type(value).__name__}",
            hint="give a mapping with these fields",
        )

    def is_one_value(self, value: Sequence[Any] | np.ndarray) -> bool:
        """Whether a list, a tuple or a numpy array of one dimension is ONE value of this modality (token ids, boxes), and not
        one value an image. Default: it never is.
        """
        return False

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

    def preview(self, prepared: Tensors) -> Image | str | None:
        """One sample's condition for a person to see, in grids and reports."""
        return None

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
    if hasattr(value, "convert"):  # a PIL image; Pillow is not imported for this
        pixels = np.array(value.convert("L" if value.mode in ("1", "L") else "RGB"))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
    return torch.as_tensor(value)
