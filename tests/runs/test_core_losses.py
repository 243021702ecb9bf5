"""The core's extra losses in a run: the same bits on resuming, and what they ask for is there before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ldmkit
from ldmkit.errors import LdmkitError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.resume_check import verify_resume
from tests.runs.conftest import FEW

ALL = {
    "contrast": {"slots": {"place": 0.1}},
    "alignment": {"layer": "middle_block", "side": 32, "hidden": 8, "weight": 0.5, "until": 2},
    "self_alignment": {"layer": "middle_block", "hidden": 8},
}


@pytest.mark.slow
def test_they_resume_with_the_same_bits(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    slots = {"place": {"type": "class", "port": "vector", "width": 8, "classes": 4, "dropout": 0.2}}
    whole = recipe(data=FEW, conditioners=slots, losses=ALL, evaluate=[], train__batch=8)
    found = verify_resume(whole, 4, 3, folder=tmp_path / "runs")
    assert found.same, found.different
    assert "diffusion/losses.safetensors" in found.files


@pytest.mark.slow
def test_they_are_logged_and_stop_when_told(tmp_path: Path, recipe: Callable[..., Recipe], registry: Registry) -> None:
    run = ldmkit.run(
        recipe(losses=ALL, evaluate=[], train__steps=3, train__batch=16),
        tmp_path / "run",
        registry=registry,
        console=False,
    )
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    second = [row for row in rows if row.get("stage") == "diffusion" and "loss" in row]
    assert ["losses/alignment" in row for row in second] == [True, True, False]
    for row in second:
        parts = row["losses/contrast"] + 0.5 * row.get("losses/alignment", 0.0) + row["losses/self_alignment"]
        assert row["loss"] == pytest.approx(row["diffusion"] + parts, rel=1e-4)
    assert list((run.path / "targets").iterdir())  # the encoder saw each image once


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            {"contrast": {"slots": {"plaice": 0.1}}},
            "asks about the slot 'plaice'; did you mean 'place'?; the recipe has place",
        ),
        ({"alignment": {"layer": "midle_block"}}, "no layer 'midle_block'; did you mean 'middle_block'?"),
        ({"self_alignment": {"layer": "middle_block"}}, "reads the average of the weights; set train.ema"),
    ],
)
def test_what_a_loss_asks_for_is_there_or_nothing_is_trained(tmp_path, recipe, registry, losses, said):
    with pytest.raises(LdmkitError) as caught:
        ldmkit.run(
            recipe(losses=losses, evaluate=[], train__ema=None), tmp_path / "run", registry=registry, console=False
        )
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
