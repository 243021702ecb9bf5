"""`ldmkit evaluate` on a run: it adds, whatever it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ldmkit
from ldmkit.cli import main
from ldmkit.recipe import Recipe

RECIPE: dict[str, Any] = {
    "name": "few",
    "data": {"type": "scenes", "size": 32, "count": 24, "held_out": 8},
    "autoencoder": {"type": "identity"},
    "denoiser": {"channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {"steps": 1, "batch": 2},
    "sample": {"steps": 2, "count": 2},
    "evaluate": ["psnr", {"type": "nearest", "side": 8}],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "few"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldmkit.runs.completion.EVALUATED", 8)
        ldmkit.run(Recipe.parse(RECIPE), out=folder, console=False)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """File -> what is in it, of all that is no page made from the others and no lock."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("report.html", ".lock", ".lock.pid")
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def before(trained: Path) -> Iterator[dict[str, str]]:
    """Everything that was in the run when the test began; at its end it must be there still, unchanged."""
    there = contents(trained)
    yield there
    after = contents(trained)
    assert {name: after.get(name) for name in there} == there


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_a_small_evaluation_adds_and_overwrites_nothing(
    trained: Path, before: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    number = len(list((trained / "evaluations").iterdir()))
    assert "evaluation.json" in before
    assert call("evaluate", str(trained), "-n", "4", "--metric", "nearest", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["path"]) == trained / "evaluations" / f"{number + 1:03d}"
    assert told["settings"]["metrics"] == {
        "nearest": {"side": 8, "pictures": 2048, "quantile": 0.01}
    }  # the recipe's side
    assert (trained / told["pictures"][0]["file"]).is_file()


def test_settings_are_used_and_kept(trained: Path, before: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-n", "3", "--sampler", "ddim", "--steps", "3", "--eta", "0.5", "--seed", "7", "--weights", "raw"]
    assert call("evaluate", str(trained), *asked, "--metric", "psnr", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    wanted = {"sampler": "ddim", "steps": 3, "guidance": 1.0, "eta": 0.5}
    assert told["sampling"] | wanted == told["sampling"]
    assert (told["n"], told["seed"], told["settings"]["weights"], told["settings"]["step"]) == (3, 7, "raw", 1)


def test_a_reference_is_given_to_the_metrics_that_take_one(
    trained: Path,
    before: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for level in range(3):
        Image.new("RGB", (32, 32), (80 * level, 10, 200)).save(tmp_path / f"{level}.png")
    metric = "{type: frechet, backbone: test_resnet.r160_in1k}"
    assert call("evaluate", str(trained), "-n", "3", "--metric", metric, "--reference", str(tmp_path), "--json") == 0
    assert f"against those of {tmp_path.name}" in json.loads(capsys.readouterr().out)["figures"][0]["note"]
    assert len(list((tmp_path / "cache" / "ldmkit" / "statistics").iterdir())) == 1
    assert call("evaluate", str(trained), "--metric", "psnr", "--reference", str(tmp_path)) == 2
    assert "no metric here takes a reference" in capsys.readouterr().err


def test_a_sweep_is_one_evaluation_a_value(
    trained: Path, before: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", str(trained), "-n", "3", "--sweep", "steps=1,3", "--metric", "psnr", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["settings"]["sweep"]["value"], one["sampling"]["steps"]) for one in told] == [(1, 1), (3, 3)]
    assert told[0]["figures"][0]["value"] != told[1]["figures"][0]["value"]
    assert "By steps" in (trained / "report.html").read_text(encoding="utf-8")


def test_out_leaves_the_run_alone(
    trained: Path, before: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere"
    assert call("evaluate", str(trained), "-n", "2", "--metric", "fidelity", "--out", str(out)) == 0
    assert "fidelity: not measured: does not apply" in capsys.readouterr().out
    assert contents(trained) == before  # no file more either
    sheets = {"denoising.png", "held-out.png", "reconstructions.png"}
    assert {file.name for file in out.iterdir()} == {"evaluation.json", *sheets}
    assert call("evaluate", str(trained), "-n", "2", "--out", str(out)) == 2
    assert "already exists and is not empty" in capsys.readouterr().err


def test_samples_for_held_out_data_are_those_of_the_evaluation(
    trained: Path, before: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images"
    assert call("sample", str(trained), "--held-out", "3", "--batch", "2", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 3
    model = ldmkit.load(trained)
    for row in range(3):
        (image,) = model.sample(count=1, seed=row)
        assert Image.open(out / f"{row:05d}.png").tobytes() == image.tobytes()
    assert call("sample", str(trained), "-n", "1", "--out", str(out)) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_run_that_goes_on_keeps_what_it_measured_before(trained: Path) -> None:
    own = (trained / "evaluation.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldmkit.runs.completion.EVALUATED", 8)
        ldmkit.run(Recipe.parse({**RECIPE, "evaluate": ["ssim"]}), out=trained, console=False)
    assert (trained / "evaluation.json").read_bytes() != own
    assert own in [file.read_bytes() for file in (trained / "evaluations").glob("*/evaluation.json")]
