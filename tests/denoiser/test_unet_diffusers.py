"""The UNet against diffusers' with the same random weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from ldmkit.denoiser import timestep_embedding
from ldmkit.denoiser.unet import UNet

# The benchmark compares outputs before it times, so the mapping of the names lives there.
spec = importlib.util.spec_from_file_location("unet_benchmark", Path(__file__).parents[2] / "benchmarks" / "unet.py")
assert spec is not None
assert spec.loader is not None
benchmark: Any = importlib.util.module_from_spec(spec)
sys.modules["unet_benchmark"] = benchmark  # a dataclass looks its module up while it is made
spec.loader.exec_module(benchmark)

BASE = {"in_channels": 4, "out_channels": 3, "channels": 64, "blocks": 1, "multipliers": (1, 2), "attention": (2,)}
CONFIGS: dict[str, dict[str, Any]] = {
    "no attention levels": {"attention": (), "head_width": 8},
    "attention": {"attention": (2, 1), "head_width": 16},
    "three levels, two blocks": {"blocks": 2, "multipliers": (1, 2, 3), "attention": (4,), "head_width": 32},
    "one head": {"multipliers": (1, 1), "head_width": 32},
    "scale-shift": {"head_width": 8, "variant": {"scale_shift": True}},
    "residual resampling": {
        "head_width": 8,
        "attention": (1, 2),
        "variant": {"scale_shift": True, "resample_blocks": True},
    },
    "classes": {"head_width": 8, "variant": {"classes": 5}},
    "tokens": {"heads": 4, "context_width": 24},
    "tokens, heads per level": {"attention": (1, 2), "heads": (2, 8), "context_width": 24},
    "tokens, linear": {"heads": 4, "context_width": 24, "variant": {"linear_projection": True}},
    "tokens, depth per level": {
        "attention": (1, 2),
        "heads": 4,
        "context_width": 24,
        "transformer_depth": (1, 2),
    },
    "tokens, scale-shift, classes": {
        "heads": 4,
        "context_width": 24,
        "variant": {"scale_shift": True, "classes": 5},
    },
}


def build(**options: Any) -> UNet:
    variant = {"groups": 32, **options.pop("variant", {})}
    unet: UNet = benchmark.randomised(UNet.of_widths(**{**BASE, **options}, variant=variant))
    return unet


def inputs(unet: UNet, *, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.randn(3, unet.in_channels, 8, 12, generator=generator)
    extra = {}
    if unet.context_width is not None:
        extra["tokens"] = torch.randn(3, 5, unet.context_width, generator=generator)
    if unet.variant.classes is not None:
        extra["labels"] = torch.tensor([4, 0, 2])
    return x, torch.tensor([0, 17, 999]), extra


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_those_of_diffusers(name: str) -> None:
    unet = build(**CONFIGS[name])
    other = benchmark.diffusers_unet(unet)
    x, t, extra = inputs(unet, generator=torch.Generator().manual_seed(2))
    ours = unet(x, t, **extra)
    given = (x, t, extra["tokens"]) if "tokens" in extra else (x, t)
    theirs = other(*given, class_labels=extra.get("labels"), return_dict=False)[0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()

    ours.square().mean().backward()
    theirs.square().mean().backward()
    for place, module in (("conv_in", unet.input_blocks[0][0]), ("time_embedding.linear_1", unet.time_embed[0])):
        expected = other.get_submodule(place).weight.grad
        assert (module.weight.grad - expected).abs().max() < 1e-4 * expected.abs().max()


def test_masked_tokens_are_those_of_diffusers() -> None:
    unet = build(heads=4, context_width=24)
    other = benchmark.diffusers_unet(unet)
    x, t, extra = inputs(unet, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True, True, True, True, True], [True, False, True, False, False], [False] * 4 + [True]])
    with torch.no_grad():
        ours = unet(x, t, tokens=extra["tokens"], mask=mask)
        theirs = other(x, t, extra["tokens"], encoder_attention_mask=mask, return_dict=False)[0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_vector_is_added_to_the_time_embedding() -> None:
    unet = build(head_width=8, variant={"classes": 5})
    other = benchmark.diffusers_unet(unet)
    plain = build(head_width=8)
    plain.load_state_dict({key: value for key, value in unet.state_dict().items() if key != "label_emb.weight"})
    x, t, extra = inputs(unet, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ours = plain(x, t, vector=unet.label_emb.weight[extra["labels"]])
        theirs = other(x, t, class_labels=extra["labels"], return_dict=False)[0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("width", [32, 224])
def test_timestep_embedding(width: int) -> None:
    t = torch.tensor([0.0, 0.5, 17.0, 999.0])
    expected = get_timestep_embedding(t, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, width), expected, rtol=1e-5, atol=1e-5)
