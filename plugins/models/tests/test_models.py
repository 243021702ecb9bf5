"""The shipped models: small, what they say they are, and obedient."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import ldmkit_models
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import ldmkit
from ldmkit import cli, plugins

PACKAGE = Path(ldmkit_models.__file__).parent
RECIPES = Path(__file__).parents[1] / "recipes"


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_folder_is_registered_and_all_are_small():
    folders = {path.parent.name for path in PACKAGE.glob("*/config.json")}
    assert folders == set(ldmkit_models.NAMES) == set(plugins.load(only=["models"]).models.names())
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()) < 6_000_000


@pytest.mark.parametrize("name", ldmkit_models.NAMES)
def test_a_model_says_what_made_it(name):
    made = json.loads((PACKAGE / name / "made.json").read_text("utf-8"))
    assert made["recipe_sha256"] == hashlib.sha256((RECIPES / made["recipe"]).read_bytes()).hexdigest()
    assert made["weights_sha256"] == hashlib.sha256((PACKAGE / name / "model.safetensors").read_bytes()).hexdigest()
    assert made["figures"]


@pytest.mark.parametrize("name", ldmkit_models.NAMES)
def test_a_model_is_found_by_its_name_in_full_precision(name):
    model = ldmkit.load(name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_digits_asked_for_are_recognised_by_a_classifier_of_real_ones():
    """At least nine of ten: a judge that never saw a generated one, on the 8x8 means that the data have."""
    data = load_digits()
    judge = SVC(gamma=0.001).fit(data.data, data.target)
    asked = torch.arange(10).repeat(3)
    images = ldmkit.load("digits").sample({"class": asked}, output="tensor")
    small = torch.nn.functional.avg_pool2d(images.mean(1), 4)
    seen = judge.predict(((small + 1) * 8).flatten(1).numpy())
    assert np.mean(seen == asked.numpy()) >= 0.9


def test_the_command_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "digits", "-c", "class=7", "-n", "4", "--steps", "2"])
    assert not stop.value.code
    assert "4 pictures in samples/001" in capsys.readouterr().out


def test_a_name_that_is_nearly_right_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "digit"])
    assert stop.value.code == 2
    assert "did you mean digits, which a plugin ships?" in capsys.readouterr().err
