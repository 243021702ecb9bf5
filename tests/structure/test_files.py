"""A file that is replaced is whole at every moment: the old one, or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ldmkit import files

PACKAGE = Path(__file__).parents[2] / "ldmkit"


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    files.write_text(path, "old")
    with files.replacing(path) as temporary:
        temporary.write_text("ne", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_where_writing_fails_the_old_file_stays_and_nothing_lies_about(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    files.write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, operation, full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_replaced_in_one_place() -> None:
    """What else writes beside a path and renames are directories."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "os.replace(" in path.read_text("utf-8") or ".tmp-" in path.read_text("utf-8")
    }
    assert users == {"files.py", "interop/diffusers/folders.py", "latent_diffusion/serialization.py"}
