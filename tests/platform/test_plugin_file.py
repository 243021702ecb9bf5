"""A plugin of one file, from the contract check to samples; `plugins show` and `plugins check` for people and programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import ldmkit
from ldmkit import cli
from ldmkit.errors import CheckpointError, PluginError

FILE = '''
"""How bright a picture is, by one number."""

import torch
from torch import nn

from ldmkit import Conditioner, Conditioning, Ports, hookimpl


class Brightness(Conditioner):
    """The mean of all pixels, as a vector."""

    reads = ("image",)

    def __init__(self, *, width: int = 8, gain: float = 1.0):
        super().__init__()
        self.gain, self.emits = gain, Ports(vector=width)
        self.net, self.absent = nn.Linear(1, width), nn.Parameter(torch.zeros(width))

    def prepare(self, sample, generator=None):
        return {"mean": torch.as_tensor(sample["image"]).mean()[None] * self.gain}

    def from_user(self, value, size):
        return {"mean": torch.tensor([float(value)])}

    def encode(self, prepared, canvas):
        return Conditioning(vector=self.net(prepared["mean"].to(canvas.dtype)))

    def null(self, canvas):
        return Conditioning(vector=self.absent[None].to(canvas.dtype))


@hookimpl
def ldmkit_register_conditioners(register):
    register("brightness", Brightness)
'''


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]]) -> Path:
    """A directory with the plugin's file and a recipe."""
    folder = tmp_path_factory.mktemp("file")
    (folder / "brightness.py").write_text(FILE)
    recipe = tiny(name="bright", conditioners={"brightness": {"dropout": 0.2}})
    (folder / "bright.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def trained(here: Path) -> Path:
    if not (here / "run" / "model").is_dir():
        assert call("run", "bright.yaml", "-p", "brightness.py", "--out", "run") == 0
    return here / "run"


def test_it_trains_and_is_found_again_by_the_run_alone(trained, capsys):
    origin = json.loads((trained / "model" / "config.json").read_text())["conditioners"]["brightness"]["origin"]
    assert origin == {"file": str(trained.parent / "brightness.py")}
    capsys.readouterr()
    assert call("sample", "run", "-c", "brightness=0.5", "-n", "1", "--device", "cpu", "--json") == 0
    with Image.open(json.loads(capsys.readouterr().out)["pictures"][0]) as picture:
        assert picture.size == (16, 16)


def test_a_file_that_moved_is_named_and_can_be_given_or_left_out(trained, capsys):
    file = trained.parent / "brightness.py"
    moved = file.rename(file.with_name("elsewhere.py"))
    try:
        assert call("sample", "run", "-c", "brightness=0.5", "-n", "1", "--device", "cpu") == 2
        err = capsys.readouterr().err
        assert f"slot brightness needs the conditioner 'brightness' of {file}, which cannot be loaded" in err
        assert "give its file with -p; or leave it out: --without brightness" in err
        assert call("sample", "run", "-p", "elsewhere.py", "-c", "brightness=0.5", "-n", "1", "--device", "cpu") == 0
        model = ldmkit.load("run", without=("brightness",))
        assert model.sample(count=1, output="tensor").shape == (1, 3, 16, 16)
        with pytest.raises(CheckpointError, match="loaded without brightness, and would be saved without"):
            model.save(trained.parent / "copy")
        assert not (trained.parent / "copy").exists()
    finally:
        moved.rename(file)


def edited(trained: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the saved model whose slot says something else."""
    shutil.copytree(trained / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    slot = config["conditioners"]["brightness"]
    for key, value in changes.items():
        slot[key] = {**slot[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_options_that_were_edited_after_training_are_noticed(trained, tmp_path):
    with pytest.raises(
        CheckpointError, match="the options of slot brightness are not those the model was trained with"
    ):
        ldmkit.load(edited(trained, tmp_path / "a", options={"gain": 2.0}))
    older = edited(trained, tmp_path / "b", hash=None)  # before hashes were kept
    assert ldmkit.load(older).conditioners["brightness"].gain == 1.0


def test_a_plugin_that_no_longer_takes_its_options_is_named(trained, tmp_path):
    with pytest.raises(
        PluginError, match=r"slot brightness was trained with .*brightness\.py, whose options .* does not take: "
    ):
        ldmkit.load(edited(trained, tmp_path / "a", options={"depth": 2}, hash=None))


def test_the_weights_of_the_model_and_the_stored_null_agree(trained):
    whole, left_out = ldmkit.load(trained), ldmkit.load(trained, without=("brightness",))
    for size in (None, (32, 16)):
        one, other = whole.condition(size=size), left_out.condition(size=size)
        assert torch.equal(one.vector, other.vector)


# what `plugins` says


def test_a_plugin_of_a_file_is_shown_with_options_ports_and_origin(here, capsys):
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["options"] == [
        {"name": "width", "type": "int", "required": False, "default": 8},
        {"name": "gain", "type": "float", "required": False, "default": 1.0},
    ]
    assert (facts["ports"], facts["reads"], facts["file"]) == ("vector 8", "image", str(here / "brightness.py"))
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "-o", "width=5") == 0
    assert "ports: vector 5" in capsys.readouterr().out
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "-o", "wdth=5") == 2
    assert "Brightness does not take these options: wdth" in capsys.readouterr().err


def test_ports_of_a_plugin_that_learns_from_data_are_known_once_its_options_are(capsys):
    assert call("plugins", "show", "class") == 0
    out = capsys.readouterr().out
    assert "class: conditioner from ldmkit-class 0.1" in out
    assert "ports: known once its options are" in out
    assert call("plugins", "show", "class", "-o", "classes=3", "-o", "port=vector", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ports"] == "vector 512"


ENCODED = 'self.net(prepared["mean"].to(canvas.dtype))'
FAULTS = {
    "rows": (ENCODED, f'{ENCODED} - prepared["mean"].mean()', "vector of a sample depends on the samples beside it"),
    "null": ("self.absent[None]", "self.absent[None, :-1]", "returned vector of shape (1, 7); (1, 8) is needed"),
    "gradient": (ENCODED, f"{ENCODED}.detach()", "the gradient of net.weight is cut"),
}


def test_a_sound_plugin_keeps_its_contract(here, capsys):
    assert call("plugins", "check", "brightness", "-p", "brightness.py", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "brightness", "passed": True, "problem": None}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_by_the_command(tmp_path, monkeypatch, capsys, fault):
    right, wrong, words = FAULTS[fault]
    assert right in FILE
    monkeypatch.chdir(tmp_path)
    Path(f"brightness_{fault}.py").write_text(FILE.replace(right, wrong))
    assert call("plugins", "check", "brightness", "-p", f"brightness_{fault}.py", "--json") == 2
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["passed"] is False
    assert facts["problem"].startswith("Brightness: ")
    assert words in facts["problem"]
    assert captured.err.startswith("error: Brightness: ")


def test_checking_with_options_it_does_not_take_is_the_users_to_mend(here, capsys):
    assert call("plugins", "check", "brightness", "-p", "brightness.py", "-o", "width=wide") == 2
    assert "Brightness does not take these options: width" in capsys.readouterr().err


def test_a_new_package_is_described_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("plugins", "new", "depth", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == "ldmkit-depth"
    assert {"pyproject.toml", "ldmkit_depth/conditioner.py", "recipes/depth.yaml"} <= set(facts["files"])
