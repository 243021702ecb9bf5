"""What a run must not depend on: the clock, the time zone, where it is started; and the versions it needs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ldmkit
from ldmkit.recipe import bundled
from ldmkit.runs import directory

PACKAGE = Path(ldmkit.__file__).parent


def test_times_in_files_are_utc_whatever_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone in ("Pacific/Kiritimati", "America/St_Johns"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        written = datetime.fromisoformat(directory.now())
        assert written.utcoffset() == timedelta(0)
        assert abs(written - datetime.now(UTC)) < timedelta(minutes=1)
    monkeypatch.undo()
    time.tzset()


def test_durations_are_taken_from_a_clock_that_never_goes_back() -> None:
    wall = re.compile(r"time\.time\(|datetime\.now\(\)|utcnow\(")
    assert [path for path in PACKAGE.rglob("*.py") if wall.search(path.read_text("utf-8"))] == []


def test_recipes_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert {"superres", "class"} <= set(bundled())
    assert ldmkit.load_recipe("superres").name == "superres"


def test_what_it_needs_is_said() -> None:
    about = metadata.metadata("ldmkit")
    assert "3.11" in about["Requires-Python"]
    needs = {found.name: found for found in map(Requirement, metadata.requires("ldmkit") or ())}
    assert not needs["torch"].specifier.contains("2.10.0")
    assert needs["torch"].specifier.contains("2.11.0")
