"""Features of a layer of the denoiser predict those of another network, which sees the clean image, or a cleaner one.

Yu et al. 2024, "Representation Alignment for Generation" (REPA, arXiv 2410.06940, equation 8); for U-Nets, whose layers are
coarser than the encoder's map, the projected features are resized to it (Tian et al. 2025, U-REPA, arXiv 2503.18414).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser import Denoiser
from ldmkit.errors import RecipeError
from ldmkit.image_features import EfficientNetLite0
from ldmkit.losses.base import DiffusionPass, DiffusionTerm
from ldmkit.losses.extra import layer_features
from ldmkit.plugins.ranges import Portion, Positive


class _Aligned(DiffusionTerm):
    """1 - the cosine of projected features and wanted ones, the mean over positions; the projection is trained with the stage."""

    def __init__(self, layer: str, hidden: int) -> None:
        super().__init__()
        self.layers, self.hidden = (layer,), hidden

    def _project_to(self, shape: tuple[int, ...], width: int) -> None:
        """Three layers, as in REPA, from features (c, h, w) or (n, c) of one image to `width` channels."""
        channels = shape[0] if len(shape) == 3 else shape[1]
        self.project = nn.Sequential(
            nn.Conv2d(channels, self.hidden, 1),
            nn.SiLU(),
            nn.Conv2d(self.hidden, self.hidden, 1),
            nn.SiLU(),
            nn.Conv2d(self.hidden, width, 1),
        )

    @abstractmethod
    def _target(self, given: DiffusionPass) -> Tensor:
        """What the projected features should be (b, d, h, w)."""

    def forward(self, given: DiffusionPass) -> Tensor:
        """(b,), from 0 (parallel everywhere) to 2."""
        wanted = self._target(given)
        found = self.project(as_map(given.features[self.layers[0]], given.latents))
        if found.shape[-2:] != wanted.shape[-2:]:
            found = F.interpolate(found, wanted.shape[-2:], mode="bilinear")
        return 1.0 - F.cosine_similarity(found.float(), wanted.float(), dim=1).flatten(1).mean(1)


class Alignment(_Aligned):
    """A layer's features predict a frozen encoder's features of the clean image (REPA, arXiv 2410.06940).

    The encoder is EfficientNet-Lite0, whose weights come inside a package. Its features are computed once where every epoch shows
    the same images, else in every step.

    Args:
        layer: of the denoiser; `ldmkit.Denoiser.layer` says which there are. The paper's is about a third of the way in, U-REPA's
            the middle.
        side: images are resized to so many pixels a side before the encoder sees them.
        stride: of the encoder's map, in these pixels: its grid has side / stride cells a side.
        hidden: channels of the projection.

    REPA's `weight` is 0.5. Raises RecipeError for a `side` below `stride` or 32.
    """

    frozen = ("encoder",)

    def __init__(
        self, *, layer: str, side: Positive = 128, stride: Literal[2, 4, 8, 16, 32] = 16, hidden: Positive = 256
    ) -> None:
        super().__init__(layer, hidden)
        if side < max(32, stride):
            raise RecipeError(f"side is {side}; the encoder needs images of {max(32, stride)} pixels a side or more")
        self.encoder = EfficientNetLite0(side=None, pretrained=False)
        self.side, self.level = side, EfficientNetLite0.strides.index(stride)

    def setup(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The projection, from the layer's channels to the encoder's."""
        self._project_to(shapes[self.layers[0]], EfficientNetLite0.channels[self.level])

    def load_pretrained(self) -> None:
        """The encoder's weights. Raises OfflineError where their package is not installed."""
        self.encoder.load_pretrained()

    def target(self, images: Tensor) -> Tensor:
        """The encoder's map (b, d, side / stride, side / stride) of images (b, 1 or 3, h, w) in [-1, 1]."""
        resized = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.encoder.maps(resized, levels=self.level + 1)[self.level]

    def _target(self, given: DiffusionPass) -> Tensor:
        return self.wanted(given)


class SelfAlignment(_Aligned):
    """A layer's features predict those of a later layer of the averaged model, which sees the image with less noise.

    No other network is needed (Jiang et al. 2025, arXiv 2505.02831). The averaged denoiser reads the same noise at an earlier
    timestep and the same conditions, in eval mode and without gradient: one more forward pass a step.

    Args:
        layer: of the denoiser, whose features are trained.
        toward: the layer of the averaged denoiser that is predicted; default: `layer`.
        earlier: its timestep, as a share of the one that is trained on; 1 is the same.
        hidden: channels of the projection.
    """

    averages = True

    def __init__(
        self, *, layer: str, toward: str | None = None, earlier: Portion = 0.5, hidden: Positive = 256
    ) -> None:
        super().__init__(layer, hidden)
        if not 0 < earlier <= 1:
            raise RecipeError(f"earlier is {earlier}; it is above 0 and at most 1")
        self.toward, self.earlier = toward or layer, earlier
        self.layers = tuple(dict.fromkeys((layer, self.toward)))

    def setup(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The projection, from the layer's channels to those of the later one."""
        toward = shapes[self.toward]
        self._project_to(shapes[self.layers[0]], toward[0] if len(toward) == 3 else toward[1])

    def _target(self, given: DiffusionPass) -> Tensor:
        assert given.average is not None, "training keeps the average where a term asks for it"
        timesteps = given.timesteps * self.earlier
        noisy = given.diffusion.noised(given.latents, given.noise, timesteps).to(given.noisy.dtype)
        # Under autocast copies of the weights are cached by the parameter, whose numbers change here and back.
        torch.clear_autocast_cache()
        with (
            torch.no_grad(),
            given.average(),
            _evaluating(given.denoiser),
            layer_features(given.denoiser, (self.toward,)) as features,
        ):
            given.denoiser(noisy, timesteps, **given.conditioning.kwargs())
        torch.clear_autocast_cache()
        return as_map(features[self.toward], given.latents)


def as_map(features: Tensor, latents: Tensor) -> Tensor:
    """A layer's features (b, c, h, w), or (b, n, c) of n positions that lie as the latents (b, d, h', w') do, as (b, c, h, w)."""
    if features.ndim == 4:
        return features
    height, width = latents.shape[-2:]
    side = math.isqrt(height * width // features.shape[1])  # of a patch
    return features.transpose(1, 2).reshape(len(features), -1, height // side, width // side)


@contextmanager
def _evaluating(denoiser: Denoiser) -> Iterator[None]:
    training = denoiser.training
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train(training)
