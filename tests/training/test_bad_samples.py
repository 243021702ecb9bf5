"""Samples that cannot be read are said, written down once, and the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldmkit.data import Problem
from ldmkit.training.logging.bad_samples import FILE, SAID, BadSamples
from ldmkit.training.logging.console import Console


def test_each_is_written_once_and_the_first_ones_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = BadSamples(tmp_path, Console())
    bad.found([Problem("a.png", "the file is empty"), Problem("b.png", "cut short"), Problem("c.png", "twin", False)])
    said = capsys.readouterr().out
    assert "2 files are left out" in said
    assert "a.png: the file is empty" in said
    assert "1 file is used with a remark" in said
    assert bad.summary() is None
    for number in range(SAID + 3):
        bad(Problem(f"{number}.png", "gone"))
    said = capsys.readouterr().out
    assert said.count("another stands in: gone") == SAID
    assert said.count("only written to") == 1
    assert bad.summary() == f"{SAID + 3} samples could not be read, and others stood in: {tmp_path / FILE}"
    again = BadSamples(tmp_path, Console(enabled=False))  # the run continues
    again(Problem("1.png", "gone"))
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(lines) == 3 + SAID + 3
    assert lines[0] == {"path": "a.png", "reason": "the file is empty", "skipped": True}


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    BadSamples(tmp_path, Console(enabled=False))(Problem("caf\udce9.png", "gone"))
    assert json.loads((tmp_path / FILE).read_text())["path"] == "caf\\xe9.png"
