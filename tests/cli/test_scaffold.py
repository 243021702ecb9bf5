"""`ldmkit plugins new NAME`: a package whose own tests pass at once, and which is found once it is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from ldmkit import cli, plugins
from ldmkit.cli.scaffold import write
from ldmkit.errors import UsageError
from ldmkit.recipe import load


@pytest.mark.parametrize("kind", ["conditioner", "denoiser"])
def test_a_new_package_passes_its_own_tests(tmp_path, kind):
    folder = write("far-view", tmp_path / "ldmkit-far-view", kind=kind)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


def test_the_package_says_what_it_needs_and_its_recipe_is_valid(tmp_path, monkeypatch):
    folder = write("far-view", tmp_path / "p")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["ldmkit"] == {"far-view": "ldmkit_far_view"}
    assert project["project"]["dependencies"][0] == "ldmkit>=0.2,<0.3"
    assert not [path for path in folder.rglob("*") if "$" in path.name or (path.is_file() and "$" in path.read_text())]
    monkeypatch.syspath_prepend(str(folder))
    registry = plugins.load(files=[folder / "ldmkit_far_view" / "__init__.py"])
    recipe = load(folder / "recipes" / "far-view.yaml", registry=registry)
    assert recipe.conditioners["far_view"].options == {"cells": 4, "features": 4}


def test_a_new_denoisers_recipe_is_valid_and_check_examines_it(tmp_path, monkeypatch, capsys):
    folder = write("far-net", tmp_path / "p", kind="denoiser")
    assert not [path for path in folder.rglob("*") if "$" in path.name or (path.is_file() and "$" in path.read_text())]
    monkeypatch.syspath_prepend(str(folder))
    plugin = folder / "ldmkit_far_net" / "__init__.py"
    registry = plugins.load(files=[plugin])
    recipe = load(folder / "recipes" / "far-net.yaml", registry=registry)
    assert recipe.denoiser.options == {"width": 64, "depth": 4}
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "check", "far-net", "-p", str(plugin), "-o", "width=4", "-o", "depth=1"])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == "far-net keeps its contract\n"


def test_plugins_check_examines_it_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    folder = write("near-view", tmp_path / "p")
    monkeypatch.syspath_prepend(str(folder))
    plugin = str(folder / "ldmkit_near_view" / "__init__.py")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "check", "near-view", "-p", plugin])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == "near-view keeps its contract\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "check", "near-view", "-p", plugin, "-o", "cells=1", "--data", "digits"])
    assert stop.value.code in (0, None)


@pytest.mark.parametrize("name", ["", "Depth", "a_b", "-a", "1st", "a b", "../x"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(UsageError, match="a plugin cannot be called"):
        write(name, tmp_path / "x")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("")
    with pytest.raises(UsageError, match="already exists"):
        write("depth", tmp_path / "x")
