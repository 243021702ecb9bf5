from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldmkit.errors import RecipeError, ResourceError
from ldmkit.rundir import Difference, RunDirectory, differences, learned, read_status

HOLD = """
import sys, time
from pathlib import Path
from ldmkit.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=f"in use by process {holder.pid} on"), RunDirectory(tmp_path / "run"):
        pass
    assert time.monotonic() - begun < 1
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with RunDirectory(tmp_path / "run") as directory:
        assert json.loads((directory.path / ".lock").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_gets_a_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with RunDirectory(tmp_path):
        assert "no file locks" in capsys.readouterr().err
        with pytest.raises(ResourceError, match="if it is gone, delete"), RunDirectory(tmp_path):
            pass
    with RunDirectory(tmp_path):
        pass


def test_fresh_counts_on(tmp_path: Path) -> None:
    for number in range(3):
        with RunDirectory(tmp_path / "run", fresh=True) as directory:
            assert directory.moved == (tmp_path / f"run.{number}" if number else None)
            directory.write_recipe(f"name: run-{number}\n")
    assert [(tmp_path / name / "recipe.resolved.yaml").read_text() for name in ("run.1", "run.2", "run")] == [
        "name: run-0\n",
        "name: run-1\n",
        "name: run-2\n",
    ]


def test_the_status_is_merged_and_half_of_one_counts_as_none(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.write_status("running", stage="diffusion", step=3)
        directory.write_status("running", step=4)
        status = read_status(tmp_path)
        assert (status["state"], status["stage"], status["step"], status["pid"]) == (
            "running",
            "diffusion",
            4,
            os.getpid(),
        )
    (tmp_path / "status.json").write_text('{"state": "fini')
    assert read_status(tmp_path) == {}


def test_differences() -> None:
    before = {"train": {"steps": 3}, "data": {"size": [32, 32], "type": "a"}, "old": 1}
    after = {"train": {"steps": 4}, "data": {"size": (32, 32), "type": "b"}, "new": {"x": 1}}
    found = differences(before, after)
    assert [str(d) for d in found] == [
        "train.steps: 3 -> 4",
        'data.type: "a" -> "b"',
        "old: 1 -> nothing",
        'new: nothing -> {"x": 1}',
    ]
    assert [d.allowed for d in found] == [True, False, False, False]


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("train.steps", True),
        ("train.batch", True),
        ("autoencoder.train.log_every", True),
        ("autoencoder.channels", False),
        ("autoencoder.loss.kl", False),
        ("runtime.workers", True),
        ("sample.guidance", True),
        ("evaluate", True),
        ("conditioners.text.lr", True),
        ("conditioners.text.depth", False),
        ("conditioners.lr.depth", False),
        ("dropout.text", False),
        ("trainer", False),
    ],
)
def test_what_may_change(key: str, allowed: bool) -> None:
    assert Difference(key, 1, 2).allowed is allowed


def test_what_was_learned_from_the_data_is_kept() -> None:
    before = {"conditioners": {"class": {"classes": 10, "width": 8}, "gone": {"x": 1}}}
    assert learned(before, {"conditioners": {"class": {"width": 8}}}) == {"conditioners.class.classes": 10}
    assert learned(before, {"conditioners": {"class": {"width": 8, "classes": None}}}) == {
        "conditioners.class.classes": 10
    }
    assert learned(before, {"conditioners": {"class": {"width": 9, "classes": 4}}}) == {}
    assert learned({}, before) == {}


def test_no_torch() -> None:
    code = "import sys, ldmkit.rundir, ldmkit.run, ldmkit.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_recipe_may_be_mended_until_something_is_trained(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_recipe("data: {type: folder, path: /wrong}\n")
        assert directory.check({"data": {"type": "folder", "path": "/right"}}) == []
        (directory.path / "checkpoints" / "autoencoder").mkdir(parents=True)
        with pytest.raises(RecipeError, match=r"data\.path"):
            directory.check({"data": {"type": "folder", "path": "/right"}})
