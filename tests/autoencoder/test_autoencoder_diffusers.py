"""Encode and decode against diffusers' AutoencoderKL and VQModel with the same random weights."""

import re
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL, VQModel

from ldmkit.autoencoder import make

WIDTHS, SIDE = (32, 32, 64), 32


def foreign_name(name: str, levels: int) -> str:
    """Our (CompVis') key -> diffusers' key."""
    name = re.sub(r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions.", name)
    name = re.sub(r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    for ours, theirs in (("block", "resnets"), ("attn", "attentions")):
        name = re.sub(
            rf"decoder\.up\.(\d+)\.{ours}\.",
            lambda m, t=theirs: f"decoder.up_blocks.{levels - 1 - int(m[1])}.{t}.",
            name,
        )
    name = re.sub(
        r"decoder\.up\.(\d+)\.upsample\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name
    )
    name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
    name = name.replace("mid.attn_1", "mid_block.attentions.0").replace("nin_shortcut", "conv_shortcut")
    if "attentions" in name:
        name = name.replace(".norm.", ".group_norm.").replace(".proj_out.", ".to_out.0.")
        name = re.sub(r"\.([qkv])\.(weight|bias)$", r".to_\1.\2", name)
    return re.sub(r"(encoder|decoder)\.norm_out", r"\1.conv_norm_out", name)


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    tensors = {key: value for key, value in ours.state_dict().items() if not key.startswith("latent_")}
    wanted = theirs.state_dict()
    mapped = {foreign_name(key, len(WIDTHS)): value for key, value in tensors.items()}
    theirs.load_state_dict({key: value.reshape(wanted[key].shape) for key, value in mapped.items()})


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def blocks(attention: bool, half: str) -> tuple[str, ...]:
    plain, attending = (f"{half}EncoderBlock2D", f"Attn{half}EncoderBlock2D")
    if half == "Up":
        plain, attending = "UpDecoderBlock2D", "AttnUpDecoderBlock2D"
    row = [plain, plain, attending if attention else plain]
    return tuple(row if half == "Down" else row[::-1])


@pytest.mark.parametrize(("levels", "middle"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["kl", "vq"])
@torch.no_grad()
def test_encode_and_decode(kind, levels, middle):
    torch.manual_seed(1)
    attention = (SIDE // 4,) if levels else ()
    options = {"codebook": 64} if kind == "vq" else {}
    ours = make(
        kind, channels=32, multipliers=(1, 1, 2), blocks=1, latent_channels=4, resolution=SIDE, attention=attention,
        middle_attention=middle, groups=32, **options,
    ).eval()  # fmt: skip
    shape = {
        "down_block_types": blocks(levels, "Down"),
        "up_block_types": blocks(levels, "Up"),
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "latent_channels": 4,
        "mid_block_add_attention": middle,
    }
    theirs = (AutoencoderKL(**shape) if kind == "kl" else VQModel(**shape, num_vq_embeddings=64, vq_embed_dim=4)).eval()
    if kind == "vq":
        ours.quantize.embedding.weight.normal_()  # codes far enough apart that rounding decides nothing
    copy_weights(ours, theirs)
    images = torch.rand(2, 3, SIDE, SIDE + 8) * 2 - 1

    encoded = theirs.encode(images)
    if kind == "kl":
        found = ours.posterior(images)
        assert relative(found.mean, encoded.latent_dist.mean) < 1e-5
        assert relative(found.logvar, encoded.latent_dist.logvar) < 1e-5
        torch.testing.assert_close(found.kl(), encoded.latent_dist.kl())
        latents = encoded.latent_dist.mean
    else:
        latents = encoded.latents
        assert relative(ours.encode(images), latents) < 1e-5
    assert relative(ours.decode(latents), theirs.decode(latents).sample) < 1e-5


@torch.no_grad()
def test_quantiser_loss_is_the_released_one_when_swapped():
    """diffusers keeps the released models' exchanged weights."""
    torch.manual_seed(0)
    ours = make("vq", channels=32, downsample=2, blocks=1, latent_channels=3, codebook=16, swapped=True)
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(32,),
        latent_channels=3, num_vq_embeddings=16, vq_embed_dim=3,
    ).quantize  # fmt: skip
    theirs.embedding.weight.copy_(ours.quantize.embedding.weight)
    latents = torch.randn(2, 3, 4, 4)
    quantized, loss, (_, _, indices) = theirs(latents)
    found = ours.quantize(latents)
    torch.testing.assert_close(found.latents, quantized)
    torch.testing.assert_close(found.terms["codebook"], loss)
    torch.testing.assert_close(found.indices.flatten(), indices.flatten())
