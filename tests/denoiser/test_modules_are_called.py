"""Every layer is called: forward hooks fire, and what stands in a layer's place (an adapter, a quantised layer) computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from ldmkit.autoencoder import KLAutoencoder, VQAutoencoder
from ldmkit.autoencoder.layers import Upsample
from ldmkit.denoiser.pointwise import PointwiseConv1d, PointwiseConv2d
from ldmkit.denoiser.unet import UNet

SMALL = {"in_channels": 4, "out_channels": 4, "channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
UNETS = {
    "self-attention": {},
    "tokens": {"context_width": 8},
    "tokens, linear": {"context_width": 8, "variant": {"linear_projection": True}},
    "both attentions": {"context_width": 8, "variant": {"plain_attention": True}},
    "resampling blocks": {"variant": {"resample_blocks": True, "scale_shift": True, "classes": 3}},
    "shortcut": {"shortcut": True, "dropout": 0.1},
}


@contextmanager
def called(module: nn.Module) -> Iterator[set[str]]:
    """The names of the leaves of `module` whose hook fires inside."""
    fired: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: fired.add(name)

    handles = [leaf.register_forward_hook(note(name)) for name, leaf in leaves(module)]
    yield fired
    for handle in handles:
        handle.remove()


def leaves(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_modules() if not list(child.children())]


def answer(unet: UNet, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = next(unet.parameters()).dtype
    x = torch.randn(2, 4, side, side, generator=generator, dtype=dtype)
    width = unet.context_width
    tokens = None if width is None else torch.randn(2, 3, width, generator=generator, dtype=dtype)
    labels = torch.tensor([0, 1]) if unet.variant.classes is not None else None
    return unet(x, torch.tensor([1.0, 500.0]), tokens=tokens, labels=labels)  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", UNETS.values(), ids=UNETS)
def test_every_layer_of_the_unet_is_called(options):
    unet = UNet.of_widths(**SMALL, **options)
    with called(unet) as fired:
        answer(unet)
    assert fired == {name for name, _ in leaves(unet)}


@pytest.mark.parametrize("kind", ["vanilla", "linear"])
@pytest.mark.parametrize("make", [KLAutoencoder, VQAutoencoder])
def test_every_layer_of_an_autoencoder_is_called(make, kind):
    autoencoder = make(
        downsample=2,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        latent_channels=2,
        groups=4,
        attention=(8,),
        resolution=16,
        attention_type=kind,
        shortcut=True,
    ).eval()
    with called(autoencoder) as fired:
        images = torch.randn(1, 3, 16, 16)
        autoencoder.decode(autoencoder.encode(images))
    # The statistics of the latents are measured once, after training, and read by `scale`.
    assert fired == {name for name, _ in leaves(autoencoder)} - {"latent_statistics"}


@pytest.mark.parametrize(
    ("pointwise", "shape", "convolve"),
    [
        (PointwiseConv2d(6, 5), (2, 6, 4, 3), nn.functional.conv2d),
        (PointwiseConv1d(6, 5), (2, 6, 7), nn.functional.conv1d),
    ],
)
def test_a_pointwise_layer_is_a_1x1_convolution(pointwise, shape: Sequence[int], convolve):
    pointwise = pointwise.double()
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(pointwise(x), convolve(x, pointwise.weight, pointwise.bias), rtol=1e-12, atol=1e-12)


class Wrapped(nn.Module):
    """A layer that adds to another one, as adapters do: it has no weight of its own."""

    def __init__(self, base: nn.Module, kind: type[nn.Conv1d | nn.Conv2d]) -> None:
        super().__init__()
        self.base = base
        self.down = kind(base.in_channels, 2, 1, bias=False).double()  # type: ignore[arg-type]
        self.up = kind(2, base.out_channels, 1, bias=False).double()  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"context_width": 8}], ids=["self-attention", "tokens"])
def test_an_adapter_around_a_pointwise_layer_is_its_merged_weight(options):
    torch.manual_seed(0)
    unet, merged = UNet.of_widths(**SMALL, **options).double(), UNet.of_widths(**SMALL, **options).double()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.2)
    merged.load_state_dict(unet.state_dict())
    found = [(name, m) for name, m in unet.named_modules() if isinstance(m, PointwiseConv1d | PointwiseConv2d)]
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        adapter = Wrapped(layer, nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv1d)
        setattr(unet.get_submodule(parent), own, adapter)
        added = (adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)).view_as(layer.weight)
        with torch.no_grad():
            merged.get_submodule(name).weight.add_(added)
    assert found
    torch.testing.assert_close(answer(unet), answer(merged), rtol=1e-9, atol=1e-9)


def test_another_convolution_in_an_upsampling_gives_what_its_own_gives():
    upsample = Upsample(4).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    expected = upsample(x)
    other = nn.Conv2d(4, 4, 3, padding=1).double()
    other.load_state_dict(upsample.conv.state_dict())
    upsample.conv = other
    torch.testing.assert_close(upsample(x), expected, rtol=1e-12, atol=1e-12)
