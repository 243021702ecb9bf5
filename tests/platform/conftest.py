"""A recipe of a second or two: small scenes, pixels for latents, a UNet of a few thousand parameters; a sound conditioner."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ldmkit.conditioning import Conditioner, Conditioning, Ports

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "scenes", "size": 16, "count": 16, "held_out": 4},
    "autoencoder": {"type": "identity"},
    "denoiser": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "heads": 1},
    "train": {"steps": 2, "batch": 4, "ema": 0.9, "log_every": 1, "checkpoint_every": 1, "validate_every": 100},
    "sample": {"steps": 2, "count": 2},
    "runtime": {"device": "cpu", "cache": "off"},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """`tiny(conditioners={...}, train__steps=3)`: a recipe as a mapping."""

    def make(**changes: Any) -> dict[str, Any]:
        value = copy.deepcopy(TINY)
        for key, change in changes.items():
            *sections, last = key.split("__")
            inner: Any = value
            for section in sections:
                inner = inner[section]
            inner[last] = {**inner[last], **change} if isinstance(inner.get(last), Mapping) else change
        return value

    return make


@pytest.fixture(scope="session")
def wheels() -> SimpleNamespace:
    """A stranger's package as a wheel, and the wheel in a directory of its own."""
    return SimpleNamespace(wheel_of=wheel_of, assembled=assembled, installed=installed)


def wheel_of(package: Path, out: Path) -> Path:
    """The package's wheel: by uv where there is one and it can build offline, else put together here."""
    uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "build", "--wheel", "--offline", "--python", sys.executable, "--out-dir", str(out), str(package)]
        subprocess.run(command, capture_output=True, check=False)
    return next(iter(out.glob("*.whl")), None) or assembled(package, out)


def assembled(package: Path, out: Path) -> Path:
    """A wheel is a zip archive: the modules, and a `.dist-info` with metadata, entry points and a record of hashes."""
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    needs = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["ldmkit"].items())
    files = {
        str(path.relative_to(package)): path.read_bytes()
        for path in sorted(package.glob("ldmkit_*/*.py"))
    }  # fmt: skip
    files[f"{stem}.dist-info/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}".encode()
    )
    files[f"{stem}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{stem}.dist-info/entry_points.txt"] = f"[ldmkit]\n{points}".encode()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([f"{stem}.dist-info/RECORD", "", ""])
    files[f"{stem}.dist-info/RECORD"] = record.getvalue().encode()
    out.mkdir(exist_ok=True)
    target = out / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def installed(wheel: Path, target: Path) -> Path:
    """The wheel in a directory of its own: by uv where there is one; a pure wheel is installed by unpacking it."""
    uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "pip", "install", "--no-deps", "--offline", "--python", sys.executable, "--target"]
        subprocess.run([*command, str(target), str(wheel)], capture_output=True, check=False)
    if not target.is_dir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return target


class Level(Conditioner):
    """How many shapes there are, by tokens and vector: sound, and made to be spoiled."""

    reads = ("shapes",)

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.emits = Ports(tokens=width, vector=width, length=1)
        self.net = nn.Linear(1, width)

    def prepare(self, sample, generator=None):
        return {"level": torch.tensor([float(sample["shapes"])])}

    def encode(self, prepared, canvas):
        vector = self.net(prepared["level"])
        return Conditioning(tokens=vector[:, None], vector=vector)

    def null(self, canvas):
        return Conditioning(tokens=canvas.zeros(1, 1, self.emits.tokens), vector=canvas.zeros(1, self.emits.vector))
