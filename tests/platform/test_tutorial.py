"""The tutorial is carried out: its files are written where it says, its commands and its Python are run, with few steps."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from ldmkit import cli

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "conditioner.md"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Few steps: what is tested is that everything on the page works, not what comes out of it.
SMALL = (
    "autoencoder.train.steps=2 train.steps=2 train.batch=4 data.count=16 data.held_out=8 autoencoder.channels=8 "
    "denoiser.channels=16 denoiser.head_width=16 sample.steps=2 sample.count=2"
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is to be written to, its text."""

    language: str
    title: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found.groups(default="")) for found in BLOCK.finditer(PAGE.read_text("utf-8"))]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where `pip install -e .` puts what it installs; modules of the page are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("ldmkit_palette")]:
        del sys.modules[name]


class Reader:
    """Somebody who does what the page says."""

    def __init__(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.monkeypatch = site, monkeypatch
        self.done: list[str] = []

    def command(self, line: str) -> None:
        words = shlex.split(line)
        match words:
            case ["ldmkit", "run", *rest]:
                self.ldmkit("run", *rest, *(word for setting in SMALL.split() for word in ("--set", setting)))
            case ["ldmkit", *rest]:
                self.ldmkit(*rest)
            case ["cd", folder]:
                self.monkeypatch.chdir(Path.cwd() / folder)
            case ["pip", "install", "-e", "."]:
                self.install()
            case ["pytest"]:
                self.tests()
            case _:
                pytest.fail(f"the test does not know the command {line!r}")
        self.done.append(line)

    def ldmkit(self, *arguments: str) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert not stop.value.code, arguments

    def install(self) -> None:
        """What an editable installation leaves: metadata with the entry points, and the directory on the path."""
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        info = self.site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}"
        )
        points = project["entry-points"]["ldmkit"]
        lines = "".join(f"{name} = {module}\n" for name, module in points.items())
        (info / "entry_points.txt").write_text(f"[ldmkit]\n{lines}")
        self.monkeypatch.syspath_prepend(str(Path.cwd()))

    def tests(self) -> None:
        (path,) = Path("tests").glob("test_*.py")
        spec = importlib.util.spec_from_file_location(f"ldmkit_palette_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        assert len(tests) == 3
        for test in tests:
            test()


def test_the_tutorial_works_from_nothing_to_samples(site, monkeypatch, capsys):
    reader = Reader(site, monkeypatch)
    names: dict[str, object] = {}
    for block in blocks():
        if block.title:
            path = Path(block.title)
            assert path.is_file(), f"the page says to write over {path}, which is not there"
            path.write_text(block.text)
        elif block.language == "console":
            for line in block.text.splitlines():
                reader.command(line.removeprefix("$ "))
        else:
            exec(compile(block.text, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "palette: conditioner from ldmkit-palette 0.1.0" in said
    assert "ports: tokens 64, length 4" in said
    assert "palette keeps its contract" in said
    assert "fidelity" in said
    assert Path("runs/palette/report.html").is_file()
    assert len(list(Path("runs/palette/samples/001").glob("seed-*.png"))) == 4
    pictures, away, anything = (names[name] for name in ("pictures", "away_from_red", "anything"))
    assert [len(made) for made in (pictures, away, anything)] == [2, 1, 2]
    assert all(isinstance(picture, Image.Image) and picture.size == (32, 32) for picture in pictures)
    assert [line for line in reader.done if "plugins" not in line] == [
        "cd ldmkit-palette",
        "pip install -e .",
        "pytest",
        "ldmkit run recipes/palette.yaml",
        'ldmkit sample runs/palette --condition palette="#dc3c3c white" -n 4 --guidance 3',
    ]
