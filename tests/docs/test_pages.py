"""What the pages show is done: their commands are given, their Python runs, their YAML is a recipe's.

One tiny model stands for every run that the pages name. `ldmkit run` is asked what it would do (`--dry-run`); of what trains
for longer, asks a hub or another machine, the command line is read alone. Pages that another test carries out are named with it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import ldmkit
from ldmkit import cli, plugins
from ldmkit.recipe import Recipe
from ldmkit.recipe.loading import merged
from tests.reference import compvis

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)(?: title=\"[^\"]+\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if BLOCK.search(path.read_text("utf-8"))
)
# Page -> the languages that another test runs.
ELSEWHERE = {
    "tutorial/conditioner.md": {"console", "python", "yaml"},  # tests/platform/test_tutorial.py
    "how-to/sample.md": {"python"},  # tests/latent_diffusion/test_sampling_page.py
    "how-to/your-data.md": {"yaml"},  # tests/docs/test_your_data.py
    "how-to/scale-out.md": {"yaml"},  # tests/docs/test_scale_out.py
    "reference/seam.md": {"python"},  # tests/docs/test_seam.py
    "reference/hooks.md": {"python"},  # names of modules that are nobody's; tests/plugins/test_hooks.py
    "reference/denoisers-and-losses.md": {"python", "yaml", "toml", "console"},
    "how-to/evaluate.md": {"console", "python", "yaml"},
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "scenes", "size": 32, "count": 24, "held_out": 8},
    "autoencoder": {
        "type": "kl",
        "downsample": 4,
        "channels": 16,
        "multipliers": [1, 1, 1],
        "blocks": 1,
        "latent_channels": 2,
        "loss": {"perceptual": None, "adversarial": None},
        "train": {"steps": 2, "batch": 4},
    },
    "conditioners": {
        "text": {"width": 16, "depth": 1, "heads": 1, "length": 32, "dropout": 0.1},
        "low_res": {"scale": 4, "dropout": 0.1},
        "class": {"classes": 10, "width": 16, "dropout": 0.1},
    },
    "denoiser": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": []},
    "train": {"steps": 4, "batch": 4, "ema": 0.9, "checkpoint_every": 2, "validate_every": 2}
    | {"post_hoc": {"sigma_rel": [0.05, 0.1], "every": 1}, "keep": 2},
    "sample": {"steps": 2, "count": 2},
    "evaluate": [],
}
RUNS = ("class", "text", "superres", "joint", "joint-small", "mine")
# The command line is read, and no more: (verb, or verb and a word of it).
READ = (
    "plan text-to-image",
    "verify-resume",
    "evaluate",
    "demo",
    "import stable-diffusion-v1-5",
    "export",
    "plugins check palette",
    "plugins show palette",
    "--checkpoint 4000",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("book") / "tiny"
    ldmkit.run(TINY, out=folder, console=False)
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in RUNS:
        shutil.copytree(trained, f"runs/{name}")
    shutil.copytree(trained, "RUN")
    for name, side in {"small.png": 8, "in.png": 32, "keep.png": 32}.items():
        Image.fromarray(np.full((side, side, 3), 90, dtype=np.uint8)).save(name)
    Path("photos").mkdir()
    for number in range(12):
        Image.fromarray(np.full((64, 64, 3), 20 * number, dtype=np.uint8)).save(f"photos/{number}.png")
    for name in ("model.ckpt", "config.yaml"):
        shutil.copyfile(compvis() / "superres" / name, name)
    Path("recipe.yaml").write_text(yaml.safe_dump(TINY))
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copyfile("recipe.yaml", "recipes/palette.yaml")
    (plugin,) = re.findall(r"^```python\n(# my_plugin.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    Path("palette.py").write_text(plugin)
    return tmp_path


def blocks(page: str, language: str) -> list[str]:
    if language in ELSEWHERE.get(page, ()):
        return []
    return [text for found, text in BLOCK.findall((DOCS / page).read_text("utf-8")) if found == language]


def of(language: str) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, language)])


def test_every_block_is_of_a_kind_that_is_run():
    for page in PAGES:
        found = {language for language, _ in BLOCK.findall((DOCS / page).read_text("utf-8"))}
        assert found <= {"console", "python", "yaml", "toml", "json", "bash"}, page


@pytest.mark.filterwarnings("ignore:the model was trained without")
@of("console")
def test_the_commands_of_a_page(page, world):
    given = 0
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):  # the rest is what it printed
                command(shlex.split(line[2:], comments=True))
                given += 1
    assert given


def command(words: list[str]) -> None:
    match words:
        case ["ldmkit", *rest]:
            ldmkit_command(rest)
        case ["uv", "run", "ldmkit", *rest]:
            ldmkit_command(rest)
        case ["torchrun" | "accelerate", *_]:
            ldmkit_command(words[words.index("ldmkit") + 1 :])
        case ["pip", "install", *packages]:
            for package in packages:
                if found := re.fullmatch(r"ldmkit\[(\w+)\]", package):
                    assert found[1] in importlib.metadata.metadata("ldmkit").get_all("Provides-Extra", [])
        case ["pytest"] | ["uv", "build" | "publish" | "pip", *_]:
            pass
        case [first, *rest] if first.startswith("PYTHONPATH="):
            command(rest)
        case _:
            pytest.fail(f"the test does not know the command {shlex.join(words)}")


def ldmkit_command(words: list[str]) -> None:
    said = " ".join(words)
    if any(part in said if part.startswith("--") else said.startswith(part) for part in READ):
        parent = cli.group.make_context("ldmkit", [], resilient_parsing=True)
        _, verb, rest = cli.group.resolve_command(parent, list(words))
        assert verb is not None
        verb.make_context(words[0], rest, parent=parent)
        return
    if words[0] == "run":
        words = [*words, "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert not stop.value.code, said


@of("python")
def test_the_python_of_a_page(page, world, monkeypatch):
    monkeypatch.setattr(ldmkit, "run", lambda recipe, **_: ldmkit.Run(Path("runs") / recipe, Recipe.parse(TINY)))
    model = ldmkit.load("runs/joint")
    names: dict[str, Any] = {"model": model, "picture": Image.new("RGB", (8, 8))}
    if page == "explanation/large-images.md":
        names["latents"] = model.autoencoder.encode(ldmkit_images())
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def ldmkit_images() -> Any:
    import torch

    return torch.zeros(1, 3, 64, 64)


@of("yaml")
def test_the_yaml_of_a_page_is_a_recipes(page, world, trained):
    shutil.copytree(trained / "model", "models/bsr")
    for block in blocks(page, "yaml"):
        value = yaml.safe_load(block)
        whole = value if "name" in value else merged(json.loads(json.dumps(TINY)), value)
        Recipe.parse(whole).require_components(plugins.load())
