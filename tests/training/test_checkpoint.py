from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.errors import CheckpointError, DivergedError, ResourceError
from ldmkit.training.checkpointing import atomic_dir
from ldmkit.training.checkpointing.atomic_dir import MANIFEST
from ldmkit.training.checkpointing.checkpoints import Checkpoints, first_not_finite

FILES = ("model.safetensors", "trainer.json", MANIFEST)


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((4, 8), float(step)), "steps": torch.tensor(step)}}


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, tensors(step), {"step": step, "position": step * 64})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    newest = saved(tmp_path, 10, 20).newest()
    assert newest is not None
    assert newest.step == 20
    assert newest.state == {"step": 20, "position": 1280}
    loaded = newest.tensors("model")
    assert torch.equal(loaded["w"], torch.full((4, 8), 20.0))
    assert torch.equal(loaded["steps"], torch.tensor(20))  # 0-dimensional
    with pytest.raises(CheckpointError, match=r"no ema\.safetensors"):
        newest.tensors("ema")


def test_nothing_there() -> None:
    assert Checkpoints(Path("/nowhere/at/all")).newest() is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one byte short", "one bit", "one byte more"])
def test_a_damaged_newest_one_falls_back_and_says_so(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    path = tmp_path / "step-00000020" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1  # in a safetensors file: in the numbers, which its own format does not check
    path.unlink()
    changed = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one byte short": content[:-1],
        "one bit": bytes(flipped),
        "one byte more": content + b"x",
    }
    if damage != "missing":
        path.write_bytes(changed[damage])
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10
    assert len(checkpoints.skipped) == 1
    assert checkpoints.skipped[0].startswith("step-00000020")


def test_no_bit_of_the_manifest_may_differ(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    manifest = tmp_path / "step-00000020" / MANIFEST
    content = manifest.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7  # it stays ASCII
        manifest.write_bytes(flipped)
        try:
            newest = checkpoints.newest()
        except CheckpointError:  # of a later format, as far as anybody can tell
            assert json.loads(flipped)["format"] > atomic_dir.FORMAT
            continue
        assert newest is not None
        assert newest.step == 10 or json.loads(flipped) == json.loads(content)  # white space says nothing


def test_a_manifest_of_the_first_format_is_read(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    manifest = tmp_path / "step-00000010" / MANIFEST
    before = {**json.loads(manifest.read_text()), "format": 1}  # which had no checksum of itself
    del before["digest"]
    manifest.write_text(json.dumps(before))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10


def test_a_stage_whose_every_checkpoint_is_damaged_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).continued() is None
    checkpoints = saved(tmp_path, 10, 20)
    found = checkpoints.continued()
    assert found is not None
    assert found.step == 20
    for step in ("step-00000010", "step-00000020"):
        (tmp_path / step / "model.safetensors").write_bytes(b"")
    assert checkpoints.newest() is None
    with pytest.raises(CheckpointError) as caught:
        checkpoints.continued()
    assert f"no checkpoint in {tmp_path} is intact (step-00000020: model.safetensors is damaged" in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_an_empty_directory_and_foreign_ones_are_passed_over(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    for name in ("step-00000030", "step-x", "notes", ".tmp-step-00000040-1"):
        (tmp_path / name).mkdir()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10
    checkpoints.sweep()
    assert ".tmp-step-00000040-1" not in names(tmp_path)
    assert "notes" in names(tmp_path)


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_the_best_is_kept_beside_the_last_n(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.4)):
        checkpoints.save(step, tensors(step), {}, score=score)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_a_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    """Nothing was held out: there is no best one to keep beside the last."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(step, tensors(step), {}, score=float("nan"))
    assert names(tmp_path) == ["step-00000003"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.manifest["score"] is None


def test_nothing_is_pruned_for_a_newer_one_that_is_damaged(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-00000009").mkdir()
    saved(tmp_path, 2, 3, keep=1)
    assert {"step-00000001", "step-00000002", "step-00000003"} <= set(names(tmp_path))


def test_a_valid_one_of_the_same_step_is_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(5, tensors(6), {})
    newest = checkpoints.newest()
    assert newest is not None
    assert torch.equal(newest.tensors("model")["w"], torch.full((4, 8), 5.0))
    assert names(tmp_path) == ["step-00000005"]


def test_it_may_be_moved(tmp_path: Path) -> None:
    saved(tmp_path / "here", 5)
    shutil.move(tmp_path / "here", tmp_path / "there")
    newest = Checkpoints(tmp_path / "there").newest()
    assert newest is not None
    assert newest.step == 5
    assert not any(str(tmp_path) in path.read_text() for path in newest.path.glob("*.json"))


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    manifest = tmp_path / "step-00000005" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoints.newest()


def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    bad = {"model": {"good": torch.ones(3), "bad": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(DivergedError, match="bad"):
        checkpoints.save(1, bad, {})
    assert checkpoints.newest() is None
    atomic_dir.publish(tmp_path / "step-00000002", bad, {"trainer": {}}, {"step": 2, "score": None})
    newest = checkpoints.newest()
    assert newest is not None
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the tensor bad holds values that are not finite"):
        newest.tensors("model")
    assert first_not_finite({"a": torch.tensor([float("-inf")]), "b": torch.ones(2)}) == "a"
    assert first_not_finite({"a": torch.tensor([1e300], dtype=torch.float64)}) is None
    assert first_not_finite({"a": torch.arange(3), "b": torch.ones(0)}) is None


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"model": {"a": whole, "b": whole, "c": whole[2:4], "t": whole.view(2, 3).T}}, {})
    newest = checkpoints.newest()
    assert newest is not None
    loaded = newest.tensors("model")
    assert torch.equal(loaded["b"], whole)
    assert torch.equal(loaded["c"], whole[2:4])
    assert torch.equal(loaded["t"], whole.view(2, 3).T)


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from ldmkit.errors import ResourceError
from ldmkit.training.checkpointing.checkpoints import Checkpoints
folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder)
checkpoints.save(1, {"model": {"w": torch.ones(10)}}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(2, {"model": {"w": torch.ones(100_000)}}, {})
except ResourceError as error:
    print(error)
assert checkpoints.newest().step == 1
print(sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "step-00000002" in done.stdout
    assert "0.4 MiB needed" in done.stdout
    assert "MiB free" in done.stdout
    assert "['step-00000001']" in done.stdout  # nothing half-written stays


def test_a_file_system_that_renames_no_directory_of_a_lower_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, 2)
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if Path(source).name.startswith("step-"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"half")
    saved(tmp_path, 2, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert [found.step for found in Checkpoints(tmp_path).all()] == [2, 3]


def test_a_file_system_that_syncs_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refusing(number: int) -> Any:
        def sync(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        return sync

    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    saved(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(ResourceError, match="Input/output error"):
        saved(tmp_path, 2)
    assert [found.step for found in Checkpoints(tmp_path).all()] == [1]


def test_a_json_file_that_cannot_be_replaced_stays_and_nothing_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_dir.write_json(tmp_path / "plan.json", [1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_dir.write_json(tmp_path / "plan.json", [2])
    assert names(tmp_path) == ["plan.json"]
    assert json.loads((tmp_path / "plan.json").read_text()) == [1]
