"""Distances between deep features: LPIPS (Zhang et al., arXiv 1801.03924) through the `lpips` package, with weights from a
download, a file or a seed; and the same distance on a backbone whose weights come inside a package."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ldmkit import image_features
from ldmkit.errors import CheckpointError, OfflineError, UsageError

Backbone = Literal["alex", "vgg", "squeeze", "efficientnet-lite0"]
RANDOM_SEED = 0
# The smallest image side that leaves a feature in the deepest layer.
LEAST_SIZE: dict[str, int] = {"alex": 31, "vgg": 16, "squeeze": 17, image_features.NAME: 8}


class Perceptual(nn.Module):
    """Distance between deep features of two images, each position's features of unit length.

    The network is in eval mode for good, has no gradient, and is neither in `parameters()` nor in `state_dict()`: it is a
    measure and not part of what is trained. It moves with `.to(...)`.

    Args:
        net: backbone `alex`, `vgg` or `squeeze`, which give LPIPS, or `efficientnet-lite0` (`ldmkit.image_features`), whose
            weights are installed with the extra `samples`: layers and channels count alike, so its numbers are not LPIPS.
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
        """What the number is, for a log: `LPIPS (vgg)`, or that it is another one."""
        if self.net == image_features.NAME:
            return f"perceptual distance ({self.net})"
        if self.weights == "random":
            return f"perceptual distance ({self.net}, random weights; not LPIPS)"
        return f"LPIPS ({self.net})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._held[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]


class _Lite0Distance(nn.Module):
    """As LPIPS: at each position the squared difference of features of unit length, averaged over positions, then over layers."""

    levels = 4  # strides 2, 4, 8 and 16: what an image of some tens of pixels has more than one position of

    def __init__(self) -> None:
        super().__init__()
        self.features = image_features.EfficientNetLite0(side=None)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(b,) of two (b, 3, h, w)."""
        pairs = zip(*(self.features.maps(each, levels=self.levels) for each in (images, others)), strict=True)
        layers = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
        return torch.stack(layers).mean(0)


def _unit(x: Tensor) -> Tensor:
    """(b, c, h, w) with channels of unit length; the small number keeps the gradient finite where all are zero."""
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-10)


def _build(net: str, weights: str) -> nn.Module:
    if net == image_features.NAME:
        if weights != "imagenet":
            raise UsageError(f"weights is {weights!r}; {net} has those of its package alone", hint="weights: imagenet")
        return _Lite0Distance()
    # Imported here: with torchvision they take seconds, and most of ldmkit never needs them.
    import lpips  # type: ignore[import-untyped]

    # On meta: torchvision would draw 120 million weights of a classifier that lpips then throws away.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # lpips calls torchvision in a way that it warns of
        model: nn.Module = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    if weights == "random":
        tensors = _drawn(model)
    else:
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        given, origin = (
            (_imagenet(net), "torchvision") if weights == "imagenet" else (_read(Path(weights).expanduser()), weights)
        )
        tensors = _chosen(model, {**_read(heads), **given}, origin)
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def _drawn(model: nn.Module) -> dict[str, Tensor]:
    """Features that neither fade nor saturate with depth (He et al., arXiv 1502.01852); layers averaged."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    own = model.state_dict()
    layers = sum(name.startswith("lins.") for name in own)
    tensors: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.startswith("lin"):
            tensors[name] = torch.full(tensor.shape, 1 / layers, device="cpu")
        elif name.startswith("net."):
            # Biases are not zero: a position whose features are all zero has no direction, and no gradient but NaN.
            spread = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() == 4 else 0.1
            tensors[name] = torch.randn(tensor.shape, generator=generator, device="cpu") * spread
    return tensors


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
            hint="copy the file there, name another with `weights: PATH`, or use `net: efficientnet-lite0`, whose weights are "
            "installed, or `weights: random` (neither is LPIPS)",
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


def _chosen(model: nn.Module, tensors: dict[str, Any], origin: str) -> dict[str, Tensor]:
    """Of `tensors` what `model` wants, by torchvision's names (`features.0.weight`) or lpips' (`net.slice1.0.weight`)."""
    own, chosen = model.state_dict(), dict[str, Tensor]()
    for name, wanted in own.items():
        if name.startswith("scaling_layer."):
            continue
        # net.slice2.4.weight is features.4.weight in torchvision; lins.0.model is the same module as lin0.model.
        other = "features." + name.split(".", 2)[2] if name.startswith("net.") else name.replace("lins.", "lin", 1)
        found = tensors.get(name, tensors.get(other))
        if found is None:
            raise CheckpointError(f"{origin} has neither {other} nor {name}: not the weights of this backbone")
        if found.shape != wanted.shape:
            raise CheckpointError(f"{origin} has {name} of shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
        chosen[name] = found.float()
    return chosen
