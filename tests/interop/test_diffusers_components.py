"""UNets and autoencoders both ways against diffusers with random weights, in every configuration the mapping claims."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file

from ldmkit import autoencoder as autoencoders
from ldmkit.denoiser import timestep_embedding
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop.diffusers import config as configs
from ldmkit.interop.diffusers import keys
from ldmkit.interop.diffusers.folders import read_json
from ldmkit.interop.diffusers.save import write_autoencoder, write_unet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")

TOLERANCE = 1e-5
G8 = {"groups": 8}
SMALL = {"in_channels": 4, "out_channels": 4, "channels": 16, "multipliers": (1, 2), "blocks": 1}
UNETS = {
    "plain": {**SMALL, "attention": (2,), "head_width": 8, "variant": G8},
    "attention at every level": {**SMALL, "attention": (1, 2), "head_width": 8, "variant": G8},
    "middle attention only": {**SMALL, "multipliers": (1, 2, 2), "attention": (), "head_width": 16, "variant": G8},
    "scale and shift": {**SMALL, "attention": (2,), "head_width": 8, "variant": {**G8, "scale_shift": True}},
    "resampling blocks": {
        **{**SMALL, "multipliers": (1, 1, 2), "blocks": 2},
        "attention": (2,),
        "head_width": 8,
        "variant": {**G8, "resample_blocks": True, "scale_shift": True},
    },
    "concatenated input": {**SMALL, "in_channels": 8, "attention": (1,), "head_width": 8, "variant": G8},
    "tokens": {**SMALL, "attention": (1, 2), "heads": 2, "context_width": 12, "variant": G8},
    "tokens, linear projections, heads by width": {
        **SMALL,
        "attention": (2,),
        "head_width": 8,
        "context_width": 12,
        "variant": {**G8, "linear_projection": True},
    },
    "widths that are no multiples": {
        **{**SMALL, "multipliers": (1, 1.5, 2.5)},
        "attention": (2,),
        "head_width": 8,
        "variant": G8,
    },
    "tokens alone at a level": {
        **{**SMALL, "multipliers": (1, 1.5, 2)},
        "attention": (1, 2),
        "heads": 2,
        "context_width": 12,
        "variant": {**G8, "only_cross_attention": [1]},
    },
    "tokens, depth and blocks by level": {
        **{**SMALL, "multipliers": (1, 2, 4), "blocks": (1, 2, 1)},
        "attention": (2, 4),
        "heads": (1, 2, 4),
        "context_width": 12,
        "transformer_depth": (1, 1, 2),
        "variant": {**G8, "scale_shift": True},
    },
}
NETWORK = {"channels": 16, "blocks": 1, "latent_channels": 4, "groups": 8, "resolution": 32}
AUTOENCODERS = {
    "kl": {"type": "kl", "downsample": 4, "middle_attention": True},
    "kl with attention": {
        "type": "kl",
        "downsample": 4,
        "multipliers": (1, 1, 2),
        "middle_attention": True,
        "attention": (8,),
    },
    "kl, attention at two levels": {"type": "kl", "downsample": 2, "middle_attention": False, "attention": (32, 16)},
    "widths that are no multiples": {"type": "kl", "downsample": 2, "multipliers": (1, 1.5)},
    "vq": {"type": "vq", "downsample": 8, "multipliers": (1, 1, 2, 2), "middle_attention": True, "codebook": 32},
    "vq without attention": {"type": "vq", "downsample": 2, "codebook": 32},
    "vq, codebook by averages": {"type": "vq", "downsample": 2, "codebook": 32, "ema": 0.99, "revive": 10},
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomised(module, seed=0):
    """Weights that leave no branch at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + (parameter.ndim == 1) * 0.3)
    return module.eval()


def loaded(folder):
    config = read_json(folder / "config.json")
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder, low_cpu_mem_usage=False)


def close(found, wanted):
    return float((found - wanted).abs().max() / wanted.std()) < TOLERANCE


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unets_agree_and_come_back_bit_for_bit(tmp_path, name):
    ours = randomised(UNet.of_widths(**UNETS[name]))
    write_unet(ours, tmp_path, (8, 8))
    theirs = loaded(tmp_path).eval()
    x, t = torch.randn(2, ours.in_channels, 8, 8), torch.tensor([3, 700])
    tokens = None if ours.context_width is None else torch.randn(2, 5, ours.context_width)
    given = {} if tokens is None else {"encoder_hidden_states": tokens}
    assert close(ours(x, t, tokens=tokens), theirs(x, t, **given).sample)

    again = UNet.of_widths(**configs.unet_from(read_json(tmp_path / "config.json")))
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    again.load_state_dict(keys.read(keys.unet_rules(again), state, again.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    assert torch.equal(again(x, t, tokens=tokens), ours(x, t, tokens=tokens))


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_autoencoders_agree_and_come_back_bit_for_bit(tmp_path, name):
    ours = randomised(autoencoders.make(**{**NETWORK, **AUTOENCODERS[name]}))
    write_autoencoder(ours, tmp_path)
    theirs = loaded(tmp_path).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    encoded = theirs.encode(images)
    latents = encoded.latents if ours.config["type"] == "vq" else encoded.latent_dist.mode()
    assert close(ours.encode(images), latents)
    if ours.config["type"] == "vq":  # near codes: between two of them, rounding decides which one is nearest
        latents = ours.quantize.lookup(torch.randint(32, (2, *latents.shape[2:]))) + 0.01 * torch.randn(latents.shape)
        ours, theirs, latents = ours.double(), theirs.double(), latents.double()  # theirs adds (code - z) to z: rounds
    assert close(ours.decode(latents), theirs.decode(latents).sample)
    ours, latents = ours.float(), latents.float()
    if ours.config["type"] == "kl":
        assert close(ours.posterior(images).logvar, encoded.latent_dist.logvar)

    options, scale, shift = configs.autoencoder_from(read_json(tmp_path / "config.json"))
    assert (scale, shift) == (1.0, 0.0)
    again = autoencoders.make(**options)
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    again.load_state_dict(keys.read(keys.autoencoder_rules(again), state, again.state_dict()))
    assert torch.equal(again.eval().decode(latents), ours.decode(latents))


# What is read: configurations as diffusers itself writes them.
THEIR_UNETS = {
    "UNet2DModel, one head": {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": None,
        "norm_num_groups": 8,
    },
    "UNet2DModel, residual resampling": {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    },
}


@pytest.mark.parametrize("name", THEIR_UNETS)
@torch.no_grad()
def test_unets_of_diffusers_are_read(name):
    kind = getattr(diffusers, name.split(",")[0])
    theirs = randomised(kind(sample_size=8, **THEIR_UNETS[name]))
    ours = UNet.of_widths(**configs.unet_from({**theirs.config, "_class_name": kind.__name__})).eval()
    ours.load_state_dict(keys.read(keys.unet_rules(ours), theirs.state_dict(), ours.state_dict()))
    x, t = torch.randn(2, theirs.config.in_channels, 8, 8), torch.tensor([3, 700])
    if ours.context_width is None:
        assert close(ours(x, t), theirs(x, t).sample)
    else:
        tokens = torch.randn(2, 5, 12)
        assert close(ours(x, t, tokens=tokens), theirs(x, t, encoder_hidden_states=tokens).sample)


# (height, width) of latents that cannot be halved evenly: UNet2DConditionModel ends its doublings at the sizes on the way down.
@pytest.mark.parametrize("size", [(15, 15), (9, 12), (17, 16), (7, 1)])
@torch.no_grad()
def test_odd_sizes_are_computed_as_in_diffusers(tmp_path, size):
    ours = randomised(
        UNet.of_widths(**{**SMALL, "multipliers": (1, 2, 2)}, attention=(2,), heads=2, context_width=12, variant=G8)
    )
    write_unet(ours, tmp_path, (8, 8))
    theirs = loaded(tmp_path).eval()
    x, t, tokens = torch.randn(2, 4, *size), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    assert close(ours(x, t, tokens=tokens), theirs(x, t, encoder_hidden_states=tokens).sample)


@pytest.mark.parametrize("name", ["projection", "text_time"])
@torch.no_grad()
def test_added_vectors_are_read(name):
    """unCLIP's and SDXL's: two layers inside the UNet map a vector to the time embedding."""
    added = {"class_embed_type": "projection"} if name == "projection" else {"addition_embed_type": "text_time"}
    options = {**THEIR_UNETS["UNet2DConditionModel"], **added, "addition_time_embed_dim": 4}
    options |= {"transformer_layers_per_block": (1, 2), "use_linear_projection": True, "attention_head_dim": (2, 4)}
    theirs = randomised(
        diffusers.UNet2DConditionModel(sample_size=8, **options, projection_class_embeddings_input_dim=34)
    )
    config = {**theirs.config, "_class_name": "UNet2DConditionModel"}
    ours = UNet.of_widths(**configs.unet_from(config)).eval()
    rules = keys.unet_rules(ours, configs.vector_layers(config))
    ours.load_state_dict(keys.read(rules, theirs.state_dict(), ours.state_dict()))
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    if name == "projection":
        vector = torch.randn(2, 34)
        given = {"class_labels": vector}
    else:
        text, ids = torch.randn(2, 10), torch.randint(64, (2, 6))
        vector = torch.cat([text, timestep_embedding(ids.flatten(), 4).view(2, 24)], dim=1)
        given = {"added_cond_kwargs": {"text_embeds": text, "time_ids": ids}}
    wanted = theirs(x, t, encoder_hidden_states=tokens, **given).sample
    assert close(ours(x, t, tokens=tokens, vector=vector), wanted)


def test_sdxl_has_as_many_parameters_as_published():
    config = {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        network = UNet.of_widths(**configs.unet_from(config))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_567_463_684


@torch.no_grad()
def test_attention_of_older_folders_is_read():
    theirs = randomised(
        diffusers.VQModel(block_out_channels=(16,), norm_num_groups=8, num_vq_embeddings=16, vq_embed_dim=3)
    )
    options, _, _ = configs.autoencoder_from({**theirs.config, "_class_name": "VQModel"})
    ours = autoencoders.make(**options).eval()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    ours.load_state_dict(keys.read(keys.autoencoder_rules(ours), state, ours.state_dict()))
    z = ours.quantize.lookup(torch.randint(16, (1, 8, 8))) + 0.01 * torch.randn(1, 3, 8, 8)
    assert close(ours.decode(z), theirs.decode(z).sample)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"heads": 2, "attention": (1, 2), "variant": G8}, "head"),
        ({"attention": (2,), "head_width": 8}, "groups"),
        ({"attention": (2,), "head_width": 8, "variant": {**G8, "vector": 4}}, "maps a vector"),
        (
            {"attention": (2,), "head_width": 8, "variant": {**G8, "time": {"type": "offset", "by": 1}}},
            "than the timestep",
        ),
        ({"multipliers": (2, 2), "attention": (2,), "head_width": 8, "variant": G8}, "multiplier"),
        ({"attention": (2,), "heads": 1, "variant": {**G8, "self_transformer": True}}, "read no tokens"),
        (
            {"attention": (2,), "heads": 1, "context_width": 8, "variant": {**G8, "plain_attention": True}},
            "plain attention beside",
        ),
        ({"attention": (2,), "heads": 1, "variant": G8, "shortcut": True}, "UNet has a linear shortcut"),
        (
            {"attention": (2,), "heads": 1, "context_width": 8, "variant": {**G8, "resample_blocks": True}},
            "resamples in residual blocks",
        ),
    ],
)
def test_unets_that_diffusers_cannot_represent_are_refused(tmp_path, options, reason):
    with pytest.raises(UsageError, match=reason):
        write_unet(UNet.of_widths(**{**SMALL, **options}), tmp_path, (8, 8))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"type": "kl", "downsample": 4, "multipliers": (2, 2, 2)}, "multiplier"),
        ({"type": "kl", "downsample": 4, "middle_attention": True, "attention_type": "linear"}, "linear attention"),
        ({"type": "kl", "downsample": 4, "shortcut": True}, "linear shortcut"),
        ({"type": "kl", "downsample": 4, "middle_attention": "decoder"}, "only in the middle of the decoder"),
        ({"type": "kl", "downsample": 4, "blocks": (1, 2, 1)}, "different numbers of blocks"),
    ],
)
def test_autoencoders_that_diffusers_cannot_represent_are_refused(tmp_path, options, reason):
    with pytest.raises(UsageError, match=reason):
        write_autoencoder(autoencoders.make(**{**NETWORK, **options}), tmp_path)


def test_a_scale_per_channel_is_refused(tmp_path):
    model = autoencoders.make(**{**NETWORK, **AUTOENCODERS["kl"]})
    model.latent_scale[0] = 2.0
    with pytest.raises(UsageError, match="in each channel"):
        write_autoencoder(model, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"time_embedding_type": "fourier"},
        {"mid_block_scale_factor": 2.0},
        {"norm_eps": 1e-6},
        {"mid_block_type": None},
        {"attn_norm_num_groups": 4},
        {"resnet_time_scale_shift": "ada_group"},
        {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
    ],
)
def test_unets_that_ldmkit_does_not_have_are_refused(option):
    config = {**THEIR_UNETS["UNet2DModel, one head"], "_class_name": "UNet2DModel", **option}
    with pytest.raises(CheckpointError, match=next(iter(option))):
        configs.unet_from(config)
