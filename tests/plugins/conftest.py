"""Distributions as a package manager would leave them, written by hand into a temporary directory on `sys.path`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("ldmkit-depth", code)` makes a distribution with a module and an entry point; nothing else is installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules = set(sys.modules)

    def _install(
        name: str, code: str, *, version: str = "1.0", entry: str | None = None, module: str = "", requires: str = ""
    ) -> Path:
        module = module or name.replace("-", "_")
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        point = entry or name.removeprefix("ldmkit-")
        (info / "entry_points.txt").write_text(f"[ldmkit]\n{point} = {module}\n")
        (site / f"{module}.py").write_text(dedent(code))
        return site / f"{module}.py"

    yield _install
    for added in set(sys.modules) - modules:
        if (getattr(sys.modules[added], "__file__", None) or "").startswith(str(site)):
            del sys.modules[added]


@pytest.fixture
def registers() -> Callable[[str, str], str]:
    """The code of a plugin that registers one conditioner."""

    def code(name: str, target: str = "nowhere:Nothing") -> str:
        return dedent(f"""
            from ldmkit import hookimpl

            @hookimpl
            def ldmkit_register_conditioners(register):
                register({name!r}, {target!r})
        """)

    return code
