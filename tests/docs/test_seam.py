"""The Python of docs/reference/seam.md runs, top to bottom, as a module of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "seam.md"


def test_the_examples_run(monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    module = ModuleType("the_seam")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # its classes are pickled for data workers
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    assert len(blocks) >= 4


def test_every_name_is_one_of_the_seam():
    import ldmkit
    from ldmkit import Canvas, Conditioner, ForeignStage

    text = PAGE.read_text("utf-8")
    for name in ("output_size", "from_foreign", "weightless", "many", "prepare", "from_user"):
        assert name in text
        assert callable(getattr(Conditioner, name))
    for kind in (Canvas, ForeignStage):
        for name in re.findall(r"`canvas\.(\w+)`", text) if kind is Canvas else ("target", "params", "key", "tensors"):
            assert name in kind.__dataclass_fields__ or callable(getattr(kind, name))
    assert ldmkit.LatentSpec.__name__ in text
