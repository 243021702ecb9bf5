"""The packages as they would be published: built, installed into a fresh environment, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def project(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution of each package. What builds them is asked of the registry, or of uv's cache."""
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        uv("build", "--quiet", "--out-dir", str(folder), str(package))
    return folder


def uv(*arguments: str, **more: str) -> None:
    program = shutil.which("uv")
    assert program is not None
    result = subprocess.run(
        [program, *arguments], env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_each_package_has_a_wheel_and_a_source_distribution(dist):
    for package in PACKAGES:
        facts = project(package)
        stem = f"{str(facts['name']).replace('-', '_')}-{facts['version']}"
        with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl") as wheel:
            names = wheel.namelist()
        assert not [name for name in names if "test" in name.split("/")[0] or name.endswith(".pyc")]
        assert any(name.endswith("/licenses/LICENSE") for name in names) or package != ROOT
        with tarfile.open(dist / f"{stem}.tar.gz") as source:
            assert f"{stem}/pyproject.toml" in source.getnames()


@pytest.mark.slow
def test_superres_runs_by_its_name_from_the_installed_wheels(dist, tmp_path):
    environment = tmp_path / "fresh"
    uv("venv", "--quiet", "--python", sys.executable, str(environment))
    python = environment / "bin" / "python"
    # Its own packages alone; what they need is borrowed from here, where the lock file has put it.
    uv(
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        str(python),
        *map(str, sorted(dist.glob("*.whl"))),
    )
    site = next(environment.glob("lib/python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    done = subprocess.run(
        [str(environment / "bin" / "ldmkit"), "run", "superres", "--quick", "--set", "evaluate=[]"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout.splitlines()[0], "the recipe is the installed package's, and not the clone's"
    assert (tmp_path / "runs" / "superres-quick" / "report.html").is_file()


def test_every_version_is_the_same_one():
    version = project(ROOT)["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    minor = ".".join(str(version).split(".")[:2])
    following = f"0.{int(minor.split('.')[1]) + 1}"
    for package in PACKAGES[1:]:
        needed = {line.replace("ldmkit[samples]", "ldmkit") for line in project(package)["dependencies"]}
        assert f"ldmkit>={minor},<{following}" in needed, package.name


def test_the_hooks_before_a_commit_and_the_forms_can_be_read():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "generated"]
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir():
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text("utf-8")))
