"""The UNet's ports, options and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser import Context, SpatialTransformer, TransformerBlock, group_norm, timestep_embedding
from ldmkit.denoiser.unet import UNet, Variant
from ldmkit.errors import UsageError

BASE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "channels": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (2,),
}


def unet(**options: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet.of_widths(**{**BASE, **options})
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network


def noisy(batch: int = 2, channels: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator), torch.linspace(3.5, 900, batch)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_fresh_network_predicts_zero() -> None:
    assert not UNet.of_widths(**BASE)(*noisy()).any()


def test_residual_branches_start_at_zero() -> None:
    block = SpatialTransformer(16, heads=2, context_width=8)
    x = torch.randn(2, 16, 4, 4)
    close(block(x, Context(torch.zeros(2, 1), torch.randn(2, 3, 8))), x)


def test_concat_is_joined_after_the_latent() -> None:
    network = unet(in_channels=5)
    x, t = noisy(channels=3)
    concat = torch.randn(2, 2, 8, 8)
    close(network(x, t, concat=concat), network(torch.cat([x, concat], dim=1), t))


@pytest.mark.parametrize(("shortcut", "gain"), [(True, 1.0), (10.0, 10.0)])
def test_the_shortcut_adds_a_scaled_convolution_of_latent_and_concat(shortcut: float, gain: float) -> None:
    """Against its formula, written out: gain times the sum over inputs i of conv_oi * (x_i (1 + a_i . e + b_i))."""
    network = unet(in_channels=5, shortcut=shortcut).double()
    plain = UNet.of_widths(**{**BASE, "in_channels": 5}).double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("shortcut.")})
    x, t = noisy()
    x, concat = x.double(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    vector = torch.randn(2, 64, dtype=torch.float64)
    way = network.get_submodule("shortcut")
    embedding = network.time_embed(timestep_embedding(t, 16).double()) + vector
    scale = 1 + embedding @ way.get_parameter("scale.weight").T + way.get_parameter("scale.bias")
    linear = F.conv2d(
        torch.cat([x, concat], 1) * scale[:, :, None, None],
        way.get_parameter("conv.weight"),
        way.get_parameter("conv.bias"),
        padding=1,
    )
    expected = plain(x, t, concat=concat, vector=vector) + gain * linear
    torch.testing.assert_close(network(x, t, concat=concat, vector=vector), expected, rtol=1e-12, atol=1e-12)


def test_a_fresh_shortcut_adds_nothing_and_learns() -> None:
    network = UNet.of_widths(**BASE, shortcut=True)
    assert not network(*noisy()).any()
    (network(*noisy()) - 1).square().mean().backward()
    assert network.get_parameter("shortcut.conv.weight").grad.any()
    assert not any(name.startswith("shortcut") for name in UNet.of_widths(**BASE).state_dict())


def test_a_masked_token_is_no_token() -> None:
    network = unet(context_width=8)
    x, t = noisy()
    tokens = torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, False, False, False]]).expand(2, 5)
    close(network(x, t, tokens=tokens, mask=mask), network(x, t, tokens=tokens[:, :2]))
    close(network(x, t, tokens=tokens, mask=torch.ones(2, 5, dtype=torch.bool)), network(x, t, tokens=tokens))


def test_every_mix_of_ports() -> None:
    """Each port changes the output, alone and beside the others."""
    ports = {"tokens": {"context_width": 8}, "concat": {"in_channels": 4}, "vector": {}}
    values = {
        "tokens": torch.randn(2, 3, 8),
        "concat": torch.randn(2, 1, 8, 8),
        "vector": torch.randn(2, 64),
    }
    for subset in range(8):
        names = [name for i, name in enumerate(ports) if subset & 2**i]
        network = unet(**{key: value for name in names for key, value in ports[name].items()})
        given = {name: values[name] for name in names}
        x, t = noisy()
        output = network(x, t, **given)
        for name in names:
            other = network(x, t, **{**given, name: 2 * values[name]})
            assert (other - output).abs().max() > 1e-3 * output.std()


def test_a_row_depends_on_its_own_row_alone() -> None:
    network = unet(context_width=8)
    x, t = noisy(batch=3)
    tokens, vector = torch.randn(3, 4, 8), torch.randn(3, 64)
    together = network(x, t, tokens=tokens, vector=vector)
    for i in range(3):
        row = slice(i, i + 1)
        close(network(x[row], t[row], tokens=tokens[row], vector=vector[row]), together[row])


def test_second_attention_without_tokens_is_self_attention() -> None:
    """A block without tokens is the block whose tokens are its own normed input."""
    torch.manual_seed(0)
    block = TransformerBlock(16, heads=2)
    other = TransformerBlock(16, heads=2, context_width=16)
    other.load_state_dict(block.state_dict())
    x = torch.randn(2, 9, 16)
    halfway = x + block.attn1(block.norm1(x), block.norm1(x))
    close(block(x, None, None), other(x, block.norm2(halfway), None))

    network = unet(variant={"self_transformer": True})
    assert network.state_dict().keys() == unet(context_width=16).state_dict().keys()
    assert network(*noisy()).std() > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": (1, 2), "heads": (2, 4), "attention": (1, 2), "context_width": 8, "transformer_depth": (1, 2)},
        {"head_width": 8, "dropout": 0.5, "variant": {"scale_shift": True, "resample_blocks": True}},
        {"variant": Variant(self_transformer=True, classes=4)},
    ],
)
def test_config_builds_the_same_network(options: dict[str, Any]) -> None:
    network = unet(**options).eval()
    again = UNet.of_widths(**json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    x, t = noisy()
    extra = {}
    if network.context_width:
        extra["tokens"] = torch.randn(2, 3, network.context_width)
    if network.variant.classes:
        extra["labels"] = torch.tensor([1, 2])
    assert torch.equal(again(x, t, **extra), network(x, t, **extra))
    assert again.config == network.config


def test_checkpointing_changes_no_gradient() -> None:
    options = {"context_width": 8, "dropout": 0.3}
    plain = unet(**options)
    checkpointed = unet(**options, variant={"checkpoint": True})
    tokens = torch.randn(2, 3, 8, requires_grad=True)
    gradients = []
    for network in (plain, checkpointed):
        torch.manual_seed(5)  # dropout draws from the global generator
        x, t = noisy()
        loss = network(x, t, tokens=tokens).square().mean()
        gradients.append(torch.autograd.grad(loss, [tokens, *network.parameters()]))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_dropout_is_off_in_eval() -> None:
    network = unet(dropout=0.5)
    x, t = noisy()
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_channels_last_and_other_sizes() -> None:
    network = unet(context_width=8)
    x, t = noisy(size=(6, 10))
    tokens = torch.randn(2, 3, 8)
    expected = network(x, t, tokens=tokens)
    assert expected.shape == x.shape
    close(
        network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last), t, tokens=tokens
        ),
        expected,
    )


def test_half_precision_stays_near_single() -> None:
    network = unet()
    x, t = noisy()
    expected = network(x, t)
    half = network.to(torch.bfloat16)(x.to(torch.bfloat16), t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("channels", "groups", "count"),
    [(320, None, 32), (128, None, 32), (96, None, 16), (32, None, 8), (20, None, 4), (7, None, 1), (48, 16, 16)],
)
def test_groups_of_the_norm(channels: int, groups: int | None, count: int) -> None:
    assert group_norm(channels, groups=groups).num_groups == count


@pytest.mark.parametrize("options", [{}, {"variant": {"groups": 8}}, {"variant": {"groups": 16, "scale_shift": True}}])
def test_narrow_networks_see_the_timestep(options: dict[str, Any]) -> None:
    """Groups of one channel would take the added embedding away again; test that the default does not."""
    network = unet(**options)
    x, _ = noisy()
    early, late = network(x, torch.zeros(2)), network(x, torch.full((2,), 900.0))
    assert (early - late).std() > 0.01 * early.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": (16, 2)}, "down-sampling factors"),
        ({"heads": 2, "head_width": 8}, "both given"),
        ({"heads": 3}, "do not divide"),
        ({"head_width": 12}, "does not divide"),
        ({"blocks": (1, 2, 3)}, "3 numbers for 2 levels"),
        ({"transformer_depth": 0, "context_width": 8}, "1 or more"),
        ({"channels": 15}, "even number"),
        ({"multipliers": ()}, "at least one level"),
        ({"context_width": 8, "variant": {"self_transformer": True}}, "without tokens"),
        ({"variant": {"plain_attention": True}}, "this UNet reads none"),
        ({"variant": {"scale_shfit": True}}, "scale_shift"),
        ({"variant": {"groups": 32}}, "groups is 32, which does not divide 16 channels"),
        ({"multipliers": (1, 1.3)}, "no number of channels"),
        ({"variant": {"only_cross_attention": [2]}}, "this UNet reads none"),
        ({"context_width": 8, "variant": {"only_cross_attention": [1]}}, "where no level attends"),
        ({"variant": {"classes": 3, "vector": 4}}, "classes and vector"),
        ({"variant": {"time": {"type": "sundial"}}}, "there are offset, log-sigma"),
        ({"variant": {"time": {"type": "offset"}}}, "needs by"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UNet.of_widths(**{**BASE, **options})


def test_a_level_without_attention_needs_no_heads() -> None:
    UNet.of_widths(**{**BASE, "channels": 20, "multipliers": (1, 2), "head_width": 40})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 2, 8, 8)}, r"reads \(b, 3, h, w\)"),
        ({"x": torch.zeros(3, 8, 8)}, r"reads \(b, 3, h, w\)"),
        ({"t": torch.zeros(1)}, "t has shape"),
        ({"tokens": None}, "no tokens were given"),
        ({"tokens": torch.zeros(2, 3, 9)}, "tokens has shape"),
        ({"tokens": torch.zeros(1, 3, 8)}, "tokens has shape"),
        ({"tokens": torch.zeros(2, 8)}, "tokens has shape"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask has shape"),
        ({"mask": torch.ones(2, 3)}, "must be torch.bool"),
        ({"vector": torch.zeros(2, 63)}, "vector has shape"),
        ({"concat": torch.zeros(2, 1, 8, 8)}, "concat has shape"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "labels were given to a UNet that has no table"),
    ],
)
def test_inputs_that_cannot_be(change: dict[str, Tensor | None], message: str) -> None:
    x, t = noisy()
    given: dict[str, Any] = {"x": x, "t": t, "tokens": torch.zeros(2, 3, 8), **change}
    with pytest.raises(UsageError, match=message):
        unet(context_width=8)(given.pop("x"), given.pop("t"), **given)


def test_concat_missing_and_tokens_unexpected() -> None:
    x, t = noisy()
    with pytest.raises(UsageError, match=r"reads \(b, 5, h, w\)"):
        unet(in_channels=5)(x, t)
    with pytest.raises(UsageError, match="no port"):
        unet()(x, t, tokens=torch.zeros(2, 3, 8))
