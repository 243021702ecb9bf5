"""Our models in the original's layout and back; checkpoints that do not fit; modalities that no plugin knows."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

import ldmkit
from ldmkit import plugins
from ldmkit.conditioning.precomputed import PrecomputedConditioner
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop import import_compvis, load_compvis, load_compvis_autoencoder
from ldmkit.interop.compvis.save import compvis_of, save_compvis
from ldmkit.interop.diffusers.autoencoder_folder import load_autoencoder
from ldmkit.testing import check_conditioner
from tests.interop.conftest import KL, VQ, representable

CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 30,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 5,
    "bos_token_id": 0,
    "eos_token_id": 29,
}
CONDITIONS = {
    "none": {},
    "class": {"class": {"type": "class", "options": {"classes": 5, "width": 24}}},
    "low-res": {"low_res": {"type": "low-res", "options": {"scale": 4}}},
    "semantic-map": {"semantic_map": {"type": "semantic-map", "options": {"classes": 6, "channels": 2}}},
    "stable diffusion 1": {
        "text": {
            "type": "text",
            "options": {"ids": 30, "length": 5, "architecture": {**CLIP, "hidden_act": "quick_gelu"}},
        }
    },
    "stable diffusion 2": {
        "text": {"type": "text", "options": {"ids": 30, "length": 5, "architecture": {**CLIP, "hidden_act": "gelu"}}}
    },
    "text": {"text": {"type": "text", "options": {"ids": 20, "length": 5, "width": 16, "depth": 1, "heads": 1}}},
}


def made(registry, condition, autoencoder=KL, **network):
    return representable(registry, CONDITIONS[condition], autoencoder, **network)


def value(condition):
    return {
        "class": 3,
        "low-res": torch.rand(3, 8, 8) * 2 - 1,
        "semantic-map": torch.randint(6, (32, 32)),
        "text": [1, 4, 2],
        "stable diffusion 1": [1, 4, 2],
        "stable diffusion 2": [1, 4, 2],
    }[condition]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.filterwarnings("ignore:the tokenizer")  # which no checkpoint holds
def test_models_come_back_bit_for_bit(registry, tmp_path, condition, kind):
    model = made(registry, condition, {"kl": KL, "vq": VQ}[kind])
    model.autoencoder.latent_scale.fill_(0.5)
    save_compvis(model, tmp_path / "out")
    options = {"null_class": 5} if condition == "class" else {}
    again = load_compvis(tmp_path / "out/model.ckpt", tmp_path / "out/config.yaml", registry=registry, **options)
    ours, theirs = model.state_dict(), again.state_dict()
    rename = dict(zip(model.conditioners, again.conditioners, strict=True))
    assert list(rename) == list(rename.values())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    given = [{slot: value(condition) for slot in model.conditioners}]
    settings = {"steps": 2, "output": "latent", "spacing": "compvis", "sampler": "ddim"}
    assert torch.equal(model.sample(given, **settings), again.sample(given, **settings))


@pytest.mark.parametrize("null_class", [None, 5, 2])
def test_a_table_of_classes_comes_back_with_or_without_a_null(saved, tmp_path, registry, null_class):
    """A row that stands for no class, and was never trained, is not exported; one that was is the last."""
    first = load(saved, tmp_path, registry, null_class=null_class).model
    save_compvis(first, tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    rows = config["model"]["params"]["cond_stage_config"]["params"]["n_classes"]
    assert rows == {None: 6, 5: 6, 2: 7}[null_class]
    last = None if null_class is None else rows - 1
    again = load_compvis(tmp_path / "out/model.ckpt", tmp_path / "out/config.yaml", null_class=last, registry=registry)
    ours, theirs = first.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.conditioners.dropout.to_json() == first.conditioners.dropout.to_json()


def test_both_kinds_of_weights(registry, tmp_path):
    model = made(registry, "none", VQ, heads=None, head_width=32)
    raw = {f"denoiser.{name}": value + 1 for name, value in model.denoiser.state_dict().items()}
    save_compvis(model, tmp_path / "out", raw)
    paths = tmp_path / "out/model.ckpt", tmp_path / "out/config.yaml"
    averaged, unaveraged = (load_compvis(*paths, weights=weights, registry=registry) for weights in ("ema", "raw"))
    for name, tensor in model.denoiser.state_dict().items():
        assert torch.equal(averaged.denoiser.state_dict()[name], tensor)
        assert torch.equal(unaveraged.denoiser.state_dict()[name], raw[f"denoiser.{name}"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"variant": {"groups": 8}}, "groups"),
        ({"variant": {"groups": 32, "plain_attention": True}, "condition": "class"}, "plain attention beside"),
        ({"multipliers": [1, 2, 4], "heads": [1, 2, 1], "attention": [1, 2]}, "neither one number of heads"),
    ],
)
def test_what_the_original_cannot_represent_is_refused(registry, change, reason):
    with pytest.raises(UsageError, match=reason):
        compvis_of(made(registry, change.pop("condition", "none"), **change))


@pytest.fixture
def saved(registry, tmp_path):
    config, tensors = compvis_of(made(registry, "class"))
    return config, tensors


def load(saved, tmp_path, registry, **options):
    config, tensors = saved
    save_file(tensors, tmp_path / "m.safetensors")
    return import_compvis(tmp_path / "m.safetensors", config, registry=registry, **options)


def test_a_wrong_configuration_is_named_by_the_first_shapes_that_differ(saved, tmp_path, registry):
    saved[0]["model"]["params"]["unet_config"]["params"]["channel_mult"] = [1, 4]
    with pytest.raises(CheckpointError, match=r"input_blocks\.3\.0.*\(64, 32, 3, 3\), the model has \(128, 32, 3, 3\)"):
        load(saved, tmp_path, registry)


def test_another_schedule_is_noticed(saved, tmp_path, registry):
    saved[0]["model"]["params"]["linear_end"] = 0.0195
    with pytest.raises(CheckpointError, match="noise schedule"):
        load(saved, tmp_path, registry)


def test_missing_and_unexpected_tensors_are_errors_unless_they_are_named(saved, tmp_path, registry):
    del saved[1]["model.diffusion_model.out.2.bias"]
    saved[1]["model.diffusion_model.extra.weight"] = torch.zeros(2)
    with pytest.raises(
        CheckpointError, match=r"1 missing, 1 unexpected.*out\.2\.bias is missing.*extra\.weight is not in"
    ):
        load(saved, tmp_path, registry)
    found = load(saved, tmp_path, registry, allow_partial=("*out.2.bias", "*extra*"))
    assert found.report.missing == ("model.diffusion_model.out.2.bias",)
    assert torch.isfinite(found.model.denoiser.get_parameter("out.2.bias")).all()


def test_values_that_are_not_finite_are_refused(saved, tmp_path, registry):
    saved[1]["model.diffusion_model.out.2.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"out\.2\.bias holds values that are not finite"):
        load(saved, tmp_path, registry)


def test_half_precision_is_read(saved, tmp_path, registry):
    halved = {n: v.half() if n.startswith("model.") else v for n, v in saved[1].items()}
    model = load((saved[0], halved), tmp_path, registry).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_scale_in_the_checkpoint_wins(saved, tmp_path, registry):
    saved[1]["scale_factor"] = torch.tensor(0.25)
    assert load(saved, tmp_path, registry).model.autoencoder.latent_scale.tolist() == [0.25] * 3


def test_a_modality_without_a_plugin_leaves_the_core_and_says_what_is_missing(registry, tmp_path):
    bare = plugins.load(only=())
    config, tensors = compvis_of(made(registry, "class"))
    found = load((config, tensors), tmp_path, bare)
    assert (
        "no installed plugin reads the conditioning stage ldm.modules.encoders.modules.ClassEmbedder" in found.notes[0]
    )
    (slot,) = found.model.conditioners
    assert slot == "class_label"
    tokens = tensors["cond_stage_model.embedding.weight"][3:4]
    images = found.model.sample({slot: tokens[None]}, steps=2, output="latent")
    whole = load((config, tensors), tmp_path, registry).model
    assert torch.equal(images, whole.sample({"class": 3}, steps=2, output="latent"))


@pytest.mark.parametrize("ports", [{"tokens": 6, "length": 4}, {"vector": 5, "concat": 2}])
def test_the_stand_in_keeps_the_contract_of_conditioners(ports):
    made = {"tokens": torch.randn(3, 6), "vector": torch.randn(5), "concat": torch.randn(2, 8, 8)}
    value = {port: made[port] for port in ("tokens", "vector", "concat") if port in ports}
    sample = {"image": torch.zeros(3, 64, 64), "value": value if len(value) > 1 else next(iter(value.values()))}
    check_conditioner(PrecomputedConditioner(**ports), sample)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_an_autoencoder_alone(registry, tmp_path, kind):
    model = made(registry, "none", {"kl": KL, "vq": VQ}[kind])
    config, tensors = compvis_of(model)
    alone = {n.removeprefix("first_stage_model."): v for n, v in tensors.items() if n.startswith("first_stage_model.")}
    alone["loss.logvar"] = torch.zeros(())
    torch.save({"state_dict": alone}, tmp_path / "ae.ckpt")
    own = {"model": config["model"]["params"]["first_stage_config"]}
    found = load_compvis_autoencoder(tmp_path / "ae.ckpt", own)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.encode(images), model.autoencoder.encode(images))
    with pytest.raises(UsageError, match="autoencoder alone"):
        load_compvis(tmp_path / "ae.ckpt", own)

    (tmp_path / "ae.yaml").write_text(yaml.safe_dump(own))
    run(tmp_path / "ae.ckpt", "--config", tmp_path / "ae.yaml", "--to", tmp_path / "folder")
    assert torch.equal(
        load_autoencoder(tmp_path / "folder").decode(found.encode(images)), found.decode(found.encode(images))
    )


def run(*arguments):
    from ldmkit.cli.import_ import command

    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_writes_a_model_or_nothing(registry, tmp_path):
    save_compvis(made(registry, "class"), tmp_path / "source")
    arguments = (tmp_path / "source/model.ckpt", "--config", tmp_path / "source/config.yaml", "--to", tmp_path / "to")
    told = json.loads(run(*arguments, "--null-class", 5, "--json"))
    assert told["keys"]["missing"] == told["keys"]["unexpected"] == []
    model = ldmkit.load(tmp_path / "to")
    assert model.sample({"class": 2}, steps=2, guidance=2.0, output="tensor").shape == (1, 3, 32, 32)

    with pytest.raises(CheckpointError, match="exists already"):
        run(*arguments)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "source/model.ckpt").read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        run(tmp_path / "cut.ckpt", "--config", tmp_path / "source/config.yaml", "--to", tmp_path / "half")
    assert not (tmp_path / "half").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.ckpt", "source", "to"]
