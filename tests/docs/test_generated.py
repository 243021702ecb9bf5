"""Generated pages are what their generators write today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_recipes_is_not_stale():
    written = (DOCS / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert written == generator("generate").page(), "run `uv run python docs/generate.py`"


def test_the_reference_of_commands_components_and_names_is_not_stale():
    pages = generator("generate_reference").pages()
    stale = [
        str(path.relative_to(DOCS))
        for path, text in pages.items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    assert stale == [], "run `uv run python docs/generate_reference.py`"
    assert {path.name for path in (DOCS / "reference" / "python").iterdir()} == {
        path.name for path in pages if path.parent.name == "python"
    }


def test_every_public_name_is_documented():
    import ldmkit

    text = "".join(path.read_text("utf-8") for path in (DOCS / "reference" / "python").iterdir())
    missing = [name for name in ldmkit.__all__ if not name.startswith("__") and f"#ldmkit.{name} }}" not in text]
    assert missing == []
