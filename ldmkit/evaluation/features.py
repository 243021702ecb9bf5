"""Feature extractors: what distances between distributions of images are measured in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, OfflineError, ResourceError, UsageError
from ldmkit.hub import cache_unless_reached
from ldmkit.random import key

LEAST = 32  # pixels a side that a backbone is shown


class Features(NamedTuple):
    """Of images: features (b, d), and a classifier's logits (b, k) where the network has one."""

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(ABC):
    """Images (b, c, h, w) in [-1, 1] of any size and 1, 3 or more channels -> `Features`, on the images' device.

    `name` stands beside every number, `resized` says how images are brought to the size that the network reads.
    """

    name: str
    resized: str = "not resized"

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """The features of a batch; no gradient is needed."""


def coloured(images: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, 3, h, w): grey repeated, of more channels the first three."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


class Inception(FeatureExtractor):
    """The 2015 Inception of the published FID, KID and Inception score, as torch-fidelity has it: 2048 features, 1008 logits.

    Args:
        weights: a file with its weights (``pt_inception-2015-12-05-6726825d.pth``); None: torch-fidelity's
            own cache, or download.

    Raises:
        ResourceError: torch-fidelity is not installed.
        CheckpointError: the file is not there or holds something else.
        OfflineError: no file was given, none is cached, and it cannot be fetched.
    """

    name = "Inception (2015, torch-fidelity)"
    resized = "8 bits, bilinear to 299 pixels as in TensorFlow 1"

    def __init__(self, weights: str | None = None) -> None:
        path = None if weights is None else Path(weights).expanduser()
        if path is not None and not path.is_file():
            raise CheckpointError(
                f"no file of Inception weights at {path}", hint="torch-fidelity's pt_inception-2015-12-05-6726825d.pth"
            )
        self._network = self._made(None if path is None else str(path))

    @staticmethod
    def _made(path: str | None) -> nn.Module:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise ResourceError(
                "Inception's features need torch-fidelity, which is not installed", hint="pip install torch-fidelity"
            ) from error
        try:
            made: nn.Module = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
            )
        except OSError as error:
            raise OfflineError(
                f"Inception's weights are not here and cannot be fetched: {error}",
                hint="where there is a network: download pt_inception-2015-12-05-6726825d.pth from torch-fidelity's releases, "
                "and give `weights: PATH`; `frechet` works without them, in other features",
            ) from error
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"not the weights of this Inception: {error}", where=path) from error
        return made.eval()

    def __call__(self, images: Tensor) -> Features:
        self._network.to(images.device)
        levels = ((coloured(images).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features, logits = self._network(levels)
        return Features(features, logits)


class Timm(FeatureExtractor):
    """A backbone of timm without its classifier, seen at the images' own size.

    Args:
        backbone: its name there.
        weights: ``random`` (seeded; says whether distributions differ, not how people see it), ``pretrained`` (timm's, from its
            cache or the hub), or a file.

    Raises:
        OfflineError: pretrained weights that are neither cached nor can be fetched.
        CheckpointError: the file is not there or does not fit.
    """

    resized = f"by whole pixels to {LEAST} or more where smaller"

    def __init__(self, backbone: str, weights: str) -> None:
        self.name = f"{backbone}, {weights if weights in ('random', 'pretrained') else Path(weights).name} weights"
        self._network = timm_network(backbone, weights)

    def __call__(self, images: Tensor) -> Features:
        shown = coloured(images)
        if min(shown.shape[-2:]) < LEAST:
            shown = F.interpolate(shown, scale_factor=-(-LEAST // min(shown.shape[-2:])), mode="nearest")
        return Features(self._network.to(images.device)(shown))


def timm_network(backbone: str, weights: str) -> nn.Module:
    """The backbone in eval mode. Raises as `Timm` does."""
    import timm

    make: Callable[..., nn.Module] = timm.create_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(0, f"frechet/{backbone}", 0))
        if weights == "random":
            return make(backbone, pretrained=False, num_classes=0).eval()
        if weights != "pretrained":
            return _from_file(make, backbone, Path(weights).expanduser())
        about: Any = timm.get_pretrained_cfg(backbone)
        name = (about and about.hf_hub_id) or backbone
        try:
            with cache_unless_reached(name):
                return make(backbone, pretrained=True, num_classes=0).eval()
        except OSError as error:  # what huggingface-hub raises without a network and without the file
            raise OfflineError(
                f"the weights of {backbone} are not here and cannot be fetched",
                hint=f"where there is a network: hf download {name}, and bring ~/.cache/huggingface here; or give "
                "`weights: random`, or a file",
            ) from error


def _from_file(make: Callable[..., nn.Module], backbone: str, path: Path) -> nn.Module:
    if not path.is_file():
        raise CheckpointError(
            f"no file of weights at {path}", hint="allowed are random, pretrained or the path of a file"
        )
    try:
        return make(backbone, num_classes=0, checkpoint_path=str(path)).eval()
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"not the weights of {backbone} without its classifier: {error}", where=str(path)
        ) from error


def extractor(features: str, weights: str | None) -> FeatureExtractor:
    """``inception``, or a backbone of timm. Raises as `Inception` and `Timm` do, `UsageError` for a name nobody knows."""
    if features == "inception":
        if weights in ("random", "pretrained"):
            weights = None
        return Inception(weights)
    try:
        return Timm(features, weights or "pretrained")
    except RuntimeError as error:  # timm's, of a name it does not know
        raise UsageError(
            f"no features are called {features!r}: {error}", hint="inception, or a model of timm"
        ) from error
