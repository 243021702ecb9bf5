"""A process that dies, or a disk that is full, at ANY file operation of a save leaves a run that continues."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.errors import ResourceError
from ldmkit.training.checkpointing import atomic_dir
from ldmkit.training.checkpointing.checkpoints import Checkpoints

DIED, REFUSED = 9, 10
OPERATIONS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


class Saboteur:
    """Counts file operations; the `last` one kills the process, or fails as on a full disk."""

    def __init__(self, last: int, *, full_disk: bool) -> None:
        self.last, self.full_disk, self.seen = last, full_disk, 0

    def install(self) -> None:
        for name in OPERATIONS:
            setattr(os, name, self._guarded(getattr(os, name)))
        builtins.open = self._guarded(builtins.open)
        atomic_dir.save_file = self._half_written(atomic_dir.save_file)
        json.dump = self._half_dumped(json.dump)

    def operation(self, before: Callable[[], None] = lambda: None) -> None:
        self.seen += 1
        if self.seen == self.last or (self.full_disk and self.seen > self.last):
            before()
            if not self.full_disk:
                os._exit(DIED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        freeing = function.__name__ in ("unlink", "rmdir")  # a full disk lets go of files

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not (freeing and self.full_disk):
                self.operation()
            return function(*args, **kwargs)

        return guarded

    def _half_written(self, save: Callable[..., None]) -> Callable[..., None]:
        def half(tensors: Any, path: Path) -> None:
            save(tensors, path)
            self.operation(lambda: os.truncate(path, path.stat().st_size // 2))

        return half

    def _half_dumped(self, dump: Callable[..., None]) -> Callable[..., None]:
        def half(content: Any, file: Any, **kwargs: Any) -> None:
            text = json.dumps(content)
            self.operation(lambda: (file.write(text[: len(text) // 2]), file.flush()))
            dump(content, file, **kwargs)

        return half


def save(folder: Path, step: int, keep: int = 2) -> None:
    tensors = {"model": {"w": torch.full((64,), float(step))}, "ema": {"w": torch.full((64,), float(step))}}
    Checkpoints(folder, keep=keep).save(step, tensors, {"step": step})


def in_child(action: Callable[[], None]) -> int:
    """The exit code of `action` in a fork of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child starts none
        child = os.fork()
    if child == 0:
        try:
            action()
        except ResourceError:
            os._exit(REFUSED)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_points(template: Path, place: Path, step: int, *, full_disk: bool) -> Iterator[tuple[int, int]]:
    """(n, exit code) of saving `step` into a copy of `template`, sabotaged at operation n, for every n there is."""
    for n in range(1, 500):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)

        def sabotaged(n: int = n) -> None:
            Saboteur(n, full_disk=full_disk).install()
            save(place, step)

        code = in_child(sabotaged)
        yield n, code
        if code == 0 and not full_disk:
            return
        if code == 0:  # a full disk after everything was written
            return
    pytest.fail("the save never came to its end")


@pytest.mark.parametrize("full_disk", [False, True], ids=["killed", "disk full"])
def test_the_newest_valid_checkpoint_is_never_older_than_before(tmp_path: Path, full_disk: bool) -> None:
    template, place = tmp_path / "template", tmp_path / "place"
    save(template, 1)
    save(template, 2)
    reached: set[int] = set()
    points = 0
    for _, code in crash_points(template, place, 3, full_disk=full_disk):
        points += 1
        assert code in (0, DIED, REFUSED)
        found = Checkpoints(place).newest()
        assert found is not None
        assert found.step in (2, 3)
        assert torch.equal(found.tensors("model")["w"], torch.full((64,), float(found.step)))
        reached.add(found.step)

        Checkpoints(place).sweep()  # what the next start does
        assert all(path.name.startswith("step-") for path in place.iterdir())
        save(place, 3)
        save(place, 4)
        again = Checkpoints(place).newest()
        assert again is not None
        assert again.step == 4
    assert reached == {2, 3}
    assert points > 20


def test_a_damaged_directory_of_the_same_step_is_replaced_at_every_crash_point(tmp_path: Path) -> None:
    template, place = tmp_path / "template", tmp_path / "place"
    save(template, 1)
    save(template, 2)
    (template / "step-00000002" / "model.safetensors").write_bytes(b"half")
    for _, _code in crash_points(template, place, 2, full_disk=False):
        found = Checkpoints(place).newest()
        assert found is not None
        Checkpoints(place).sweep()
        save(place, 2)
        again = Checkpoints(place).newest()
        assert again is not None
        assert again.step == 2


def test_everything_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_rename(source: Any, target: Any) -> None:
        calls.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    save(tmp_path, 1)
    renamed = calls.index(("rename", str(tmp_path / "step-00000001")))
    before = [Path(name).name for kind, name in calls[:renamed] if kind == "fsync"]
    assert before[:-2] == ["model.safetensors", "ema.safetensors", "trainer.json"]
    assert before[-2] == "MANIFEST.json"
    assert before[-1].startswith(".tmp-step-00000001")  # the directory itself
    assert calls[renamed + 1] == ("fsync", str(tmp_path))
