"""Pipeline folders: diffusers computes the same from them, and they come back bit for bit."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from ldmkit.assembly import assemble
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop import import_diffusers, load_diffusers, save_diffusers, verifying, verifying_child
from ldmkit.interop.diffusers.autoencoder_folder import load_autoencoder
from ldmkit.interop.diffusers.folders import write_tensors
from ldmkit.interop.importing import import_to
from ldmkit.interop.model_card import save_hub, stated_licence
from ldmkit.interop.verifying import LIMIT, export_diffusers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
    from ldmkit_text.tokenizer import fit_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
VQ = {
    "type": "vq",
    "downsample": 4,
    "multipliers": [1, 1, 2],
    "channels": 16,
    "blocks": 1,
    "latent_channels": 3,
    "codebook": 32,
}
KL = {"type": "kl", "downsample": 8, "multipliers": [1, 1, 2, 2], "channels": 16, "blocks": 1, "latent_channels": 4}
CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WORDS = ["a photograph of a cat", " ".join(f"word{i}" for i in range(120))]
TEXT = {"length": 77}
SLOTS = {
    "LDMPipeline": {},
    "LDMSuperResolutionPipeline": {"low_res": ("low-res", {"scale": 4})},
    "LDMTextToImagePipeline": {"text": ("text", {**TEXT, "width": 16, "depth": 2, "heads": 2})},
    "StableDiffusionPipeline": {"text": ("text", {**TEXT, "architecture": CLIP})},
    "a class": {"class": ("class", {"classes": 3, "width": 16})},
    "a class by vector": {"class": ("class", {"classes": 3, "width": 16, "port": "vector"})},
    "a map": {"semantic_map": ("semantic-map", {"classes": 3})},
    "two": {"class": ("class", {"classes": 3, "width": 16}), "low_res": ("low-res", {"scale": 4})},
    "masked text": {"text": ("text", {**TEXT, "width": 16, "depth": 1, "heads": 1, "mask": True})},
    "a picture of another size": {"low_res": ("low-res", {"scale": 4, "noise": 0.5})},
}
PIPELINES = [name for name in SLOTS if name.endswith("Pipeline")]


def made(registry, name, autoencoder=None, diffusion=None):
    slots = {}
    for slot, (kind, options) in SLOTS[name].items():
        vocabulary = {"vocabulary": fit_tokenizer(WORDS, 77)} if kind == "text" else {}
        slots[slot] = {"type": kind, "options": {**options, **vocabulary}, "fields": {}, "origin": {}}
    text = "text" in slots
    config = {
        "size": [64, 64] if text else [32, 32],
        "autoencoder": {**(autoencoder or (KL if text else VQ)), "groups": 8, "middle_attention": True},
        "denoiser": {
            "channels": 16,
            "multipliers": [1, 2],
            "blocks": 1,
            "attention": [2],
            "head_width": 8,
            "variant": {"groups": 8},
        },
        "diffusion": diffusion or {"schedule": {"type": "linear", "start": 0.0015, "end": 0.0155}},
        "conditioners": slots,
        "dropout": {slot: 0.1 for slot in slots if slot == "text"},
        "sampling": {"sampler": "ddim", "spacing": "compvis", "steps": 4},
    }
    torch.manual_seed(0)
    model = assemble(config, registry)
    with torch.no_grad():
        for part in (model.autoencoder, model.denoiser):
            for parameter in part.parameters():
                parameter.normal_(std=0.1).add_(0.2 if parameter.ndim == 1 else 0.0)
        if text:
            model.autoencoder.latent_scale.fill_(0.18215)
    return model.eval()


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request, tmp_path):
    """The other process' work here: importing diffusers takes longer than all the tests."""
    if "subprocess" in request.node.name:
        return

    def here(folder, request, inputs):
        given, answer = tmp_path / "given.safetensors", tmp_path / "answer.safetensors"
        write_tensors(given, inputs)
        verifying_child.main(str(folder), request, str(given), str(answer))
        return verifying.load_file(answer)

    monkeypatch.setattr(verifying, "_other_process", here)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_compute_the_same_and_come_back(registry, tmp_path, name):
    model = made(registry, name)
    pipeline, found = export_diffusers(model, tmp_path / "out", verify=True)
    print(found)
    assert pipeline == name
    assert found.largest < LIMIT / 10

    again = load_diffusers(tmp_path / "out", registry=registry)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(model.conditioners) == list(again.conditioners)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    values = {"low_res": torch.rand(1, 3, 8, 8)} if "low_res" in model.conditioners else {}
    values |= {"text": [1, 5, 2]} if "text" in model.conditioners else {}
    settings = {
        "sampler": "ddim",
        "spacing": "compvis",
        "steps": 2,
        "output": "latent",
        "noise": torch.randn(1, *model.latent_shape(model.size)),
    }
    assert torch.equal(model.sample(values, **settings), again.sample(values, **settings))

    save_diffusers(model, tmp_path / "twice")
    for file in sorted((tmp_path / "out").rglob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "twice" / file.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.parametrize(
    "diffusion",
    [
        {"schedule": {"type": "cosine"}, "prediction": "v"},
        {"schedule": {"type": "plain-linear"}, "prediction": "x0"},
        {"schedule": {"type": "sqrt", "start": 1e-6, "end": 1e-4}},
    ],
)
def test_schedules_and_predictions(registry, tmp_path, diffusion):
    _, found = export_diffusers(made(registry, "LDMPipeline", KL, diffusion), tmp_path / "out", verify=True)
    print(found)
    assert found.largest < LIMIT
    again = load_diffusers(tmp_path / "out", registry=registry)
    assert again.diffusion.prediction.name == diffusion.get("prediction", "eps")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a class", "no text encoder"),
        ("a class by vector", "time embedding"),
        ("a map", "a condition|picture"),
        ("two", "2 conditions"),
        ("masked text", "masks padding"),
        ("a picture of another size", "time embedding"),
    ],
)
def test_what_no_pipeline_computes_is_refused_and_nothing_is_written(registry, tmp_path, name, reason):
    with pytest.raises(UsageError, match=reason):
        save_diffusers(made(registry, name), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scaled_latents_have_no_super_resolution_pipeline(registry, tmp_path):
    model = made(registry, "LDMSuperResolutionPipeline")
    model.autoencoder.latent_scale.fill_(2.0)
    with pytest.raises(UsageError, match="scaled"):
        save_diffusers(model, tmp_path / "out")


def test_other_schedules_are_refused(registry, tmp_path):
    with pytest.raises(UsageError, match="not a table of betas"):
        save_diffusers(
            made(registry, "LDMPipeline", None, {"schedule": {"type": "flow"}, "prediction": "flow"}), tmp_path / "out"
        )


def test_a_folder_that_computes_something_else_is_not_left_behind(registry, tmp_path, monkeypatch):
    model = made(registry, "LDMPipeline")
    write = verifying.write_pipeline

    def spoiled(model, path):
        name = write(model, path)
        config = json.loads((path / "scheduler/scheduler_config.json").read_text())
        (path / "scheduler/scheduler_config.json").write_text(json.dumps({**config, "steps_offset": 0}))
        return name

    monkeypatch.setattr(verifying, "write_pipeline", spoiled)
    with pytest.raises(CheckpointError, match="computes other values"):
        export_diffusers(model, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_schedulers_decide_how_is_sampled(registry, tmp_path):
    save_diffusers(made(registry, "LDMPipeline"), tmp_path / "out")
    file = tmp_path / "out/scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    changed = {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }
    file.write_text(json.dumps({**config, **changed}))
    found = import_diffusers(tmp_path / "out", registry=registry)
    assert found.model.sampling == {
        "sampler": "plms",
        "steps": 50,
        "guidance": 1.0,
        "spacing": {"type": "trailing", "whole_strides": True},
        "clean": True,
        "runge_kutta": False,
        "extrapolate": "eps",
    }
    file.write_text(json.dumps({**config, "_class_name": "KDPM2DiscreteScheduler"}))
    assert "in place of KDPM2DiscreteScheduler" in import_diffusers(tmp_path / "out", registry=registry).notes[0]


def test_the_command_verifies_in_a_subprocess(registry, tmp_path):
    from click.testing import CliRunner

    from ldmkit.cli.export import command

    made(registry, "LDMSuperResolutionPipeline").save(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--to", str(tmp_path / "out"), "--verify", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["pipeline"] == "LDMSuperResolutionPipeline"
    assert told["verified"]["latents"] < LIMIT


def test_a_first_stage_in_a_folder_of_its_own(registry, tmp_path):
    """As people publish better decoders: one component, no pipeline."""
    model = made(registry, "LDMPipeline", KL)
    model.autoencoder.latent_scale.fill_(0.3)
    save_diffusers(model, tmp_path / "out")
    written = import_to(tmp_path / "out/vqvae", tmp_path / "first")
    assert written.report.complete
    again = load_autoencoder(tmp_path / "first")
    assert torch.equal(again.latent_scale, model.autoencoder.latent_scale)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.encode(picture), model.autoencoder.encode(picture))
    with pytest.raises(UsageError, match="a diffusers folder is complete"):
        import_to(tmp_path / "out/vqvae", tmp_path / "second", weights="raw")


def test_partial_pipelines_are_refused_unless_the_tensors_are_named(registry, tmp_path):
    save_diffusers(made(registry, "LDMPipeline"), tmp_path / "out")
    file = tmp_path / "out/unet/diffusion_pytorch_model.safetensors"
    tensors = verifying.load_file(file)
    del tensors["conv_out.bias"]
    write_tensors(file, {**tensors, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 missing, 1 unexpected"):
        import_diffusers(tmp_path / "out", registry=registry)
    found = import_diffusers(tmp_path / "out", registry=registry, allow_partial=("out.2.bias", "extra"))
    assert found.report.differences == ("out.2.bias", "extra")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("unet", "layers_per_block", 10**8, "1 to 128 are read"),
        ("unet", "block_out_channels", "wide", "network that cannot be built"),
        ("unet", "norm_num_groups", 5, "do not divide its 16 channels"),
        ("vqvae", "block_out_channels", None, "network that cannot be built"),
        ("scheduler", "num_train_timesteps", "many", "network that cannot be built"),
    ],
)
def test_configurations_that_no_network_can_be_built_of(registry, tmp_path, part, key, value, message):
    save_diffusers(made(registry, "LDMPipeline"), tmp_path / "out")
    file = tmp_path / "out" / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(tmp_path / "out", registry=registry)


def test_a_name_on_the_hub_is_read_like_a_folder(registry, tmp_path, monkeypatch):
    import huggingface_hub

    import ldmkit
    from ldmkit.errors import OfflineError

    asked = []

    def fetched(name, **_):
        asked.append(name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    (tmp_path / "snapshot").mkdir()
    with pytest.raises(CheckpointError, match=r"someone/cats is no model of ldmkit: it has no config\.json"):
        ldmkit.load("someone/cats", registry=registry)
    save_hub(made(registry, "LDMPipeline"), tmp_path / "snapshot")
    assert ldmkit.load("someone/cats", registry=registry).size == (32, 32)
    assert asked == ["someone/cats"] * 2

    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OfflineError, match=r"someone/cats is neither a local directory nor .*no network"):
        ldmkit.load("someone/cats", registry=registry)


def test_what_is_to_be_imported_first_is_said(registry, tmp_path):
    import ldmkit

    save_diffusers(made(registry, "LDMPipeline"), tmp_path / "out")
    (tmp_path / "m.ckpt").write_bytes(b"")
    for place, what in ((tmp_path / "out", "a pipeline of diffusers"), (tmp_path / "m.ckpt", "a file")):
        with pytest.raises(CheckpointError, match=f"is {what}, and no model of ldmkit\n  ldmkit import"):
            ldmkit.load(place, registry=registry)


FIGURE = {
    "name": "psnr",
    "title": "PSNR",
    "value": 21.5,
    "unit": "dB",
    "interval": [20.0, 23.0],
    "beside": {"bicubic": 19.0},
}


def test_the_hub_format_is_a_model_with_a_card(registry, tmp_path):
    import ldmkit

    model = made(registry, "LDMSuperResolutionPipeline")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.resolved.yaml").write_text("name: cats\ndata: {type: folder, size: 32}\n")
    (tmp_path / "run/evaluation.json").write_text(json.dumps({"n": 8, "figures": [FIGURE]}))
    save_hub(model, tmp_path / "hub", run=tmp_path / "run", licence="cc-by-4.0")
    card = (tmp_path / "hub/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: ldmkit\n")
    for part in ("`folder`", "| PSNR | 21.5 dB | 20 to 23 | bicubic 19 |", "name: cats", "`low_res`"):
        assert part in card
    assert ldmkit.load(tmp_path / "hub").size == (32, 32)
    assert stated_licence(tmp_path / "hub") == "cc-by-4.0"
    save_hub(model, tmp_path / "again", run=tmp_path / "hub")
    assert (tmp_path / "again/README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")
