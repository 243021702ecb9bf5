from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from ldmkit.errors import RecipeError, ResourceError
from ldmkit.runs.directory import Difference, RunDirectory, differences, learned, read_status

HOLD = """
import sys, time
from pathlib import Path
from ldmkit.runs.directory import RunDirectory
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


@pytest.mark.parametrize("content", [b"", b"- a list", b"a: [", b"\xff\xfe"])
def test_a_recipe_that_cannot_be_read_is_an_error_that_fresh_helps_against(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "run"
    (place / "checkpoints" / "diffusion").mkdir(parents=True)
    (place / "recipe.resolved.yaml").write_bytes(content)
    with RunDirectory(place) as directory, pytest.raises(RecipeError, match="--fresh"):
        directory.check({"seed": 1})
    with RunDirectory(place, fresh=True) as directory:
        assert directory.moved == tmp_path / "run.1"
        assert directory.check({"seed": 1}) == []
    assert (tmp_path / "run.1" / "recipe.resolved.yaml").read_bytes() == content


@pytest.mark.parametrize("left", ["status.json", "checkpoints"])
def test_fresh_takes_no_checkpoints_over_from_a_run_without_a_recipe(tmp_path: Path, left: str) -> None:
    (tmp_path / "run" / left).mkdir(parents=True)
    with RunDirectory(tmp_path / "run", fresh=True) as directory:
        assert directory.moved == tmp_path / "run.1"
        assert not directory.begun


def test_a_directory_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    def mounted(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "rename", mounted)
    with (
        pytest.raises(ResourceError, match=r"cannot rename .*busy.*\n.*--out"),
        RunDirectory(tmp_path / "run", fresh=True),
    ):
        pass
    with RunDirectory(tmp_path / "run"):  # and it is not held for ever
        pass


def test_what_a_dead_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in (".tmp-status.json-7", ".tmp-metrics.jsonl", ".tmp-plan.json-7-0a1b2c3d", "samples/.tmp-latest.png-7"):
        (tmp_path / name).write_text("{")
    (tmp_path / ".model-0a1b2c3d").mkdir()
    (tmp_path / ".model-0a1b2c3d" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt", "samples"]
        assert list((tmp_path / "samples").iterdir()) == []


def test_on_a_full_disk_the_lock_holds_and_the_recipe_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.write_recipe("name: before\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with RunDirectory(tmp_path) as directory:
            with pytest.raises(ResourceError, match="is in use by another process"), RunDirectory(tmp_path):
                pass
            with pytest.raises(ResourceError, match=r"cannot write to .*: File too large"):
                directory.write_recipe("name: after\n")
            directory.write_status("running")  # which nothing depends on
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "recipe.resolved.yaml").read_text() == "name: before\n"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(ResourceError, match="cannot write to"), RunDirectory(tmp_path / name):
            pass


def test_of_many_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    read, write = os.pipe()
    children = []
    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child starts none
            child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # all begin when the other end is closed
            try:
                with RunDirectory(tmp_path / "run"):
                    time.sleep(0.5)
                os._exit(0)
            except ResourceError:
                os._exit(2)
            finally:
                os._exit(1)
        children.append(child)
    os.close(write)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    os.close(read)
    assert codes == [0] + [2] * 7


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
    code = (
        "import sys, ldmkit.runs.directory, ldmkit.runs.run, ldmkit.runs.resume_check; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_recipe_may_be_mended_until_something_is_trained(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_recipe("data: {type: folder, path: /wrong}\n")
        assert directory.check({"data": {"type": "folder", "path": "/right"}}) == []
        (directory.path / "checkpoints" / "autoencoder").mkdir(parents=True)
        with pytest.raises(RecipeError, match=r'data\.type: "folder" -> "photos"'):
            directory.check({"conditioners": {}, "data": {"type": "photos", "path": "/wrong"}})


def test_data_may_lie_elsewhere(tmp_path):
    """Whether they are the same is told by their content, not by where they are."""
    with RunDirectory(tmp_path / "run") as directory:
        directory.write_recipe("data: {type: folder, path: photos/, maps: a}\n")
        (directory.path / "checkpoints" / "autoencoder").mkdir(parents=True)
        moved = {"type": "folder", "path": "/moved/photos", "maps": "/moved/a"}
        changed = directory.check({"conditioners": {}, "data": moved})
        assert [difference.key for difference in changed] == ["data.path", "data.maps"]
