"""Pipeline folders whose UNet reads more than text: what stands in, and that the UNet computes what diffusers' does."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from ldmkit.errors import CheckpointError
from ldmkit.interop import import_diffusers
from ldmkit.interop.importing import import_to

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel

pytestmark = pytest.mark.filterwarnings("ignore")
CONDITION = {
    "sample_size": 8,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
KL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
}
CLIP = CLIPTextConfig(
    vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77
)  # fmt: skip
# pipeline -> channels the UNet reads, the slot of those beside the latent, and further options of the UNet
PIPELINES = {
    "StableDiffusionDepth2ImgPipeline": (5, "depth", {}),
    "StableDiffusionInstructPix2PixPipeline": (8, "image", {}),
    "StableDiffusionUpscalePipeline": (
        7,
        "low_resolution",
        {"num_class_embeds": 20, "only_cross_attention": (True, False)},
    ),
}


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.ndim == 1) * 0.2)
    return module.eval()


def folder(path, pipeline, unet, text=True, autoencoder=None):
    unet.save_pretrained(path / "unet")
    (autoencoder or randomised(diffusers.AutoencoderKL(**KL))).save_pretrained(path / "vae")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(path / "scheduler")
    if text:
        randomised(CLIPTextModel(CLIP)).save_pretrained(path / "text_encoder")
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return path


@pytest.mark.parametrize("pipeline", PIPELINES)
@torch.no_grad()
def test_what_lies_beside_the_latent_gets_a_slot(registry, tmp_path, pipeline):
    channels, slot, options = PIPELINES[pipeline]
    unet = randomised(diffusers.UNet2DConditionModel(in_channels=channels, **CONDITION, **options))
    found = import_diffusers(folder(tmp_path / "in", pipeline, unet), registry=registry)
    model, levels = found.model, "num_class_embeds" in options
    assert list(model.conditioners) == ["text", slot, *(["noise_level"] if levels else [])]
    assert found.report.complete
    assert any(f"the channels of {slot}" in note for note in found.notes)

    x, concat = torch.randn(2, 4, 8, 8), torch.randn(2, channels - 4, 8, 8)
    t, ids = torch.tensor([3, 700]), [1, 5, 2]
    rows = [{"text": ids, slot: concat[row], **({"noise_level": 3 + row} if levels else {})} for row in range(2)]
    tokens = randomised(CLIPTextModel(CLIP))(torch.tensor([[1, 5, 2] + [0] * 74] * 2)).last_hidden_state
    conditioning = model.condition(rows)
    torch.testing.assert_close(conditioning.tokens[:, :3], tokens[:, :3], atol=1e-5, rtol=1e-5)
    wanted = unet(
        torch.cat([x, concat], dim=1),
        t,
        encoder_hidden_states=conditioning.tokens,
        class_labels=torch.tensor([3, 4]) if levels else None,
    ).sample
    assert (model.predict_noise(x, t, conditioning) - wanted).abs().max() < 1e-5 * wanted.std()


@torch.no_grad()
def test_inpainting_is_read_by_the_conditioner_that_knows_it(registry, tmp_path):
    """The UNet reads latent, mask, masked latent; the mask is 1 where it is painted anew, holes are grey."""
    import ldmkit

    unet = randomised(diffusers.UNet2DConditionModel(in_channels=9, **CONDITION))
    import_to(folder(tmp_path / "in", "StableDiffusionInpaintPipeline", unet), tmp_path / "out", registry=registry)
    model = ldmkit.load(tmp_path / "out", registry=registry)
    assert list(model.conditioners) == ["text", "inpainting"]
    image, mask = torch.rand(3, *model.size) * 2 - 1, torch.zeros(1, *model.size)
    mask[:, : model.size[0] // 2] = 1
    conditioning = model.condition([{"text": [1, 5, 2], "inpainting": (image, mask)}])
    masked = model.autoencoder.encode((image * (mask < 0.5))[None])
    grid = masked.shape[-2:]
    concat = torch.cat([torch.nn.functional.interpolate(mask[None], grid), masked], dim=1)
    x, t = torch.randn(1, 4, *grid), torch.tensor([300])
    wanted = unet(torch.cat([x, concat], dim=1), t, encoder_hidden_states=conditioning.tokens).sample
    assert (model.predict_noise(x, t, conditioning) - wanted).abs().max() < 1e-5 * wanted.std()
    values = {"text": [1, 5, 2], "inpainting": (image, mask)}
    made = model.sample(values, steps=2, sampler="ddim", spacing="leading", output="tensor")
    kept = (mask == 0)[None].expand_as(made)
    assert torch.equal(made[kept], image[None][kept])


def test_the_command_writes_and_samples_them(registry, tmp_path):
    import ldmkit

    unet = randomised(diffusers.UNet2DConditionModel(in_channels=8, **CONDITION))
    import_to(
        folder(tmp_path / "in", "StableDiffusionInstructPix2PixPipeline", unet), tmp_path / "out", registry=registry
    )
    model = ldmkit.load(tmp_path / "out", registry=registry)
    values = {"text": [1, 5, 2], "image": torch.randn(1, 4, 8, 8)}
    assert torch.isfinite(model.sample(values, steps=2, sampler="ddim", spacing="leading", output="latent")).all()


@torch.no_grad()
def test_a_class_conditional_unet_gets_its_class_slot(registry, tmp_path):
    options = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    unet = randomised(diffusers.UNet2DModel(num_class_embeds=10, **options))
    found = import_diffusers(folder(tmp_path / "in", "LDMPipeline", unet, text=False), registry=registry)
    model = found.model
    assert list(model.conditioners) == ["class"]
    assert found.report.complete
    assert any("none for no class" in note for note in found.notes)
    noise, labels = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 9])
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
    options = {"sampler": "ddim", "spacing": "leading", "clean": True, "steps": 5, "noise": noise, "output": "latent"}
    latents = model.autoencoder.unscale(model.sample([{"class": 3}, {"class": 9}], **options)) * 0.18215
    assert (latents - x).abs().max() < 1e-4 * x.std()


@torch.no_grad()
def test_xl_folders_take_tokens_and_a_vector(registry, tmp_path):
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 34,
    }
    depth = {"transformer_layers_per_block": (1, 2), "use_linear_projection": True}
    unet = randomised(diffusers.UNet2DConditionModel(in_channels=4, **CONDITION, **added, **depth))
    found = import_diffusers(folder(tmp_path / "in", "StableDiffusionXLPipeline", unet, text=False), registry=registry)
    model = found.model
    assert list(model.conditioners) == ["condition", "vector"]
    x, t, tokens = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 32)
    text, ids = torch.randn(1, 10), torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    angles = unet.add_time_proj(ids.flatten()).reshape(1, -1)
    wanted = unet(x, t, encoder_hidden_states=tokens, added_cond_kwargs={"text_embeds": text, "time_ids": ids}).sample
    conditioning = model.condition([{"condition": tokens[0], "vector": torch.cat([text, angles], dim=1)[0]}])
    assert (model.predict_noise(x, t, conditioning) - wanted).abs().max() < 1e-5 * wanted.std()


def test_a_text_encoder_of_another_width_is_refused(registry, tmp_path):
    unet = randomised(diffusers.UNet2DConditionModel(in_channels=4, **{**CONDITION, "cross_attention_dim": 24}))
    with pytest.raises(CheckpointError, match=r"width 24 \(cross_attention_dim\), and the text encoder gives 32"):
        import_diffusers(folder(tmp_path / "in", "StableDiffusionPipeline", unet), registry=registry)


@pytest.fixture
def plain(tmp_path):
    unet = randomised(diffusers.UNet2DConditionModel(in_channels=4, **CONDITION))
    return folder(tmp_path / "in", "StableDiffusionPipeline", unet)


def test_variants_shards_and_bin_are_read_and_the_rest_is_named(registry, plain):
    wanted = import_diffusers(plain, registry=registry).model.state_dict()
    file = plain / "unet/diffusion_pytorch_model.safetensors"
    unet = diffusers.UNet2DConditionModel.from_pretrained(plain / "unet")

    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found = import_diffusers(plain, registry=registry)
    assert "unet: the fp16 weights are read" in found.notes
    same(found.model.state_dict(), wanted)

    (plain / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"")
    found = import_diffusers(plain, registry=registry)
    assert "unet: the fp16 weights are read; not read: non_ema" in found.notes

    for options in (
        {"safe_serialization": False},
        {"max_shard_size": "100KB"},
        {"max_shard_size": "100KB", "variant": "fp16"},
    ):
        for old in (plain / "unet").glob("diffusion*"):
            old.unlink()
        unet.save_pretrained(plain / "unet", **options)
        same(import_diffusers(plain, registry=registry).model.state_dict(), wanted)

    for old in (plain / "unet").glob("diffusion*"):
        old.rename(old.with_name(f"flax_model_{old.name}"))
    with pytest.raises(CheckpointError, match=r"no weights in this folder that are read \(there is flax_model_"):
        import_diffusers(plain, registry=registry)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model_index.json", r"no model_index\.json\n.*scheduler, text_encoder, unet, vae: add a model_index"),
        ("scheduler/scheduler_config.json", r"no scheduler/scheduler_config\.json.*\n?.*scaled_linear"),
        ("vae/config.json", r"no vae or vqvae"),
    ],
)
def test_an_incomplete_folder_says_what_to_add(registry, plain, tmp_path, missing, message):
    (plain / missing).unlink()
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        import_to(plain, tmp_path / "out", registry=registry)


def test_an_autoencoder_whose_factor_is_not_known_is_refused(registry, plain):
    config = json.loads((plain / "vae/config.json").read_text())
    (plain / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": None}))
    with pytest.raises(CheckpointError, match="scaling_factor is None: how its latents are scaled is not known"):
        import_diffusers(plain, registry=registry)
