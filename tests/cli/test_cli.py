"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import click
import numpy as np
import pytest
from PIL import Image

import ldmkit
from ldmkit import cli
from ldmkit.cli import shared
from ldmkit.errors import DataError


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_alone_it_prints_one_screen_with_commands_to_try(capsys):
    assert call() == 0
    out = capsys.readouterr().out
    assert "ldmkit run superres" in out
    assert len(out.splitlines()) < 15


def test_every_verb_has_help(capsys):
    assert call("--help") == 0
    listed = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in listed
        assert call(verb, "--help") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recip"], "No such command 'recip'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "superres", "--nope"], "No such option"),
        (["run", "superrs"], "error: superrs: there is no such file and no bundled recipe of that name; did you mean"),
        (["run", "superres", "--set", "train.lrr=3"], "error: --set train.lrr=3: train.lrr: unknown key; did you mean 'lr'?"),
        (["recipe", "check", "superres", "--set", "data.size=65"], "data.size: 65 is no multiple of 4"),
        (["recipe", "check", "superres", "--set", "data.type=phtos"], "did you mean 'photos'?"),
        (["plugins", "show", "dimm"], "nothing is registered as 'dimm'; did you mean 'ddim'?"),
        (["plugins", "new", "My_Plugin"], "a plugin cannot be called 'My_Plugin'"),
        (["plugins", "list", "-p", "missing.py"], "there is no plugin file"),
        (["report", "nowhere"], "error: nowhere is not a run directory"),
        (["evaluate", "nowhere"], "error: nowhere is not a run directory"),
        (["sample", "runs/x", "--condition", "text"], "write --condition name=value"),
        (["sample", "runs/x", "--size", "64by64"], "write one number, or HEIGHTxWIDTH in pixels"),
        (["sample", "./nowhere"], "error: there is no trained model in ./nowhere"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_message_and_exit_code_2(here, capsys, arguments, message):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert list(here.iterdir()) == []


def test_errors_of_core_and_components_come_together(here, capsys):
    assert call("run", "superres", "--set", "train.lrr=3", "--set", "conditioners.low_res.scael=2") == 2
    err = capsys.readouterr().err
    assert "train.lrr: unknown key" in err
    assert "conditioners.low_res.scael: unknown key; did you mean 'scale'?" in err


def failing(monkeypatch, error: BaseException) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    module = ModuleType("ldmkit.runs.run")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ldmkit.runs.run", module)


class Stopped(Exception):  # noqa: N818
    exit_code = 143


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no pictures", hint="give some"), 2, "error: no pictures\n  give some\n"),
        (Stopped("stopped by SIGTERM"), 143, "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (RuntimeError("oops"), 1, "internal error: RuntimeError: oops\n"),
    ],
)
def test_exit_codes(here, capsys, monkeypatch, error, code, message):
    failing(monkeypatch, error)
    assert call("run", "superres") == code
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--debug", "run", "superres"], ["run", "superres", "--debug"]])
def test_debug_shows_the_traceback(here, capsys, monkeypatch, arguments):
    failing(monkeypatch, DataError("no pictures"))
    assert call(*arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_run_prints_its_first_line_before_torch_and_hands_on_what_it_was_given(here, capsys, monkeypatch):
    given = {}

    def run(recipe, **options):
        given.update(options, recipe=recipe)

    failing(monkeypatch, ValueError())
    sys.modules["ldmkit.runs.run"].run = run
    assert call("run", "superres", "--set", "train.steps=7", "--out", "there", "--fresh") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"ldmkit {ldmkit.__version__}")
    assert "superres" in line
    assert "there" in line
    assert line.endswith("loading torch...")
    assert given["recipe"].train.steps == 7
    assert given["recipe"].conditioners["low_res"].options["scale"] == 4
    assert (given["out"], given["fresh"]) == (Path("there"), True)


def test_the_first_line_comes_before_torch(here):
    code = (
        "import sys, ldmkit.cli.run as r, click\n"
        "def echo(text, **_):\n"
        "    assert 'loading torch' in text and 'torch' not in sys.modules\n"
        "    sys.exit(0)\n"
        "click.echo = echo\n"
        "import ldmkit.cli; ldmkit.cli.main(['run', 'superres'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_are_listed_copied_checked_and_shown(here, capsys):
    assert call("recipe", "list", "--json") == 0
    assert "superres" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert call("recipe", "copy", "superres") == 0
    assert Path("superres.yaml").read_text().startswith("#")
    capsys.readouterr()
    assert call("recipe", "copy", "superres") == 2
    assert "superres.yaml already exists" in capsys.readouterr().err
    assert call("recipe", "check", "superres.yaml") == 0
    assert capsys.readouterr().out.startswith("superres.yaml is valid")
    assert call("recipe", "show", "superres.yaml", "--json", "--set", "seed=5") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["seed"] == 5
    assert shown["conditioners"]["low_res"]["scale"] == 4
    assert call("recipe", "schema") == 0
    assert "autoencoder" in json.loads(capsys.readouterr().out)["properties"]


PLUGIN = """
from ldmkit import hookimpl

@hookimpl
def ldmkit_register_metrics(register):
    register("mine", "a:B")
"""


def test_plugins_are_listed_with_their_origin_and_and_files_too(here, capsys, monkeypatch):
    Path("one.py").write_text(PLUGIN)
    assert call("plugins", "list", "-p", "one.py", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    mine = next(row for row in facts["registered"] if row["name"] == "mine")
    assert (mine["kind"], mine["file"]) == ("metric", str(here / "one.py"))
    assert facts["problems"] == []
    assert call("plugins", "list", "-v") == 0
    out = capsys.readouterr().out
    assert "low-res" in out
    assert "ldmkit-low-res" in out
    assert " ms" in out
    monkeypatch.setenv("LDMKIT_PLUGINS", "")
    assert call("plugins", "list") == 0
    assert not any(line.startswith("low-res") for line in capsys.readouterr().out.splitlines())


def test_a_plugin_is_shown_with_options_and_ports(capsys):
    assert call("plugins", "show", "low-res", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["distribution"], facts["reads"]) == ("conditioner", "ldmkit-low-res", "image")
    (scale,) = [option for option in facts["options"] if option["name"] == "scale"]
    assert (scale["type"], scale["required"], scale["default"]) == ("int", False, 4)
    assert "concat" in facts["ports"]
    assert call("plugins", "show", "ddim") == 0
    assert "eta: float (>= 0, <= 1), default 0.0" in capsys.readouterr().out


def test_a_data_source_is_shown_with_its_fields(tmp_path, capsys):
    assert call("plugins", "show", "scenes", "-o", 'kinds=["star"]') == 0
    out = capsys.readouterr().out
    assert "boxes: rows (class, left, top, right, bottom), sides in [0, 1], aligned: star\n" in out
    assert "mask: a grey image, aligned\n" in out
    assert call("plugins", "show", "folder", "--json") == 0
    assert "fields" not in json.loads(capsys.readouterr().out)  # its path is not known yet
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    assert call("plugins", "show", "folder", "-o", f"path={tmp_path}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fields"] == {"image": "an image", "file_name": "a text"}


def test_plan_shows_parts_and_stages_as_plain_text_and_json(capsys):
    small = ["--set", "autoencoder.channels=8", "--set", "autoencoder.latent_channels=3"]
    assert call("plan", "superres", "--json", *small) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in facts["parts"]] == ["autoencoder", "low_res", "denoiser"]
    assert facts["latent"] == [3, 16, 16]
    assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"])
    assert [stage["name"] for stage in facts["stages"]] == ["autoencoder", "diffusion"]
    assert call("plan", "superres", *small) == 0
    out = capsys.readouterr().out
    assert "denoiser" in out
    assert out.isascii()


def test_doctor(here, capsys):
    code = call("doctor", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert code == (0 if facts["healthy"] else 2)
    found = {finding["what"]: finding["found"] for finding in facts["findings"]}
    assert {"python", "torch", "devices", "plugins", "write here", "locale", "LPIPS alex, imagenet"} <= set(found)


class Model:
    """Records what `sample` is asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}
        self.conditioners = {"text": None, "map": None}

    def to(self, device: object) -> Model:
        return self

    sampling: ClassVar[dict[str, object]] = {"sampler": "ddim", "steps": 50, "guidance": 1.0}
    config: ClassVar[dict[str, object]] = {"size": [64, 64]}

    def sample(self, values: object, **options: object) -> list[Image.Image]:
        self.asked = {"values": values, **options}
        return [Image.new("RGB", (8, 6), (row, 0, 0)) for row in range(int(str(options["count"])))]


def test_sample_writes_a_picture_a_seed_and_a_grid(here, capsys, monkeypatch):
    model = Model()
    monkeypatch.setitem(sys.modules, "ldmkit.assembly", SimpleNamespace(load=lambda *_, **__: model))
    Path("runs/a").mkdir(parents=True)
    arguments = [
        "-c", "text=a red circle=round", "-n", "5", "--guidance", "text=5,map=1.5", "--steps", "10", "--seed", "40",
        "--size", "64x96", "-o", "eta=0.5", "--negative", "text=blurry", "--sampler", "ddim",
    ]  # fmt: skip
    assert call("sample", "runs/a", *arguments, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert model.asked == {
        "values": {"text": "a red circle=round"}, "count": 5, "size": (64, 96), "sampler": "ddim", "steps": 10,
        "guidance": {"text": 5.0, "map": 1.5}, "negative": {"text": "blurry"}, "seed": 40, "eta": 0.5,
    }  # fmt: skip
    assert [Path(path).name for path in facts["pictures"]] == [f"seed-{seed:05d}.png" for seed in range(40, 45)]
    with Image.open(facts["grid"]) as grid:
        assert grid.size == (3 * 10 - 2, 2 * 8 - 2)
    assert "no condition" not in capsys.readouterr().err
    assert call("sample", "runs/a") == 0
    assert "no condition was given" in (said := capsys.readouterr().err)
    assert "the slots are text, map" in said
    assert sorted(path.name for path in Path("runs/a/samples").iterdir()) == ["001", "002"]
    assert model.asked["guidance"] is None


def test_several_conditions_each_get_an_image_that_says_what_made_it(here, capsys, monkeypatch):
    model = Model()
    monkeypatch.setitem(sys.modules, "ldmkit.assembly", SimpleNamespace(load=lambda *_, **__: model))
    Path("prompts.txt").write_text("\ufeffa red circle\n\na blue square\n", encoding="utf-8")
    asked = {"by-file": ["-c", "text=@prompts.txt"], "by-hand": ["-c", "text=a red circle", "-c", "text=a blue square"]}
    for made, given in asked.items():
        assert call("sample", "runs/a", *given, "--seed", "7", "--steps", "3", "--out", made, "--json") == 0
        assert model.asked["values"] == {"text": ["a red circle", "a blue square"]}
        assert model.asked["count"] == 2
        facts = json.loads(capsys.readouterr().out)
        rows = [json.loads(line) for line in Path(made, "samples.jsonl").read_text("utf-8").splitlines()]
        assert [(row["file_name"], row["conditions"]["text"], row["seed"], row["steps"]) for row in rows] == [
            ("seed-00007.png", "a red circle", 7, 3),
            ("seed-00008.png", "a blue square", 8, 3),
        ]
        with Image.open(facts["pictures"][1]) as image:
            assert json.loads(image.text["ldmkit"]) == {k: v for k, v in rows[1].items() if k != "file_name"}
    Path("empty.txt").write_text("\n")
    assert call("sample", "runs/a", "-c", "text=@empty.txt") == 2
    assert "write one value per line" in capsys.readouterr().err


def test_data_check_and_a_new_recipe(here, capsys):
    folder = Path("my photos")
    for number in range(6):
        (folder / "cat").mkdir(parents=True, exist_ok=True)
        (folder / "dog").mkdir(exist_ok=True)
        kind = "cat" if number % 2 else "dog"
        noise = np.random.default_rng(number).integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / kind / f"{number}.png")
    Image.fromarray(noise).save(folder / "cat" / "again.png")
    assert call("data", "check", "my photos", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(part["count"] for part in facts["parts"].values()) == 7
    assert facts["fields"]["label"]["names"] == ["cat", "dog"]
    assert facts["sizes"]["shorter_side"] == {"least": 40, "median": 40, "most": 40}
    assert facts["near_duplicates"] == [["cat/5.png", "cat/again.png"]] or len(facts["near_duplicates"]) == 1
    assert facts["recipe"]["data"] == {"type": "folder", "path": "my photos", "size": 32}
    assert call("data", "check", "my photos") == 0
    printed = capsys.readouterr().out
    assert 'data: {type: folder, path: "my photos", size: 32}' in printed
    assert "ldmkit recipe new --data 'my photos'" in printed
    assert call("recipe", "new", "--data", "my photos", "--condition", "class", "--to", "mine.yaml") == 0
    assert call("recipe", "check", "mine.yaml", "--components") == 0
    assert len([line for line in Path("mine.yaml").read_text().splitlines() if not line.startswith("#")]) <= 10
    assert call("recipe", "new", "--data", "my photos", "--to", "mine.yaml") == 2
    capsys.readouterr()
    assert call("recipe", "new", "--data", "my photos", "--condition", "text", "--to", "other.yaml") == 2
    assert "text reads caption, and the data have image, file_name, label" in capsys.readouterr().err


def test_sample_by_every_way_of_guidance_and_from_a_picture(here, capsys, monkeypatch):
    model = Model()
    monkeypatch.setitem(sys.modules, "ldmkit.assembly", SimpleNamespace(load=lambda *_, **__: model))
    Path("runs/a").mkdir(parents=True)
    arguments = [
        "-g", "type=perp-neg", "-g", "strength=[1.0, 2.0]", "--negative", "text=blurry", "--negative", "text=dark",
        "--negative", "map=a.png", "--init-image", "in.png", "--strength", "0.5", "--mask", "mask.png", "--guidance", "4",
    ]  # fmt: skip
    assert call("sample", "runs/a", *arguments) == 0
    expected = {
        "guidance": 4.0, "guidance_options": {"type": "perp-neg", "strength": [1.0, 2.0]},
        "negative": [{"text": "blurry", "map": "a.png"}, {"text": "dark"}],
        "image": "in.png", "strength": 0.5, "mask": "mask.png",
    }  # fmt: skip
    assert {name: model.asked[name] for name in expected} == expected
    assert call("sample", "runs/a", "--strength", "0") == 0
    assert model.asked["strength"] == 0.0  # an error of the model's, not nothing


@pytest.mark.parametrize(("count", "steps", "kept"), [(4, 10, [3, 5, 8, 10]), (2, 5, [3, 5]), (9, 3, [1, 2, 3])])
def test_progress_keeps_some_of_the_way_and_its_end(count, steps, kept):
    from ldmkit.cli.sample import Progress

    way = Progress(count)
    for step in range(1, steps + 1):
        way(step, steps, None, step)
    assert way.kept == kept


def test_progress_is_a_row_a_picture():
    import torch

    from ldmkit.autoencoder import make
    from ldmkit.cli.sample import Progress

    way = Progress(3)
    for step in range(3):
        way(step + 1, 3, None, torch.full((2, 3, 4, 6), step - 1.0))
    sheet = way.sheet(SimpleNamespace(autoencoder=make("identity")))
    assert sheet.size == (3 * 8 - 2, 2 * 6 - 2)
    assert [sheet.getpixel((8 * column, 7))[0] for column in range(3)] == [0, 128, 255]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        (["1.5"], 1.5),
        (["-3"], -3.0),
        (["text=5"], {"text": 5.0}),
        (["low_res=1.5", "text=7"], {"low_res": 1.5, "text": 7.0}),
        (["b=1,a=2"], {"b": 1.0, "a": 2.0}),
        (["null + 3 * (text - null)"], "null + 3 * (text - null)"),
    ],
)
def test_guidance(texts, expected):
    found = shared.guidance_of(texts)
    assert found == expected
    if isinstance(expected, dict):
        assert list(found) == list(expected)


def test_options_given_twice_are_refused():
    with pytest.raises(click.UsageError, match="--condition text is given twice"):
        shared.pairs(["text=a", "text=b"], "--condition")


ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "cp1252", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C"}


def test_a_narrow_code_page_and_a_closed_pipe_are_no_reason_to_fail(here):
    command = [sys.executable, "-m", "ldmkit"]
    result = subprocess.run([*command, "recipe", "list"], capture_output=True, env=ENVIRONMENT, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    with subprocess.Popen([*command, "recipe", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as closed:
        assert closed.stdout is not None
        closed.stdout.close()
        assert closed.stderr is not None
        assert closed.stderr.read() == b""
    assert closed.returncode == 0


def test_ctrl_c_while_something_is_imported_is_quiet(here):
    code = "import ldmkit.cli, ldmkit.plugins, os, signal\ndef slow(**_): os.kill(os.getpid(), signal.SIGINT)\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits it ignored
    code += "ldmkit.plugins.load = slow\nldmkit.cli.main(['plugins', 'list'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
