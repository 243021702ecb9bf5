"""From a path or a bundled name to a `Recipe`: finds the file, follows `extends`, applies overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmkit.errors import RecipeError
from ldmkit.messages import KeyPath, did_you_mean
from ldmkit.recipe.components import CHOICES, Choice
from ldmkit.recipe.model import Recipe, mark_of
from ldmkit.recipe.strict_yaml import Document, Mark, parse, parse_file, scalar

if TYPE_CHECKING:
    from ldmkit.plugins import Registry

SUFFIXES = (".yaml", ".yml")


def load(
    recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, registry: Registry | None = None
) -> Recipe:
    """Read a recipe file, a bundled one by its name, or a mapping of its keys, with overrides such as `"train.steps=100"`.

    With a `registry`, the options of components are validated too (this imports them), and their defaults written out.
    Raises RecipeError or PluginError listing every problem with its file, line and column.
    """
    if isinstance(recipe, Mapping):
        path, document = None, _on_top(Document(_plain(recipe)), Path("recipe"), None, ())
    else:
        path = find(recipe)
        document = _extended(path, ())
    if isinstance(document.value, dict):
        stem = "run" if path is None else path.stem
        document.value.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run")
        document = _overridden(document, list(overrides))
    return Recipe.parse(document, source=path, registry=registry)


def folder() -> Path | None:
    """Where the bundled recipes are: in the package, or beside it in a working tree."""
    package = Path(str(resources.files("ldmkit")))
    for candidate in (package / "recipes", package.parent / "recipes"):
        if candidate.is_dir():
            return candidate
    return None


def bundled() -> dict[str, Path]:
    """The bundled recipes: `superres`, `paper/...` -> file."""
    root = folder()
    files = sorted(root.rglob("*.yaml")) if root else []
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files if root}


def find(path_or_name: str | Path, beside: Path | None = None) -> Path:
    """The file of a path (relative to `beside` if given) or of a bundled name. Raises RecipeError with near names."""
    given = Path(path_or_name).expanduser()
    path = beside / given if beside else given
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise RecipeError(f"no recipe can be read there: {error}", where=str(path_or_name)) from None
    if str(path_or_name) in (names := bundled()):
        return names[str(path_or_name)]
    if is_folder:
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        hint = f"In it: {', '.join(inside[:5])}" if inside else None
        raise RecipeError("this is a directory and not a recipe file", where=str(path_or_name), hint=hint)
    near = (
        sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES) if path.parent.is_dir() else []
    )
    guess = did_you_mean(given.name, [*near, *names]) or did_you_mean(given.stem, names)
    raise RecipeError(
        f"there is no such file and no bundled recipe of that name{guess}",
        where=str(path_or_name),
        hint=f"Bundled: {', '.join(names) or 'none'}",
    )


def _extended(path: Path, chain: tuple[Path, ...]) -> Document:
    """A file's document on top of what it extends."""
    resolved = path.resolve()
    if resolved in chain:
        names = " -> ".join(link.name for link in (*chain[chain.index(resolved) :], resolved))
        raise RecipeError(f"`extends` is circular: {names}", where=str(path))
    try:
        document = parse_file(path)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    return _on_top(document, resolved, path.parent, chain)


def _on_top(document: Document, own: Path, beside: Path | None, chain: tuple[Path, ...]) -> Document:
    """A document on top of what it extends: a file (relative to `beside`) or a bundled name."""
    if not isinstance(document.value, dict) or "extends" not in document.value:
        return document
    base = document.value.pop("extends")
    where = str(mark_of(("extends",), document))
    if not isinstance(base, str):
        raise RecipeError("extends: expected a file or the name of a bundled recipe", where=where)
    try:
        base_path = find(base, beside=beside)
    except RecipeError as error:
        raise RecipeError(f"extends: {base}: {error.message}", where=where, hint=error.hint) from None
    below = _extended(base_path, (*chain, own))
    if not isinstance(below.value, dict):
        raise RecipeError(f"extends: {base} is not a mapping of keys", where=where)
    below.value.pop("name", None)  # a recipe that builds on another one is another run
    value = merged(below.value, document.value)
    return Document(value, {**below.marks, **document.marks})


def _plain(value: Any) -> Any:
    """A mapping as YAML would give it: dicts with names as keys, lists, paths as text. Numbers and text stay as they are."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def merged(base: Any, over: Any, path: KeyPath = ()) -> Any:
    """`over` on top of `base`: mappings key by key, all else replaced.

    A section that changes its `type` loses the options of its old type. null takes a slot away. In a list, a mapping whose
    keys are numbers replaces single items (`--set evaluate.0=psnr`).
    """
    if isinstance(base, list) and isinstance(over, dict) and over and all(key.isdigit() for key in over):
        items = list(base)
        for key, value in over.items():
            index = int(key)
            items[index : index + 1] = [merged(items[index], value, (*path, index)) if index < len(items) else value]
        return items
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    result = dict(base)
    if "type" in over and over["type"] != base.get("type", _default_type(path)):
        result = {key: value for key, value in base.items() if key in _shared(path)}
    for key, value in over.items():
        if value is None and path == ("conditioners",) and key in base:
            del result[key]
        else:
            result[key] = merged(result[key], value, (*path, key)) if key in result else value
    return result


def _choice(path: KeyPath) -> Choice | None:
    """What is chosen at this place of a recipe."""
    for choice in CHOICES:
        if len(choice.path) == len(path) and all(a in (b, "*") for a, b in zip(choice.path, path, strict=True)):
            return choice
    return None


def _default_type(path: KeyPath) -> str | None:
    """The type that a section has where none is written."""
    if (choice := _choice(path)) is None:
        return None
    if choice.path[0] in ("conditioners", "losses"):
        return str(path[-1]).replace("_", "-")
    field = choice.section.model_fields["type"]
    return None if field.is_required() else str(field.default)


def _shared(path: KeyPath) -> Sequence[str]:
    """The keys that a section keeps when its type changes."""
    choice = _choice(path)
    if choice is None:
        return ()
    return (*choice.section.keys(), *AUTOENCODER_KEYS) if choice.kind == "autoencoders" else choice.section.keys()


AUTOENCODER_KEYS = ("downsample", "channels", "multipliers", "blocks", "resolution")


def _overridden(document: Document, overrides: list[str]) -> Document:
    """`a.b=c` on top of a document; the value is read as YAML, and errors about it name the override."""
    tree: dict[str, Any] = {}
    marks = dict(document.marks)
    for text in overrides:
        mark = Mark(f"--set {text}")
        key, equals, raw = text.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise RecipeError("write key.sub=value", where=str(mark))
        inner = tree
        for step in steps[:-1]:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"'{step}' is already set to a value by another override", where=str(mark))
        inner[steps[-1]] = override_value(raw, str(mark))
        path: KeyPath = tuple(int(step) if step.isdigit() else step for step in steps)
        marks = {old: value for old, value in marks.items() if old[: len(path)] != path}
        for end in range(1, len(path) + 1):
            marks.setdefault(path[:end], mark)
    return Document(merged(document.value, tree), marks)


def override_value(raw: str, where: str) -> Any:
    """A value as YAML has it; plain text needs no quotes, whatever is in it.

    Raises RecipeError for what YAML cannot read.
    """
    text = raw.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return parse(text, where).value
    try:
        return scalar(text)
    except ValueError as error:
        raise RecipeError(str(error), where=where) from None
