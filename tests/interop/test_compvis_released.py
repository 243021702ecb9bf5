"""Every released configuration, read in the original's own schema: the exact numbers of parameters, heads and noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ldmkit import autoencoder as autoencoders
from ldmkit import diffusion, plugins
from ldmkit.errors import CheckpointError
from ldmkit.interop import compvis_config as original
from ldmkit.interop.assembling import on_meta
from ldmkit.interop.compvis_config import Target
from ldmkit.interop.compvis_reader import Reader, flat
from ldmkit.nn.levels import resolve_levels
from ldmkit.unet import UNet

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
        unet = UNet(**original.denoiser(network, heads))
        first_stage = autoencoders.make(**original.autoencoder(Target.of(params["first_stage_config"], "first_stage")))
    assert parameters(unet) == released["parameters"]
    assert [level.heads for level in resolve_levels(unet.config)] == released["heads"]
    assert bool(reader.notes) == (name in ("class-f8", "text-256", "layout"))
    assert unet.config["out_channels"] == first_stage.latent_channels == params["channels"]
    schedule = diffusion.make(**original.diffusion(params)).schedule
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(released["last"], rel=1e-2)


@pytest.mark.parametrize("name", RELEASED["models"])
def test_names_of_averages_do_not_collide(name):
    network = Target.of(original.read(RELEASED["models"][name]).params["unet_config"], "unet_config")
    with on_meta():
        names = list(UNet(**original.denoiser(network)).state_dict())
    assert len({flat(f"diffusion_model.{name}") for name in names}) == len(names)
    assert flat("diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_new_attention_order": True}, "use_new_attention_order"),
        ({"n_embed": 8192}, "n_embed"),
        ({"dims": 3}, "dims"),
        ({"num_classes": "sequential"}, "num_classes"),
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
