"""A class that a data worker cannot import is named before a worker is started, not as memory that ran out."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ldmkit.data.workers import _check_picklable
from ldmkit.errors import PluginError


class Source:
    """A data source, as far as it is sent."""


def examples(conditioner: object) -> SimpleNamespace:
    return SimpleNamespace(
        dataset=SimpleNamespace(source=Source()), copies={"w": SimpleNamespace(conditioner=conditioner)}
    )


@pytest.fixture
def notebook(monkeypatch) -> ModuleType:
    """A main program without a file, with a class in it."""
    main = ModuleType("__main__")
    exec("class Depth:\n    pass\n\nclass Help:\n    pass\n", main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_a_class_of_a_notebook(notebook):
    with pytest.raises(PluginError, match=r"the class Depth of the slot w is defined in a notebook") as caught:
        _check_picklable(examples(notebook.Depth()))
    assert "my_plugin.py" in (caught.value.hint or "")
    assert "runtime.workers to 0" in (caught.value.hint or "")


def test_an_attribute_of_such_a_class(notebook):
    holder = Source()
    holder.helper = notebook.Help()
    with pytest.raises(PluginError, match=r"the attribute 'helper' of the slot w \(Source\) is defined in a notebook"):
        _check_picklable(examples(holder))


def test_a_class_of_a_function():
    class Local:
        pass

    with pytest.raises(PluginError, match=r"Local.* cannot be sent to a data worker") as caught:
        _check_picklable(examples(Local()))
    assert "top level" in (caught.value.hint or "")


def test_a_class_of_a_script_is_found_by_workers(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from types import SimpleNamespace\n"
        "from ldmkit.data.workers import _check_picklable\n"
        "class Depth:\n    pass\n"
        "copies = {'w': SimpleNamespace(conditioner=Depth())}\n"
        "_check_picklable(SimpleNamespace(dataset=SimpleNamespace(source=Depth()), copies=copies))\n"
        "print('sent')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout == "sent\n", done.stderr
