"""Every released configuration, read in the original's own schema: the exact numbers of parameters, heads and noise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from ldmkit import autoencoder as autoencoders
from ldmkit import diffusion, plugins
from ldmkit.denoiser.levels import resolve_levels
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError
from ldmkit.interop.assembling import on_meta
from ldmkit.interop.compvis import config as original
from ldmkit.interop.compvis.config import Target
from ldmkit.interop.compvis.reader import Reader, flat

RELEASED = yaml.safe_load((Path(__file__).parent / "released.yaml").read_text())


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", RELEASED["autoencoders"])
def test_autoencoders(name):
    released = RELEASED["autoencoders"][name]
    target = original.read(released)
    assert original.is_autoencoder(target)
    with on_meta():
        ours = autoencoders.make(**original.autoencoder(target))
        papers = autoencoders.paper(name)
    assert parameters(ours) == released["parameters"]
    assert {**ours.config, "groups": None, "attention_type": None} == {
        **papers.config,
        "groups": None,
        "attention_type": None,
    }


@pytest.mark.parametrize("name", RELEASED["models"])
def test_models(name):
    released = RELEASED["models"][name]
    params = original.read(released).params
    network = Target.of(params["unet_config"], "unet_config")
    reader = Reader(original.read(released), {}, name, plugins.load(only=()))
    heads = reader._true_heads(network)
    with on_meta():
        unet = UNet.of_widths(**original.denoiser(network, heads))
        first_stage = autoencoders.make(**original.autoencoder(Target.of(params["first_stage_config"], "first_stage")))
    assert parameters(unet) == released["parameters"]
    assert [level.heads for level in resolve_levels(unet.config)] == released["heads"]
    assert bool(reader.notes) == (name in ("class-f8", "text-256", "layout"))
    assert unet.config["out_channels"] == first_stage.latent_channels == params["channels"]
    schedule = diffusion.make(**original.diffusion(params)).schedule
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(released["last"], rel=1e-2)


def bert(width, depth, count, length):
    """The shapes of the paper's text transformer, with the language model's head that is in the files."""
    shapes = {"token_emb.weight": (count, width), "pos_emb.emb.weight": (length, width)}
    shapes |= {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "to_logits.weight": (count, width),
        "to_logits.bias": (count,),
    }
    for layer in range(depth):
        attention, feed = f"attn_layers.layers.{2 * layer}.", f"attn_layers.layers.{2 * layer + 1}."
        shapes |= {f"{attention}1.to_{letter}.weight": (512, width) for letter in "qkv"}
        shapes |= {f"{attention}1.to_out.weight": (width, 512), f"{attention}1.to_out.bias": (width,)}
        shapes |= {f"{feed}1.net.0.0.weight": (4 * width, width), f"{feed}1.net.0.0.bias": (4 * width,)}
        shapes |= {f"{feed}1.net.2.weight": (width, 4 * width), f"{feed}1.net.2.bias": (width,)}
        shapes |= {f"{block}0.{kind}": (width,) for block in (attention, feed) for kind in ("weight", "bias")}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def clip():
    """Of CLIP ViT-L/14's text tower, as Stable Diffusion 1 holds it."""
    prefix, width = "transformer.text_model.", 768
    shapes = {"embeddings.token_embedding.weight": (49408, width), "embeddings.position_embedding.weight": (77, width)}
    shapes |= {
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
        "embeddings.position_ids": (1, 77),
    }
    for layer in range(12):
        block = f"encoder.layers.{layer}."
        for letter in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{block}self_attn.{letter}.weight": (width, width), f"{block}self_attn.{letter}.bias": (width,)}
        shapes |= {f"{block}mlp.fc1.weight": (4 * width, width), f"{block}mlp.fc1.bias": (4 * width,)}
        shapes |= {f"{block}mlp.fc2.weight": (width, 4 * width), f"{block}mlp.fc2.bias": (width,)}
        shapes |= {f"{block}layer_norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    return {prefix + name: shape for name, shape in shapes.items()}


def open_clip():
    """Of open_clip's ViT-H/14, as Stable Diffusion 2 holds it."""
    width = 1024
    shapes = {"positional_embedding": (77, width), "text_projection": (width, width), "logit_scale": ()}
    shapes |= {"token_embedding.weight": (49408, width), "ln_final.weight": (width,), "ln_final.bias": (width,)}
    for layer in range(24):
        block = f"transformer.resblocks.{layer}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        shapes |= {f"{block}mlp.c_fc.weight": (4 * width, width), f"{block}mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}mlp.c_proj.weight": (width, 4 * width), f"{block}mlp.c_proj.bias": (width,)}
        shapes |= {f"{block}ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    return {f"model.{name}": shape for name, shape in shapes.items()}


UNREAD = ("to_logits.", "position_ids", "text_projection", "logit_scale", "resblocks.23.")
# Model -> (type of the slot, parameters of our own beside those of the file, whether guidance has something to drop, its shapes).
STAGES = {
    "class-f8": ("class", 512, False, {"embedding.weight": (1000, 512)}),
    "class-v2": ("class", 0, True, {"embedding.weight": (1001, 512)}),
    "text-1.4B": ("text", 0, True, bert(1280, 32, 30522, 77)),
    "text-256": ("text", 0, True, bert(640, 32, 30522, 77)),
    "layout": ("given", 0, True, bert(512, 16, 8192, 92)),
    "semantic-256": ("semantic-map", 3, False, {"channel_mapper.weight": (3, 182, 1, 1)}),
    "super-resolution": ("low-res", 0, False, {}),
    "retrieval": ("given", 0, True, {}),
    "stable-diffusion-v1": ("text", 0, True, clip()),
    "stable-diffusion-v2": ("text", 0, True, open_clip()),
}


def test_the_shapes_are_those_of_the_released_files():
    totals = {name: sum(math.prod(shape) for shape in shapes.values()) for name, (*_, shapes) in STAGES.items()}
    assert totals["text-1.4B"] == 581_994_042
    assert totals["stable-diffusion-v1"] == 123_060_480 + 77
    assert round(totals["text-256"] / 1e6, 1) == 186.2
    assert round(totals["layout"] / 1e6, 1) == 58.9
    assert len(STAGES["text-1.4B"][3]) == 422
    assert len(STAGES["layout"][3]) == 214


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_conditioning_stages(name):
    """Each goes to the right plugin, on meta, with every tensor taken; what no plugin knows is said."""
    kind, own, guided, shapes = STAGES[name]
    read = [math.prod(shape) for key, shape in shapes.items() if not any(part in key for part in UNREAD)]
    tensors = {f"cond_stage_model.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    target = original.read(RELEASED["models"][name])
    reader = Reader(target, tensors, name, plugins.load())
    network = original.denoiser(Target.of(target.params["unet_config"], "unet_config"), 1)
    with on_meta():
        found = reader._condition(network, None)
    assert found.slot.type == kind
    assert parameters(found.conditioner) == (0 if kind == "given" else sum(read) + own)
    assert bool(reader._dropout(found, network)) == guided
    assert any("no installed plugin reads" in note for note in reader.notes) == (kind == "given")
    assert kind == "given" or set(found.read) == {key for key in shapes if not key.endswith("position_ids")}


@pytest.mark.parametrize("name", RELEASED["models"])
def test_names_of_averages_do_not_collide(name):
    network = Target.of(original.read(RELEASED["models"][name]).params["unet_config"], "unet_config")
    with on_meta():
        names = list(UNet.of_widths(**original.denoiser(network)).state_dict())
    assert len({flat(f"diffusion_model.{name}") for name in names}) == len(names)
    assert flat("diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_new_attention_order": True}, "use_new_attention_order"),
        ({"n_embed": 8192}, "n_embed"),
        ({"dims": 3}, "dims"),
        ({"num_classes": "continuous"}, "num_classes 'continuous' is not supported"),
        ({"num_classes": "sequential"}, "no adm_in_channels"),
        ({"disable_self_attentions": [True]}, "one entry for each"),
        ({"disable_middle_self_attn": True}, "disable_middle_self_attn"),
        ({"num_heads_upsample": 3}, "num_heads_upsample"),
        ({"wings": 2}, "says wings"),
        ({"num_heads": -1}, "neither num_heads"),
    ],
)
def test_what_ldmkit_does_not_have_is_refused_by_name(change, message):
    params = RELEASED["models"]["semantic-256"]["model"]["params"]["unet_config"]["params"]
    with pytest.raises(CheckpointError, match=message):
        original.denoiser(Target("openaimodel.UNetModel", {**params, **change}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing", "model|empty"),
        ("a: [", "expected"),
        ("model: {params: {}}", "names no target"),
        ("model: 3", "names no target"),
    ],
)
def test_what_is_no_configuration(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        original.read(tmp_path / "config.yaml")
