"""LPIPS (Zhang et al., arXiv 1801.03924) through the `lpips` package, with weights from a download, a file or a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ldmkit.errors import CheckpointError, OfflineError, UsageError

Backbone = Literal["alex", "vgg", "squeeze"]
RANDOM_SEED = 0
# The smallest image side that leaves a feature in the deepest layer.
LEAST_SIZE: dict[str, int] = {"alex": 31, "vgg": 16, "squeeze": 17}


class Perceptual(nn.Module):
    """Distance between deep features of two images, each position's features of unit length.

    The network is in eval mode for good, has no gradient, and is neither in `parameters()` nor in `state_dict()`: it is a
    measure and not part of what is trained. It moves with `.to(...)`.

    Args:
        net: backbone `alex`, `vgg` or `squeeze`.
        weights: `imagenet`: torchvision's file, downloaded unless it is there, with the layer weights that LPIPS learned;
            `random`: a backbone drawn from a fixed seed (normal, scaled for ReLU), all layers and channels counted alike: works
            without a network, but its numbers are not LPIPS; a path: a file with torchvision's or lpips' weights.

    Raises:
        OfflineError: `imagenet`, and neither the file nor a network to fetch it.
        CheckpointError: the file at a path is missing or holds something else.
    """

    def __init__(self, net: Backbone = "vgg", weights: str = "imagenet") -> None:
        super().__init__()
        if net not in get_args(Backbone):
            raise UsageError(f"perceptual net is {net!r}; allowed are {', '.join(get_args(Backbone))}")
        self.net, self.weights = net, weights
        # In a tuple, so that it is no submodule: see the class's description.
        self._held: tuple[nn.Module] = (_build(net, weights),)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (b,) of images (b, 1 or 3, h, w) in [-1, 1]; grey images are repeated to three channels.

        Raises:
            UsageError: another number of channels, or images too small for the backbone.
        """
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise UsageError(
                f"a perceptual loss compares images of 1 or 3 channels; these have {channels}",
                hint="set autoencoder.loss.perceptual: null",
            )
        if min(height, width) < LEAST_SIZE[self.net]:
            raise UsageError(
                f"the {self.net} backbone needs images of {LEAST_SIZE[self.net]} pixels or more; these are {height}x{width}",
                hint="use net: vgg (16 pixels), or set autoencoder.loss.perceptual: null",
            )
        pair = (images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)) if channels == 1 else (images, others)
        return self._held[0](*pair).flatten()  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        """What the number is, for a log: `LPIPS (vgg)`, or that it is a stand-in."""
        if self.weights == "random":
            return f"perceptual distance ({self.net}, random weights; not LPIPS)"
        return f"LPIPS ({self.net})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._held[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]


def _build(net: str, weights: str) -> nn.Module:
    # Imported here: with torchvision they take seconds, and most of ldmkit never needs them.
    import lpips  # type: ignore[import-untyped]

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lpips calls torchvision and torch.load in ways that those warn of
        torch.manual_seed(RANDOM_SEED)
        model: nn.Module = lpips.LPIPS(net=net, pretrained=weights != "random", pnet_rand=True, verbose=False)
        if weights == "random":
            _randomise(model)
    if weights == "imagenet":
        _load(model, _imagenet(net), "torchvision's weights")
    elif weights != "random":
        _load(model, _read(Path(weights).expanduser()), weights)
    return model.eval().requires_grad_(False)


def _randomise(model: nn.Module) -> None:
    """Features that neither fade nor saturate with depth (He et al., arXiv 1502.01852); layers averaged."""
    heads = [
        module for name, module in model.named_modules() if name.startswith("lin") and isinstance(module, nn.Conv2d)
    ]
    for name, parameter in model.named_parameters():
        if not name.startswith("net."):
            continue
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            # Not zero: a position whose features are all zero has no direction, and no gradient but NaN.
            nn.init.normal_(parameter, std=0.1)
    layers = len({id(head) for head in heads})
    for head in heads:
        nn.init.constant_(head.weight, 1 / layers)


def _imagenet(net: str) -> dict[str, Tensor]:
    from torchvision import models  # type: ignore[import-untyped]

    found: Any = {
        "alex": models.AlexNet_Weights.IMAGENET1K_V1,
        "vgg": models.VGG16_Weights.IMAGENET1K_V1,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    }[net]
    place = Path(torch.hub.get_dir()) / "checkpoints" / found.url.rsplit("/", 1)[-1]
    try:
        return dict(found.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network, a proxy that answers otherwise, a file cut short
        raise OfflineError(
            f"the {net} weights of the perceptual loss are not at {place} and could not be fetched from {found.url}: {error}",
            hint="copy the file there, name another with `weights: PATH`, or use `weights: random` (not LPIPS)",
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"no file of perceptual weights at {path}", hint="allowed are imagenet, random or the path of a file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(f"cannot read perceptual weights: {error}", where=str(path)) from error


def _load(model: nn.Module, tensors: dict[str, Any], origin: str) -> None:
    """Fill the backbone by torchvision's names (`features.0.weight`) or lpips' (`net.slice1.0.weight`, heads if there)."""
    own = model.state_dict()
    chosen: dict[str, Tensor] = {}
    for name in own:
        # net.slice2.4.weight is features.4.weight in torchvision.
        foreign = "features." + name.split(".", 2)[2] if name.startswith("net.") else name
        if name in tensors or foreign in tensors:
            chosen[name] = tensors[name] if name in tensors else tensors[foreign]
        elif name.startswith("net."):
            raise CheckpointError(f"{origin} has neither {foreign} nor {name}: not the weights of this backbone")
    if wrong := [name for name, tensor in chosen.items() if tensor.shape != own[name].shape]:
        raise CheckpointError(f"{origin} has other shapes than this backbone, first at {wrong[0]}")
    model.load_state_dict(chosen, strict=False)
