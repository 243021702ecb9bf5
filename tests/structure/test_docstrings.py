"""Public docstrings say the shapes of tensors and the errors raised: at least nine of ten do.

A function counts for shapes where a parameter or the result is annotated as a tensor; it counts for errors where its
body, or a private helper of the same file that it calls, makes one of `ldmkit.errors`. A method is documented by its own
docstring or its class's, and an override without one by the method it overrides.

`python tests/structure/test_docstrings.py` prints the shares and what is missing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAST = 0.9

TENSOR = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
# Tensors by name, a state dict, have no one shape.
BY_NAME = re.compile(r"\b(?:dict|Mapping|MutableMapping)\[str, (?:\w+ \| )?(?:Tensor|nn\.Parameter)(?: \| \w+)?\]")
# (b, c, h, w), (l_i, ...), (*shape), (3, h, w), (), and what has no axes to name
WORD = r"count|distinct|draws|rows|side|out|(?:image_|latent_)?channels"
DIMENSION = rf"(?:\*?[a-wyzT]\d?|l_i|\.\.\.|\*\w[\w.]*|[2-9]|\d\d+|{WORD})"
SHAPE = re.compile(
    rf"\({DIMENSION},[^()]*\)|\(\*\w[\w.]*\)|(?<![\w\]])\(\)|\b(?:a scalar|scalars|any shape|one shape)\b"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Documented:
    """A public function: where it stands, what documents it, and what it would have to say."""

    file: str
    line: int
    name: str
    text: str
    tensors: bool
    errors: frozenset[str]

    @property
    def says_shapes(self) -> bool:
        return bool(SHAPE.search(self.text))

    @property
    def says_errors(self) -> bool:
        return "Raises" in self.text or all(error in self.text for error in self.errors)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name} {' '.join(sorted(self.errors))}".rstrip()


@dataclass(frozen=True)
class Class:
    """A class of the project, for what the methods below it inherit."""

    text: str
    bases: tuple[str, ...]
    methods: Mapping[str, str]  # name -> docstring


def paths() -> list[Path]:
    return sorted([*(ROOT / "ldmkit").rglob("*.py"), *ROOT.glob("plugins/*/ldmkit_*/**/*.py")])


@cache
def parsed() -> Mapping[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in paths() if "template" not in path.parts}


@cache
def error_names() -> frozenset[str]:
    """`LdmkitError` and every class of the project below it."""
    names, bases = (
        {"LdmkitError"},
        {
            node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
            for tree in parsed().values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        },
    )
    while more := {name for name, above in bases.items() if above & names} - names:
        names |= more
    return frozenset(names)


@cache
def classes() -> Mapping[tuple[Path | None, str], Class]:
    """(file, name) -> a class, and (None, name) for those that other files import."""
    found: dict[tuple[Path | None, str], Class] = {}
    for path, tree in parsed().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                methods = {
                    inner.name: ast.get_docstring(inner) or "" for inner in node.body if isinstance(inner, Function)
                }
                bases = tuple(ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)
                found[path, node.name] = found[None, node.name] = Class(ast.get_docstring(node) or "", bases, methods)
    return found


def inherited(path: Path | None, owner: str, method: str) -> str:
    """What documents a method that overrides another and has no docstring: the other's, and its class's."""
    above = classes().get((path, owner)) or classes().get((None, owner))
    for base in above.bases if above is not None else ():
        parent = classes().get((path, base)) or classes().get((None, base))
        if parent is not None and method in parent.methods:
            return parent.methods[method] + "\n" + parent.text
        if text := inherited(path, base, method):
            return text
    return ""


def annotations(function: Function) -> Iterator[str]:
    arguments = function.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if argument is not None and argument.annotation is not None:
            yield ast.unparse(argument.annotation)
    if function.returns is not None:
        yield ast.unparse(function.returns)


def raised(function: Function, helpers: Mapping[str, Function], seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The errors that a function makes itself, or by the private helpers of its file; click's own do not count."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and not ast.unparse(node.func).startswith("click."):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in error_names():
                found.add(name)
            elif name in helpers and name not in seen:
                found |= raised(helpers[name], helpers, seen | {name})
    return frozenset(found)


def public(name: str) -> bool:
    return not name.startswith("_") or name in ("__call__", "__init__")


@cache
def documented() -> tuple[Documented, ...]:
    found = []
    for path, tree in parsed().items():
        helpers = {node.name: node for node in ast.walk(tree) if isinstance(node, Function) and not public(node.name)}
        for function, owner in functions(tree):
            text = ast.get_docstring(function) or ""
            name = function.name
            if owner is not None:
                text = (text or inherited(path, owner.name, name)) + "\n" + (ast.get_docstring(owner) or "")
                name = f"{owner.name}.{name}"
            tensors = any(TENSOR.search(BY_NAME.sub("", annotation)) for annotation in annotations(function))
            file = path.relative_to(ROOT).as_posix()
            found.append(Documented(file, function.lineno, name, text, tensors, raised(function, helpers)))
    return tuple(found)


def functions(tree: ast.Module) -> Iterator[tuple[Function, ast.ClassDef | None]]:
    """Public functions, but for commands, whose docstring is their `--help`; the public methods of public classes."""
    for node in tree.body:
        if (
            isinstance(node, Function)
            and public(node.name)
            and not any("command" in ast.unparse(each) for each in node.decorator_list)
        ):
            yield node, None
        elif isinstance(node, ast.ClassDef) and public(node.name):
            yield from ((inner, node) for inner in node.body if isinstance(inner, Function) and public(inner.name))


def split(subject: str) -> tuple[list[Documented], list[Documented]]:
    """The functions that a subject asks of, and those of them that do not say it."""
    if subject == "shapes":
        asked = [function for function in documented() if function.tensors]
        return asked, [function for function in asked if not function.says_shapes]
    asked = [function for function in documented() if function.errors]
    return asked, [function for function in asked if not function.says_errors]


@pytest.mark.parametrize("subject", ["shapes", "errors"])
def test_public_docstrings_say_it(subject: str) -> None:
    asked, missing = split(subject)
    assert len(asked) > 100
    share = 1 - len(missing) / len(asked)
    listed = "\n".join(map(str, missing))
    assert share >= LEAST, f"{share:.0%} of {len(asked)} docstrings say {subject}; these do not:\n{listed}"


if __name__ == "__main__":
    for subject in ("shapes", "errors"):
        asked, missing = split(subject)
        print(f"{subject}: {1 - len(missing) / len(asked):.1%} of {len(asked)}; missing:", *missing, sep="\n  ")
