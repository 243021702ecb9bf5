"""The package that `ldmkit plugins new NAME` writes: a component that works, to be changed into one's own."""

from __future__ import annotations

import re
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template

from ldmkit.errors import UsageError
from ldmkit.plugins.catalog import NAME


def write(name: str, folder: Path | None = None, *, kind: str = "conditioner") -> Path:
    """Write the package for a conditioner, or another `kind` with a template, called `name` (`[a-z0-9-]+`).

    It goes to `folder`, by default ./ldmkit-NAME.

    Raises UsageError for an impossible name or a directory that is not empty.
    """
    if not NAME.fullmatch(name) or name[0].isdigit():
        suggestion = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789") or "depth"
        raise UsageError(
            f"a plugin cannot be called '{name}'", hint=f"Lower-case words joined by '-', for example: {suggestion}"
        )
    folder = folder or Path(f"ldmkit-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists", hint="Choose another place with --to DIR")
    words = _words(name, kind)
    for root in (_templates() / "common", _templates() / kind):
        for template in sorted(root.rglob("*.txt")):
            relative = template.relative_to(root).with_suffix("")
            target = folder / Template(str(relative)).substitute(words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(template.read_text("utf-8")).substitute(words), encoding="utf-8")
    return folder


def _templates() -> Path:
    return Path(str(resources.files("ldmkit"))) / "cli" / "template"


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates fill in."""
    major, minor = version("ldmkit").split(".")[:2]
    return {
        "name": name,
        "kind": kind,
        "slot": name.replace("-", "_"),
        "package": f"ldmkit_{name.replace('-', '_')}",
        "Class": "".join(word.capitalize() for word in name.split("-")),
        "fits": f"ldmkit>={major}.{minor},<{major}.{int(minor) + 1}",
    }
