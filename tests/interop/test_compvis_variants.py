"""What checkpoints of Stable Diffusion and of training programs have beside the paper's: more conditions, markers, nesting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError
from ldmkit.interop import import_compvis
from ldmkit.interop.compvis.reader import flat
from ldmkit.interop.compvis.save import compvis_of
from ldmkit.interop.safe_reading.tensors import read_tensors
from tests.interop.conftest import representable

UNET = "model.diffusion_model."
TEXT = {"text": {"type": "text", "options": {"ids": 20, "length": 5, "width": 16, "depth": 1, "heads": 1}}}
pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer")  # which no checkpoint holds


@pytest.fixture(scope="module")
def original(registry):
    """The original's configuration and tensors of a model that reads text."""
    return compvis_of(representable(registry, TEXT))


def saved(path, tensors, wrap=lambda tensors: {"state_dict": tensors}):
    torch.save(wrap(tensors), path)
    return path


def changed(original, target="LatentDiffusion", network=None, **params):
    """Another LatentDiffusion of the same first stage and text, with the UNet that `network` makes of it; and that UNet."""
    config, tensors = original
    kept = config["model"]["params"]
    unet_params = {**kept["unet_config"]["params"], **(network or {})}
    unet_config = {**kept["unet_config"], "params": unet_params}
    made = {**config["model"], "target": f"ldm.models.diffusion.ddpm.{target}"}
    made["params"] = {**kept, "unet_config": unet_config, **params}
    from ldmkit.interop.compvis import config as compvis_config

    torch.manual_seed(1)
    unet = UNet.of_widths(**compvis_config.denoiser(compvis_config.Target.of(unet_config, "unet_config"))).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.1)
    own = {UNET + name: value for name, value in unet.state_dict().items()}
    return {"model": made}, {k: v for k, v in tensors.items() if not k.startswith(UNET)} | own, unet


MODELS = {
    "LatentDepth2ImageDiffusion": ({"in_channels": 4}, "depth", 1),
    "LatentUpscaleDiffusion": (
        {"in_channels": 6, "num_classes": 12, "disable_self_attentions": [True, True]},
        "low_resolution",
        3,
    ),
}


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("target", MODELS)
@torch.no_grad()
def test_what_lies_beside_the_latent_gets_a_slot(registry, tmp_path, original, target, averaged):
    network, slot, channels = MODELS[target]
    config, tensors, unet = changed(original, target, network, conditioning_key="hybrid")
    if averaged:
        tensors |= {flat(f"diffusion_model.{n}"): v for n, v in unet.state_dict().items()}
    found = import_compvis(saved(tmp_path / "m.ckpt", tensors), config, registry=registry)
    levels = "num_classes" in network
    assert list(found.model.conditioners) == ["text", slot, *(["noise_level"] if levels else [])]
    assert found.report.complete
    assert any(f"the channels of {slot}" in note for note in found.notes)

    x, t, concat = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, channels, 8, 8)
    rows = [{"text": [1, 4, 2], slot: concat[row], **({"noise_level": 5} if levels else {})} for row in range(2)]
    conditioning = found.model.condition(rows)
    labels = torch.tensor([5, 5]) if levels else None
    wanted = unet(x, t, tokens=conditioning.tokens, mask=conditioning.mask, concat=concat, labels=labels)
    torch.testing.assert_close(found.model.predict_noise(x, t, conditioning), wanted)


@torch.no_grad()
def test_inpainting_is_read_by_the_conditioner_that_knows_it(registry, tmp_path, original):
    """Stable Diffusion's: the channels are the latent, the mask (1: painted anew), the latent of the masked image."""
    config, tensors, unet = changed(original, "LatentInpaintDiffusion", {"in_channels": 7}, conditioning_key="hybrid")
    model = import_compvis(saved(tmp_path / "m.ckpt", tensors), config, registry=registry).model
    assert list(model.conditioners) == ["text", "inpainting"]
    image, mask = torch.rand(3, *model.size) * 2 - 1, torch.zeros(1, *model.size)
    mask[:, :, : model.size[1] // 2] = 1
    conditioning = model.condition([{"text": [1, 4, 2], "inpainting": (image, mask)}])
    masked = model.autoencoder.encode((image * (mask < 0.5))[None])
    concat = torch.cat([torch.nn.functional.interpolate(mask[None], masked.shape[-2:]), masked], dim=1)
    x, t = torch.randn(1, 3, *masked.shape[-2:]), torch.tensor([300])
    wanted = unet(x, t, tokens=conditioning.tokens, mask=conditioning.mask, concat=concat)
    torch.testing.assert_close(model.predict_noise(x, t, conditioning), wanted)


@torch.no_grad()
def test_a_sequential_label_embedding_is_a_vector(registry, tmp_path, original):
    """unCLIP of Stable Diffusion 2: two layers inside the UNet map an image's embedding to the time embedding."""
    network = {"num_classes": "sequential", "adm_in_channels": 7}
    config, tensors, unet = changed(original, "ImageEmbeddingConditionedLatentDiffusion", network)
    found = import_compvis(saved(tmp_path / "m.ckpt", tensors), config, registry=registry)
    x, t, vector = torch.randn(1, 3, 8, 8), torch.tensor([500]), torch.randn(7)
    conditioning = found.model.condition([{"text": [1, 4, 2], "vector": vector}])
    wanted = unet(x, t, tokens=conditioning.tokens, mask=conditioning.mask, vector=vector[None])
    torch.testing.assert_close(found.model.predict_noise(x, t, conditioning), wanted)


def test_what_every_file_carries_and_nothing_needs_is_named(registry, tmp_path, original):
    config, tensors = original
    more = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    found = import_compvis(saved(tmp_path / "m.ckpt", {**tensors, **more}), config, registry=registry)
    assert found.report.complete
    assert "not needed, and left out: cond_stage_model.transformer.text_model.embeddings.position_ids" in found.notes


def test_markers_of_v_prediction_and_zero_terminal_snr_are_followed(registry, tmp_path, original):
    config, tensors = original
    more = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    found = import_compvis(saved(tmp_path / "m.ckpt", {**tensors, **more}), config, registry=registry)
    assert found.model.diffusion.prediction.name == "v"
    assert found.model.diffusion.schedule.alphas_cumprod[-1] == 0
    assert any("marked v_pred" in note for note in found.notes)
    assert any("marked ztsnr" in note for note in found.notes)


def test_scale_by_std_needs_the_factor_that_was_measured(registry, tmp_path, original):
    config, tensors, _ = changed(original, scale_by_std=True, scale_factor=1.0)
    with pytest.raises(
        CheckpointError, match=r"scale_by_std, and the checkpoint has no scale_factor.*\n.*scale_by_std: false"
    ):
        import_compvis(saved(tmp_path / "m.ckpt", tensors), config, registry=registry)
    tensors["scale_factor"] = torch.tensor(0.25)
    found = import_compvis(saved(tmp_path / "n.ckpt", tensors), config, registry=registry)
    assert found.model.autoencoder.latent_scale.tolist() == [0.25] * 3


NESTINGS = {
    "below model": lambda tensors: {"epoch": 3, "model": tensors, "optimizer": {"state": {0: {"step": 1}}}},
    "below checkpoint.state_dict": lambda tensors: {"checkpoint": {"state_dict": tensors}},
    "with a prefix": lambda tensors: {"state_dict": {f"pl_module.{name}": value for name, value in tensors.items()}},
    "arrays of numpy": lambda tensors: {"state_dict": {name: value.numpy() for name, value in tensors.items()}},
    "arrays of the other byte order": lambda tensors: {
        "state_dict": {
            name: value.numpy().astype(value.numpy().dtype.newbyteorder()) for name, value in tensors.items()
        }
    },
    "an array in the column order": lambda tensors: {
        "state_dict": {n: np.asfortranarray(v.numpy()) if v.ndim == 4 else v for n, v in tensors.items()}
    },
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_nested_and_prefixed_checkpoints_are_read(registry, tmp_path, original, nesting):
    config, tensors = original
    wanted = import_compvis(saved(tmp_path / "plain.ckpt", tensors), config, registry=registry).model.state_dict()
    file = saved(tmp_path / "m.ckpt", tensors, NESTINGS[nesting])
    found = import_compvis(file, config, registry=registry).model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("where", "key", "message"),
    [
        ((), "image_size", "the configuration's params has no image_size"),
        (("unet_config",), "model_channels", "the configuration's unet_config has no model_channels"),
        (("first_stage_config", "ddconfig"), "ch", "the configuration's ddconfig has no ch"),
        (("first_stage_config", "ddconfig"), "in_channels", "the configuration's ddconfig has no in_channels"),
        (("first_stage_config",), "embed_dim", "the configuration's first stage has no embed_dim"),
        ((), "linear_start", "noise schedule is not the checkpoint's"),  # then it is DDPM's own, 1e-4
    ],
)
def test_a_key_that_is_missing_is_the_constructors_default_or_an_error(
    registry, tmp_path, original, where, key, message
):
    config, tensors = original
    config = copy.deepcopy(config)
    section = config["model"]["params"]
    for name in where:
        section = section[name] if name == "ddconfig" else section[name]["params"]
    del section[key]
    with pytest.raises(CheckpointError, match=message):
        import_compvis(saved(tmp_path / "m.ckpt", tensors), config, registry=registry)


def test_two_nested_models_are_told_apart_by_a_person(tmp_path):
    content = {"model": {"a": torch.ones(1)}, "ema": {"a": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=r"tensors under model, ema\n.*save the one"):
        read_tensors(saved(tmp_path / "m.ckpt", content, lambda content: content))


def test_arrays_of_objects_are_not_read(tmp_path):
    array = np.array([{"a": 1}], dtype=object)
    with pytest.raises(CheckpointError):
        read_tensors(saved(tmp_path / "m.ckpt", {"a": array}))
