"""What is said before the first step."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldmkit.runs import summary
from ldmkit.training.logging.console import Console


@pytest.mark.parametrize(("copies", "warned"), [(7.9, True), (8.1, False)])
def test_a_disk_with_less_room_than_two_checkpoints(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: float, warned: bool
) -> None:
    """A checkpoint holds the weights four times, with the average and Adam's two moments; two of them are there at a time."""
    model = toy.model()
    free = int(copies * sum(parameter.nbytes for parameter in model.parameters()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    out = io.StringIO()
    summary._check_space(Console(file=out), model, tmp_path)
    assert ("MiB are free, and two checkpoints take" in out.getvalue()) == warned
