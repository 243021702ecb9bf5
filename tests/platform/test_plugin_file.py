"""A plugin of one file, from the contract check to samples; `plugins show` and `plugins check` for people and programs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import ldmkit
from ldmkit import cli, plugins
from ldmkit.assembly import build, datasets
from ldmkit.conditioning import Batch
from ldmkit.data import batches
from ldmkit.errors import CheckpointError, PluginError
from ldmkit.recipe import Recipe

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
        copy = model.save(trained.parent / "copy")
        capsys.readouterr()
        assert call("evaluate", "run", "--without", "brightness", "-n", "2", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["unavailable"] == {
            "slot brightness": "the model was loaded without it: it is null in every picture"
        }
    finally:
        moved.rename(file)
    whole, saved = ldmkit.load("run").state_dict(), ldmkit.load(copy).state_dict()
    assert whole.keys() == saved.keys()  # saved without its plugin, the model kept the plugin's weights
    assert all(torch.equal(value, saved[name]) for name, value in whole.items())
    nulls = [load_file(folder / "nulls.safetensors")["brightness.vector"] for folder in (trained / "model", copy)]
    assert torch.equal(*nulls)


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


# data workers: other processes, started anew, which have to find the file's class again


def loaders(file: Path, tiny: Callable[..., dict[str, Any]], workers: int) -> list[Batch]:
    registry = plugins.load(only=[], files=[file])
    recipe = Recipe.parse(tiny(conditioners={"brightness": {}}), registry=registry)
    train, _ = datasets(recipe, registry)
    conditioners = build(recipe, registry).conditioners
    return list(batches(train, conditioners, start=0, batch=4, seed=0, steps=2, workers=workers))


def test_data_workers_find_the_class_of_a_file_again(here, tiny):
    for one, other in zip(*(loaders(here / "brightness.py", tiny, workers) for workers in (0, 1)), strict=True):
        assert torch.equal(one.prepared["brightness"]["mean"], other.prepared["brightness"]["mean"])


def test_files_of_one_name_are_kept_apart_and_a_changed_file_is_read_again(tmp_path):
    files = [tmp_path / folder / "brightness.py" for folder in "ab"]
    for gain, file in enumerate(files, start=2):
        file.parent.mkdir()
        file.write_text(FILE.replace("gain: float = 1.0", f"gain: float = {gain}.0"))
    kinds = [plugins.load(only=[], files=[file]).conditioners.load("brightness") for file in files]
    assert [kind().gain for kind in kinds] == [2.0, 3.0]
    for kind in kinds:
        assert type(pickle.loads(pickle.dumps(kind().weightless()))) is kind
    assert plugins.load(only=[], files=files[:1]).conditioners.load("brightness") is kinds[0]
    files[0].write_text(FILE.replace("gain: float = 1.0", "gain: float = 7.0"))
    assert plugins.load(only=[], files=files[:1]).conditioners.load("brightness")().gain == 7.0


@pytest.mark.parametrize(
    ("wrong", "words", "workers"),
    [
        ("raise ZeroDivisionError('no light')", r"raised ZeroDivisionError in prepare: no light", 0),
        ("return None", r"prepared NoneType; expected a dict of tensors\n  return", 0),
        ("return None", r"prepared NoneType; expected a dict of tensors\n  return", 1),
        ("return {'mean': torch.zeros(1).bfloat16()}", r"prepared mean in bfloat16 on cpu\n.*canvas\.dtype", 0),
    ],
)
def test_a_prepare_that_fails_is_named_in_this_process_and_in_a_worker(tmp_path, tiny, wrong, words, workers):
    file = tmp_path / "dark.py"
    file.write_text(FILE.replace("        return {", f"        {wrong}\n        return {{", 1))
    with pytest.raises(PluginError, match=rf"(?s)^the conditioner of slot brightness \(Brightness, {file}\) {words}"):
        loaders(file, tiny, workers)


# what `plugins` says


def test_a_plugin_of_a_file_is_shown_with_options_ports_and_origin(here, capsys):
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["options"] == [
        {"name": "width", "type": "int", "required": False, "default": 8, "help": None},
        {"name": "gain", "type": "float", "required": False, "default": 1.0, "help": None},
    ]
    assert (facts["ports"], facts["reads"], facts["file"]) == ("vector 8", "image", str(here / "brightness.py"))
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "-o", "width=5") == 0
    assert "ports: vector 5" in capsys.readouterr().out
    assert call("plugins", "show", "brightness", "-p", "brightness.py", "-o", "wdth=5") == 2
    assert "Brightness does not take these options: wdth" in capsys.readouterr().err


def test_a_misspelt_option_and_a_wrong_value_say_what_is_allowed(capsys):
    assert call("plugins", "show", "class", "-o", "classes=3", "-o", "wdth=2", "-o", "port=tokn") == 2
    err = capsys.readouterr().err
    assert "wdth: unknown key; did you mean 'width'?; allowed: classes, width, port" in err
    assert """port: must be one of tokens, vector, got "tokn"; did you mean 'tokens'?""" in err


def test_a_name_that_is_taken_is_not_written_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("plugins", "new", "class") == 2
    assert "the conditioner 'class' already exists: ldmkit-class 0.2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ports_of_a_plugin_that_learns_from_data_are_known_once_its_options_are(capsys):
    assert call("plugins", "show", "class") == 0
    out = capsys.readouterr().out
    assert "class: conditioner from ldmkit-class 0.2" in out
    assert "ports: known once its options are" in out
    assert call("plugins", "show", "class", "-o", "classes=3", "-o", "port=vector", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ports"] == "vector 512"


ENCODED = 'self.net(prepared["mean"].to(canvas.dtype))'
FAULTS = {
    "rows": (ENCODED, f'{ENCODED} - prepared["mean"].mean()', "vector of a sample depends on the samples beside it"),
    "null": ("self.absent[None]", "self.absent[None, :-1]", "returned vector of shape (1, 7); expected (1, 8)"),
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
