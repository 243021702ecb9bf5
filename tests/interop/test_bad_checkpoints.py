"""Checkpoints as people meet them: other precisions and prefixes are read, damage is named, and nothing is half written."""

from __future__ import annotations

import os
import re

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

from ldmkit.errors import CheckpointError, ResourceError, UsageError
from ldmkit.interop import import_compvis
from ldmkit.interop.compvis.save import compvis_of
from ldmkit.interop.importing import import_to
from tests.interop.conftest import representable

LAYER = "first_stage_model.decoder.conv_in.weight"


@pytest.fixture(scope="module")
def whole(registry):
    """The original's configuration and tensors of a small class-conditional model with both kinds of weights."""
    model = representable(registry, {"class": {"type": "class", "options": {"classes": 5, "width": 24}}})
    raw = {f"denoiser.{name}": value + 0.5 for name, value in model.denoiser.state_dict().items()}
    return compvis_of(model, raw)


def read(whole, tmp_path, registry, tensors=None, config=None, **options):
    torch.save({"state_dict": whole[1] if tensors is None else tensors}, tmp_path / "m.ckpt")
    return import_compvis(tmp_path / "m.ckpt", config or whole[0], registry=registry, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_schedule_and_all(whole, tmp_path, registry, dtype):
    tensors = {name: value.to(dtype) for name, value in whole[1].items()}
    found = read(whole, tmp_path, registry, tensors)
    assert found.report.complete
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    wrong = yaml.safe_load(yaml.safe_dump(whole[0]))
    wrong["model"]["params"]["linear_end"] = 0.0195
    with pytest.raises(CheckpointError, match="noise schedule"):
        read(whole, tmp_path, registry, tensors, wrong)


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "module."), ("model.diffusion_model.", "model.module.diffusion_model."), ("model.", "model._orig_mod.")],
)
def test_what_wrappers_put_into_names_is_taken_out(whole, tmp_path, registry, before, after):
    tensors = {
        after + name.removeprefix(before) if name.startswith(before) else name: value
        for name, value in whole[1].items()
    }
    ours, theirs = read(whole, tmp_path, registry), read(whole, tmp_path, registry, tensors)
    assert theirs.report.complete
    assert ours.raw.keys() == theirs.raw.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int32), "int32, the model has float32"),
        (lambda value: value.to(torch.complex64), "complex64, the model has float32"),
        (lambda value: value.to("meta"), "has no values"),
        (lambda value: value.flatten(1).to_sparse(), "is sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_another_kind_are_named(whole, tmp_path, registry, change, message):
    with pytest.raises(CheckpointError, match=re.escape(LAYER) + ".*" + message):
        read(whole, tmp_path, registry, {**whole[1], LAYER: change(whole[1][LAYER])})


def test_the_conditioning_stage_is_matched_like_the_rest(whole, tmp_path, registry):
    assert "cond_stage_model.embedding.weight" in read(whole, tmp_path, registry).report.matched
    with pytest.raises(CheckpointError, match=r"cond_stage_model\.other is not in the model"):
        read(whole, tmp_path, registry, {**whole[1], "cond_stage_model.other": torch.zeros(1)})
    left = {name: value for name, value in whole[1].items() if not name.startswith("cond_stage_model.")}
    with pytest.raises(CheckpointError, match=r"m\.ckpt: the class embedding"):
        read(whole, tmp_path, registry, left)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda state: state.pop("model.diffusion_model.out.2.bias"), "incomplete"),
        (lambda state: state.update({"model.diffusion_model.out.2.bias": torch.full((3,), torch.nan)}), "not finite"),
    ],
)
def test_damage_in_the_weights_that_were_not_asked_for_is_said(whole, tmp_path, registry, change, note):
    tensors = dict(whole[1])
    change(tensors)
    found = read(whole, tmp_path, registry, tensors)
    assert found.raw is None
    assert note in found.notes[-1]


def test_guidance_needs_a_null_class_also_where_the_yaml_does_not_count_the_classes(whole, tmp_path, registry):
    config = yaml.safe_load(yaml.safe_dump(whole[0]))
    del config["model"]["params"]["cond_stage_config"]["params"]["n_classes"]
    for null_class, guided in ((None, False), (5, True)):
        model = read(whole, tmp_path, registry, config=config, null_class=null_class).model
        assert (frozenset({"class"}) in model.conditioners.dropout.trained) == guided


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("unet_config", "num_res_blocks", 10**8, "1 to 128 are read"),
        ("unet_config", "channel_mult", [1] * 500, "1 to 128 are read"),
        ("unet_config", "model_channels", "wide", "network that cannot be built"),
        ("unet_config", "model_channels", 40, "32 groups, which do not divide its 40 channels"),
        ("unet_config", "attention_resolutions", 7, "network that cannot be built"),
        ("first_stage_config", "ddconfig", {"ch": 32}, "no z_channels|has no"),
        (None, "timesteps", "many", "network that cannot be built"),
        (None, "image_size", "large", "network that cannot be built"),
        (None, "unet_config", 3, "names no target"),
    ],
)
def test_configurations_that_no_network_can_be_built_of(whole, tmp_path, registry, section, key, value, message):
    config = yaml.safe_load(yaml.safe_dump(whole[0]))
    params = config["model"]["params"]
    (params if section is None else params[section]["params"])[key] = value
    with pytest.raises((CheckpointError, UsageError), match=message):
        read(whole, tmp_path, registry, config=config)


def test_another_codebase_is_said(whole, tmp_path, registry):
    config = {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": {"network_config": {}}}}
    with pytest.raises(CheckpointError, match=r"sgm\.models\.diffusion\.DiffusionEngine with no unet_config"):
        read(whole, tmp_path, registry, config=config)


@pytest.fixture
def files(whole, tmp_path):
    save_file(whole[1], tmp_path / "m.safetensors")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(whole[0]))
    return tmp_path / "m.safetensors", tmp_path / "c.yaml"


@pytest.mark.parametrize("place", ["taken", "file/below"])
def test_where_nothing_can_be_written_nothing_is_read(files, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("x")
    with pytest.raises((CheckpointError, ResourceError), match=r"exists already|is no directory"):
        import_to("not even there", tmp_path / place, config=files[1])


def test_a_failure_while_writing_leaves_nothing(files, tmp_path, registry, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("ldmkit.interop.model_card.write_card", full)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match="no space"):
        import_to(files[0], tmp_path / "out", config=files[1], registry=registry)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_command_lists_what_it_let_through(whole, files, tmp_path):
    from ldmkit.cli.import_ import command

    save_file({**whole[1], "extra.thing": torch.zeros(1)}, files[0])
    arguments = [str(files[0]), "--config", str(files[1]), "--to", str(tmp_path / "out"), "--allow-partial", "extra.*"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "1 unexpected" in result.output
    assert "does not match: extra.thing" in result.output
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: ldmkit\ntags:\n- latent-diffusion\n- class\n---\n")
    assert "- Imported from the checkpoint `m.safetensors`." in card
