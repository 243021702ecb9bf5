"""`--json` prints JSON alone, whatever a plugin or a library prints: at import, later, and past Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOUD = """
import os
print("from Python, at import")
os.write(1, b"past Python, at import")
from ldmkit import hookimpl

class Loud:
    pass

@hookimpl
def ldmkit_register_metrics(register):
    print("while it registers")
    register("loud", "loud_metric:Loud")
"""
METRIC = """
print("when it is asked for")
class Loud:
    def __init__(self, *, count: int = 1):
        pass
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    info = tmp_path / "p_loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: p-loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ldmkit]\nloud = p_loud\n")
    (tmp_path / "p_loud.py").write_text(LOUD)
    (tmp_path / "loud_metric.py").write_text(METRIC)
    return tmp_path


def call(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ldmkit", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )


@pytest.mark.parametrize("arguments", [("plugins", "list"), ("plugins", "show", "loud")])
def test_it_is_alone(site, arguments):
    done = call(site, *arguments, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "loud" in json.dumps(facts)
    for text in ("from Python, at import", "past Python, at import", "while it registers"):
        assert text in done.stderr


def test_an_error_leaves_nothing_on_standard_output(site):
    done = call(site, "plugins", "show", "nothing-of-that-name", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_what_a_plugin_prints_at_import_is_never_in_an_answer(site):
    done = call(site, "plugins", "list")
    assert "from Python" not in done.stdout
    assert "loud" in done.stdout
