"""A stranger's package from its wheel to samples, and its checkpoint after it was uninstalled."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ldmkit
from ldmkit import cli
from ldmkit.cli.scaffold import write
from ldmkit.errors import PluginError, UsageError

CONDITIONER = '''
"""The mean colour of a picture, twice: as extra channels of the latent and as a token; its nulls are learned."""

import torch
from torch import nn

from ldmkit import Conditioner, Conditioning, Ports


class Tint(Conditioner):
    """The mean colour. features: channels added to the latent."""

    reads = ("image",)

    def __init__(self, *, features: int = 2, levels: list[float] | None = None):
        super().__init__()
        self.levels, self.emits = levels, Ports(tokens=6, concat=features, length=1)
        self.spread, self.token = nn.Linear(3, features), nn.Linear(3, 6)
        self.no_spread, self.no_token = nn.Parameter(torch.ones(features)), nn.Parameter(torch.ones(6))

    @classmethod
    def fit(cls, options, samples):
        return {"levels": [0.25, 0.75]}

    def prepare(self, sample, generator=None):
        return {"colour": torch.as_tensor(sample["image"]).mean((1, 2))}

    def from_user(self, value, size):
        numbers = [float(part) for part in value.split(",")] if isinstance(value, str) else value
        return {"colour": torch.tensor(numbers)}

    def encode(self, prepared, canvas):
        colour = prepared["colour"].to(canvas.dtype)
        return self._both(self.spread(colour), self.token(colour), canvas)

    def null(self, canvas):
        return self._both(self.no_spread[None].to(canvas.dtype), self.no_token[None].to(canvas.dtype), canvas)

    def _both(self, spread, token, canvas):
        concat = spread[:, :, None, None].expand(-1, -1, *canvas.grid)
        return Conditioning(tokens=token[:, None], concat=concat)
'''

PROBE = """
import json, sys, torch, ldmkit
from ldmkit import plugins
run, out = sys.argv[1:]
entry = plugins.load().conditioners.entry("tint")
model, again = ldmkit.load(run), ldmkit.load(run)
given = {"values": {"tint": "0.5,-0.5,0", "class": 1}, "count": 2, "seed": 3, "guidance": 2.0, "output": "tensor"}
without = {**given, "values": {"class": 1}}
from safetensors.torch import save_file
save_file({
    "given": model.sample(**given), "again": again.sample(**given),
    "without": model.sample(**without), "wide": model.sample(**without, size=(16, 32)),
}, out)
raw = ldmkit.load(run, "raw").conditioners.state_dict()
moved = [name for name, value in model.conditioners.state_dict().items() if not torch.equal(value, raw[name])]
print(json.dumps({"origin": vars(entry.origin), "target": entry.target, "moved": moved}))
"""


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]], wheels: Any
) -> dict[str, Any]:
    """A run of a joint recipe with the stranger's conditioner, and what its process saw; the plugin is not installed here."""
    place = tmp_path_factory.mktemp("stranger")
    package = write("tint", place / "ldmkit-tint")
    (package / "ldmkit_tint" / "conditioner.py").write_text(CONDITIONER)
    project = package / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', 'version = "0.3.1"'))
    target = wheels.installed(wheels.wheel_of(package, place / "dist"), place / "site")
    slots = {"tint": {"dropout": 0.2, "features": 3}, "class": {"port": "vector", "width": 8}}
    recipe = tiny(name="stranger", conditioners=slots, sample__guidance=2.0)
    (place / "joint.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr + result.stdout
        return result.stdout

    said = call("-m", "ldmkit", "run", "joint.yaml", "--out", "run")
    (place / "probe.py").write_text(PROBE)
    facts = json.loads(call("probe.py", "run", "samples.safetensors").splitlines()[-1])
    return {
        "place": place,
        "site": target,
        "run": place / "run",
        "said": said,
        "facts": facts,
        "samples": load_file(place / "samples.safetensors"),
    }


def test_the_wheel_is_installed_beside_the_environment_and_found_by_its_entry_point(trained):
    assert (trained["site"] / "ldmkit_tint" / "conditioner.py").is_file()
    assert not (trained["site"] / "torch").exists()
    assert trained["facts"]["origin"] == {
        "distribution": "ldmkit-tint",
        "version": "0.3.1",
        "entry_point": "tint",
        "file": None,
    }
    assert trained["facts"]["target"] == "ldmkit_tint.conditioner:Tint"


def test_it_was_trained_jointly_sampled_from_and_its_checkpoint_reloaded(trained):
    assert "tint (tint, ldmkit-tint)" in trained["said"]
    samples = trained["samples"]
    assert torch.equal(samples["given"], samples["again"])
    assert samples["given"].shape == (2, 3, 16, 16)
    assert (trained["run"] / "samples" / "latest.png").is_file()
    # weights and their average differ: the optimizer and the average cover the conditioners
    assert {name.partition(".")[0] for name in trained["facts"]["moved"]} >= {"tint", "class"}


def test_the_model_says_where_each_conditioner_is_from_and_what_was_dropped(trained):
    config = json.loads((trained["run"] / "model" / "config.json").read_text())
    tint = config["conditioners"]["tint"]
    assert tint["origin"] == {"distribution": "ldmkit-tint", "version": "0.3.1", "entry_point": "tint"}
    assert tint["options"] == {"features": 3, "levels": [0.25, 0.75]}  # what was learned from the data among them
    said = {"type": "tint", "options": tint["options"], "fields": {}}
    expected = hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert tint["hash"] == expected
    assert config["dropout"] == pytest.approx({"tint": 0.18, "class": 0.08, "tint+class": 0.02})


def test_every_checkpoint_says_it_too(trained):
    """A manifest alone is enough to know what trained these weights."""
    config = json.loads((trained["run"] / "model" / "config.json").read_text())
    manifests = sorted((trained["run"] / "checkpoints").glob("*/step-*/MANIFEST.json"))
    assert {path.parts[-3] for path in manifests} >= {"diffusion", "first-stage"}
    for path in manifests:
        said = json.loads(path.read_text())
        assert said["conditioners"] == config["conditioners"]
        assert said["dropout"] == config["dropout"]
    tint, label = said["conditioners"]["tint"], said["conditioners"]["class"]
    # `features` was asked for, `levels` and the classes were learned from the data
    assert tint["fitted"] == {"levels": hashlib.sha256(b"[0.25, 0.75]").hexdigest()}
    assert set(label["fitted"]) == {"classes"}


def test_uninstalled_loading_names_the_missing_distribution_and_version(trained):
    with pytest.raises(PluginError) as caught:
        ldmkit.load(trained["run"])
    text = str(caught.value)
    assert "slot tint needs the conditioner 'tint' of ldmkit-tint 0.3.1, which cannot be loaded: no conditioner" in text
    assert "pip install ldmkit-tint==0.3.1" in text
    assert "--without tint" in text


def test_without_it_the_stored_null_stands_in(trained):
    model = ldmkit.load(trained["run"], without=("tint",))
    given = {"values": {"class": 1}, "count": 2, "seed": 3, "guidance": 2.0, "output": "tensor"}
    torch.testing.assert_close(model.sample(**given), trained["samples"]["without"], rtol=1e-5, atol=1e-6)
    # on another grid the stored channels are resized
    torch.testing.assert_close(model.sample(**given, size=(16, 32)), trained["samples"]["wide"], rtol=1e-5, atol=1e-6)
    assert model.conditioners["tint"].emits == ldmkit.Ports(tokens=6, concat=3, length=1)
    with pytest.raises(UsageError, match="loaded without slot tint"):
        model.sample({"tint": "1,1,1"})


def test_the_command_samples_without_it(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained["place"])
    arguments = ["sample", "run", "-c", "class=1", "-n", "1", "--device", "cpu", "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "ldmkit-tint 0.3.1" in captured.err
    assert "Traceback" not in captured.err
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--without", "tint"])
    assert not stop.value.code
    assert Path(json.loads(capsys.readouterr().out)["grid"]).is_file()
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--without", "tnt"])
    assert stop.value.code == 2
    assert "no slot is called tnt\n  the slots of this model are tint, class" in capsys.readouterr().err


def test_a_wheel_put_together_by_hand_is_the_same(tmp_path, wheels):
    package = write("tint", tmp_path / "ldmkit-tint")
    by_hand, by_uv = wheels.assembled(package, tmp_path / "a"), wheels.wheel_of(package, tmp_path / "b")
    with zipfile.ZipFile(by_hand) as one, zipfile.ZipFile(by_uv) as two:
        names = [sorted(name for name in archive.namelist() if not name.endswith("/")) for archive in (one, two)]
        assert names[0] == names[1]
        points = "ldmkit_tint-0.1.0.dist-info/entry_points.txt"
        assert one.read(points).split() == two.read(points).split()
