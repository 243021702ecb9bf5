"""The UNet against what the original implementation computed, and its size against the released models'."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldmkit.denoiser.unet import UNet
from tests.reference import compvis

SMALL = {
    "superres": {
        "in_channels": 6,
        "out_channels": 3,
        "multipliers": (1, 2, 2),
        "blocks": 1,
        "attention": (4, 2),
        "head_width": 16,
        "variant": {"groups": 32},
    },
    "class": {
        "in_channels": 4,
        "out_channels": 4,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (2, 1),
        "head_width": 16,
        "context_width": 48,
        "variant": {"groups": 32},
    },
}

VQ4 = {"in_channels": 3, "out_channels": 3, "attention": (8, 4, 2)}
KL8 = {"in_channels": 4, "out_channels": 4, "attention": (4, 2, 1)}
SIZES = {
    "celeba": ({**VQ4, "channels": 224, "multipliers": (1, 2, 3, 4), "head_width": 32}, 274_056_163),
    "churches": (
        {
            **KL8,
            "channels": 192,
            "multipliers": (1, 2, 2, 4, 4),
            "attention": (1, 2, 4, 8),
            "heads": 8,
            "variant": {"scale_shift": True, "resample_blocks": True},
        },
        294_966_916,
    ),
    "cin256": (
        {**KL8, "channels": 256, "multipliers": (1, 2, 4), "heads": 1, "context_width": 512},
        394_984_196,
    ),
    "cin256-v2": (
        {**VQ4, "channels": 192, "multipliers": (1, 2, 3, 5), "heads": 1, "context_width": 512},
        400_920_579,
    ),
    "txt2img-1p4B": (
        {**KL8, "channels": 320, "multipliers": (1, 2, 4, 4), "heads": 8, "context_width": 1280},
        872_300_484,
    ),
    "text2img256": (
        {**VQ4, "channels": 192, "multipliers": (1, 2, 3, 5), "heads": 1, "context_width": 640},
        403_623_939,
    ),
    "layout2img": (
        {
            **VQ4,
            "channels": 128,
            "multipliers": (1, 2, 3, 4),
            "heads": 1,
            "context_width": 512,
            "transformer_depth": 3,
        },
        246_277_379,
    ),
    "semantic": (
        {**VQ4, "in_channels": 6, "channels": 128, "multipliers": (1, 4, 8), "attention": (), "heads": 8},
        215_229_315,
    ),
    "bsr_sr": (
        {
            **VQ4,
            "in_channels": 6,
            "channels": 160,
            "multipliers": (1, 2, 2, 4),
            "attention": (8,),
            "head_width": 32,
        },
        113_622_563,
    ),
    "inpainting_big": (
        {
            **VQ4,
            "in_channels": 7,
            "channels": 256,
            "multipliers": (1, 2, 3, 4),
            "heads": 8,
            "variant": {"resample_blocks": True},
        },
        387_245_827,
    ),
    "rdm768": (
        {
            "in_channels": 16,
            "out_channels": 16,
            "channels": 448,
            "multipliers": (1, 2, 3, 4),
            "attention": (4, 2, 1),
            "head_width": 32,
            "context_width": 768,
        },
        1_335_480_400,
    ),
    "sd-v1": (
        {**KL8, "channels": 320, "multipliers": (1, 2, 4, 4), "heads": 8, "context_width": 768},
        859_520_964,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_of_the_released_models(name: str) -> None:
    config, count = SIZES[name]
    with torch.device("meta"):
        unet = UNet.of_widths(**config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count


def weights(name: str, which: str) -> dict[str, Tensor]:
    state = torch.load(compvis() / name / "model.ckpt", map_location="cpu", weights_only=True)
    prefix = "model.diffusion_model."
    raw = {key.removeprefix(prefix): value for key, value in state["state_dict"].items() if key.startswith(prefix)}
    if which == "raw":
        return raw
    # The original flattens EMA names: it takes out the dots.
    flat = {key: "model_ema.diffusion_model" + key.replace(".", "") for key in raw}
    return {key: state["state_dict"][name] for key, name in flat.items()}


@pytest.mark.parametrize("which", ["raw", "ema"])
@pytest.mark.parametrize("name", SMALL)
def test_the_original_implementation(name: str, which: str) -> None:
    io = load_file(compvis() / name / "io.safetensors")
    unet = UNet.of_widths(**SMALL[name]).eval()
    unet.load_state_dict(weights(name, which))
    condition = {"concat" if name == "superres" else "tokens": io["cond"]}
    with torch.no_grad():
        eps = unet(io["z_t"], io["t"], **condition)
    assert (eps - io[f"{which}.eps"]).abs().max() < 1e-4 * io[f"{which}.eps"].std()
