"""YAML as recipes use it: the scalars of YAML 1.2, every key once, no tags, no merge keys, few aliases, a place for each value.

PyYAML reads YAML 1.1, in which `1e-4` is text, `on` is true, `010` is 8 and `12:30` is 750; the last of two equal keys
wins without a word; and a page of nested aliases fills the memory. Values are built here from PyYAML's events instead.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldmkit.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_ALIASES = 50
MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_EXPANDED = 10_000  # values that aliases repeat
MAX_DIGITS = 20

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_OTHER_BASE = re.compile(r"0(o[0-7]+|x[0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Mark:
    """Where something was written: a file with line and column from 1, or `--set a.b=c` with neither."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass
class Document:
    """A value and the mark of each of its parts: of a key in a mapping, of an item in a sequence, `()` for the whole."""

    value: Any
    marks: dict[KeyPath, Mark] = field(default_factory=dict)


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar of YAML 1.2; numbers may have `_` between digits. Raises ValueError for a number too long."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text.replace("_", ""))
    if _OTHER_BASE.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def parse_file(path: Path, name: str | None = None) -> Document:
    """Read a recipe file: at most 1 MB of UTF-8. Raises RecipeError with the line."""
    with path.open("rb") as file:
        return parse(file.read(MAX_BYTES + 1), name or str(path))


def parse(source: bytes | str, name: str) -> Document:
    """Parse one YAML document; `name` is what errors call it. Raises RecipeError with the line."""
    data = source.encode() if isinstance(source, str) else source
    if len(data) > MAX_BYTES:
        raise RecipeError(f"larger than {MAX_BYTES // 1000} kB; a recipe is a page of text", where=name)
    return _Builder(name).build(_decoded(data, name))


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError("this is UTF-16; save it as UTF-8", where=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"not UTF-8 at byte {error.start}; save it as UTF-8", where=f"{name}:{line}") from None
    for number, line_text in enumerate(text.split("\n"), start=1):
        if bad := next((c for c in line_text if ord(c) < 32 and c not in "\t\r"), None):
            column = line_text.index(bad) + 1
            raise RecipeError(f"the control character {bad!r}", where=f"{name}:{number}:{column}")
    return text


class _Frame:
    """A mapping or sequence that is still open."""

    def __init__(self, value: dict[str, Any] | list[Any], path: KeyPath, anchor: str | None, start: int) -> None:
        self.value, self.path, self.anchor, self.start = value, path, anchor, start
        self.key: str | None = None


class _Builder:
    """Builds one document from events, with an explicit stack: depth is counted, never recursed into."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}  # anchor -> value, number of nodes in it
        self.open_anchors: set[str] = set()
        self.marks: dict[KeyPath, Mark] = {}
        self.root: list[Any] = []
        self.nodes = self.aliases = self.expanded = 0
        self.lines: list[str] = []

    def build(self, text: str) -> Document:
        self.lines = text.splitlines()
        try:
            for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                self._handle(event)
        except yaml.MarkedYAMLError as error:
            raise RecipeError(self._syntax(error), where=str(self._mark(error.problem_mark))) from None
        except yaml.YAMLError as error:
            raise RecipeError(f"not YAML: {' '.join(str(error).split())}", where=self.name) from None
        if not self.root:
            raise RecipeError("the file is empty", where=self.name)
        return Document(self.root[0], self.marks)

    def _mark(self, mark: Any) -> Mark:
        return Mark(self.name) if mark is None else Mark(self.name, mark.line + 1, mark.column + 1)

    def _error(self, message: str, event: Any) -> RecipeError:
        return RecipeError(message, where=str(self._mark(event.start_mark)))

    def _handle(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent() if self.root:
                raise self._error("a second document begins here; a recipe is a single one", event)
            case yaml.ScalarEvent():
                self._refuse_tag(event)
                if self._is_key():
                    self._add_key(event)
                else:
                    self._keep(self._scalar(event), event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case yaml.AliasEvent():
                self._alias(event)

    def _is_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None

    def _add_key(self, event: yaml.ScalarEvent) -> None:
        frame, key = self.stack[-1], str(event.value)
        if key == "<<":
            raise self._error("merge keys (`<<`) are not part of YAML 1.2; use `extends:`", event)
        path = (*frame.path, key)
        if path in self.marks:
            raise self._error(f"the key '{key}' is given twice; first at {self.marks[path]}", event)
        frame.key = key
        self.marks[path] = self._mark(event.start_mark)

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        if not event.implicit[0]:
            return event.value  # quoted
        try:
            return scalar(event.value)
        except ValueError as error:
            raise self._error(str(error), event) from None

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            raise self._error(f"the tag {event.tag}: a recipe has no tags and runs no code", event)

    def _open(self, event: Any) -> None:
        self._refuse_tag(event)
        if self._is_key():
            raise self._error("a key is a word, not a list or a mapping", event)
        if len(self.stack) >= MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} levels deep", event)
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._place(event)
        self._attach(value)
        if event.anchor:
            self.open_anchors.add(event.anchor)
        self.stack.append(_Frame(value, path, event.anchor, self.nodes))

    def _close(self) -> None:
        frame = self.stack.pop()
        if frame.anchor:
            self.open_anchors.discard(frame.anchor)
            self.anchors[frame.anchor] = (frame.value, self.nodes - frame.start + 1)

    def _alias(self, event: yaml.AliasEvent) -> None:
        name = str(event.anchor)
        self.aliases += 1
        if self._is_key():
            raise self._error("a key is a word, not an alias", event)
        if name in self.open_anchors:
            raise self._error(f"*{name} stands inside what it refers to", event)
        if name not in self.anchors:
            raise self._error(f"*{name} refers to nothing: there is no &{name} above it", event)
        if self.aliases > MAX_ALIASES:
            raise self._error(f"more than {MAX_ALIASES} aliases", event)
        value, size = self.anchors[name]
        self.expanded += size
        if self.expanded > MAX_EXPANDED:
            raise self._error(f"the aliases repeat more than {MAX_EXPANDED} values", event)
        self._count(size, event)
        self._place(event)
        self._attach(copy.deepcopy(value))

    def _keep(self, value: Any, event: yaml.ScalarEvent) -> None:
        self._place(event)
        self._attach(value)
        if event.anchor:
            self.anchors[str(event.anchor)] = (value, 1)

    def _count(self, size: int, event: yaml.Event) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            raise self._error(f"more than {MAX_NODES} values", event)

    def _place(self, event: yaml.Event) -> KeyPath:
        """The path of the value that begins here; marks it, unless its key is marked already."""
        self._count(1, event)
        if not self.stack:
            path: KeyPath = ()
        else:
            frame = self.stack[-1]
            path = (*frame.path, len(frame.value) if isinstance(frame.value, list) else str(frame.key))
        self.marks.setdefault(path, self._mark(event.start_mark))
        return path

    def _attach(self, value: Any) -> None:
        if not self.stack:
            self.root.append(value)
            return
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
        else:
            frame.value[str(frame.key)] = value
            frame.key = None

    def _syntax(self, error: yaml.MarkedYAMLError) -> str:
        problem, mark = str(error.problem or error.context or "not YAML"), error.problem_mark
        line = self.lines[mark.line] if mark is not None and mark.line < len(self.lines) else ""
        if "cannot start any token" in problem and mark is not None:
            if line[mark.column : mark.column + 1] == "\t":
                return "a tab; YAML is indented with spaces"
            return f"text cannot begin with {line[mark.column : mark.column + 1]!r}; put it in quotes"
        if "mapping values are not allowed" in problem:
            return "a ':' where none can be: is the indentation right, and is text with ': ' in quotes?"
        return f"not YAML: {problem}" + (f" ({error.context})" if error.context and error.problem else "")
