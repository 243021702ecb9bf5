"""Plugins of one file (`-p FILE`): loaded here, and again in every process that gets an object of theirs. Loads no torch."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "ldmkit_file_"


def module_of(path: str) -> ModuleType:
    """The module of a Python file, under a name of its own; a file that has not changed since is not run again.

    Raises whatever the file raises.
    """
    return _module(path, Path(path).read_bytes())


def _module(path: str, source: bytes) -> ModuleType:
    readable = re.sub(r"\W", "_", Path(path).stem)
    place = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]  # files of equal names in different folders
    name = f"{PREFIX}{readable}_{place}"
    loaded = sys.modules.get(name)
    if loaded is not None and vars(loaded)["__source__"] == source:
        return loaded
    module = ModuleType(name)
    module.__dict__.update(__file__=path, __source__=source)
    sys.modules[name] = module  # so that its classes can be pickled
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class Sent:
    """An object on its way to another process, which first loads the files that its classes are from, as they were here."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        content = pickle.dumps(self.value)
        modules = [m for name, m in sys.modules.items() if name.startswith(PREFIX) and name.encode() in content]
        return _received, ([(str(module.__file__), vars(module)["__source__"]) for module in modules], content)


def _received(files: list[tuple[str, bytes]], content: bytes) -> Sent:
    for path, source in files:
        _module(path, source)
    return Sent(pickle.loads(content))
