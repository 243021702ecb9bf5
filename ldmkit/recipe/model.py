"""`Recipe`: a validated recipe, with the place of each of its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import PrivateAttr, ValidationError

from ldmkit.errors import LdmkitError, PluginError, RecipeError
from ldmkit.messages import KeyPath, Problem, problems_of, shown
from ldmkit.recipe import components, dump
from ldmkit.recipe.base import Section
from ldmkit.recipe.checks import cross_checks
from ldmkit.recipe.json_schema import json_schema
from ldmkit.recipe.sections import Denoiser, Sections
from ldmkit.recipe.strict_yaml import Document, Mark

if TYPE_CHECKING:
    from ldmkit.plugins import Registry

SCHEMA = 1


class Recipe(Sections):
    """A recipe whose sections, and the core's own components in them, are valid. `validate_components` looks at what plugins own.

    `load` and `Recipe.parse` make one; `resolved` gives every default.
    """

    _source: Path | None = PrivateAttr(default=None)
    _registry: Any = PrivateAttr(default=None)  # with which its components were validated

    @classmethod
    def parse(
        cls, document: Document | Mapping[str, Any], *, source: Path | None = None, registry: Registry | None = None
    ) -> Recipe:
        """Validate a mapping, or a YAML document with the places of its keys.

        With a `registry`, the options of components are validated too, and all problems are reported together.
        Raises RecipeError, or PluginError where only a plugin is to blame, listing every problem.
        """
        if not isinstance(document, Document):
            document = Document(dict(document), {(): Mark(str(source) if source else "recipe")})
        document = Document(normalised(document.value), document.marks)
        refuse_newer_schema(document)
        recipe, problems = _validated(document)
        if isinstance(document.value, dict):
            problems += components.problems(document.value, registry)
            if recipe is not None and not components.blocked(document.value):
                problems += cross_checks(recipe)
        if problems or recipe is None:
            raise failure(problems, document)
        components.complete(recipe, registry)
        recipe._source, recipe._registry = source, registry
        return recipe

    @property
    def source(self) -> Path | None:
        """The file it was read from."""
        return self._source

    def where(self, *path: str | int) -> str:
        """The place of a key, or of the nearest mapping around it: `recipe.yaml:3:5`."""
        return place(path, self._document)

    def error(self, message: str, *path: str | int, hint: str | None = None) -> RecipeError:
        """A RecipeError about one key, with its place; for checks that need more than the recipe."""
        key = ".".join(str(step) for step in path)
        return RecipeError(f"{key}: {message}", hint=hint, where=self.where(*path))

    def validate_components(self, registry: Registry) -> Recipe:
        """The recipe with the options of its components validated and their defaults written out. Imports plugins' components.

        A recipe that was validated with this registry is returned as it is. Raises RecipeError or PluginError listing every
        problem.
        """
        if self._registry is registry:
            return self
        return type(self).parse(self._document, source=self._source, registry=registry)

    def require_components(self, registry: Registry) -> None:
        """Check that everything the recipe names is registered, importing nothing. Raises PluginError listing all that is not."""
        if problems := components.unknown(self._document.value, registry):
            raise failure(problems, self._document)

    def updated(self, changes: Mapping[str, Any]) -> Recipe:
        """A recipe with values replaced: `updated({"conditioners.class.classes": [...]})`. Validated as this one was; places are
        kept."""
        value = self.resolved(redact=False)
        for key, change in changes.items():
            *parents, last = key.split(".")
            inner = value
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = change
        document = Document(value, self._document.marks)
        return type(self).parse(document, source=self._source, registry=self._registry)

    def resolved(self, *, redact: bool = True) -> dict[str, Any]:
        """JSON values with every default. `redact` hides secrets."""
        value = self.model_dump(mode="json", by_alias=True, warnings=False)
        if self.dropout is not None:  # the table says it, and a rate beside it would say it twice
            for slot in value["conditioners"].values():
                del slot["dropout"]
        if self.alone:
            for section in ("denoiser", "diffusion", "train", "conditioners", "dropout"):
                value.pop(section, None)
        if self.autoencoder.from_ is not None:  # the trained one decides what the recipe leaves open
            value["autoencoder"] = self.autoencoder.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if self.init is not None and not self.alone:
            value["denoiser"] = self.denoiser.model_dump(mode="json", by_alias=True, exclude_unset=True)
            value["diffusion"] = self.diffusion.model_dump(mode="json", by_alias=True, exclude_unset=True)
        _shortened(value)
        return dump.redacted(value) if redact else value

    def to_yaml(self, *, redact: bool = True) -> str:
        """`resolved` as YAML; reading it gives an equal recipe."""
        return dump.to_yaml(self.resolved(redact=redact))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of recipe files, for editors."""
        return json_schema(cls)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; where it was written does not count."""
        return isinstance(other, Recipe) and self.resolved(redact=False) == other.resolved(redact=False)


def normalised(raw: Any) -> Any:
    """The short forms written out: a component given by its name, an empty slot, a slot's or a loss's type."""
    if not isinstance(raw, dict):
        return raw
    raw = dict(raw)
    if isinstance(init := raw.get("init"), dict) and isinstance(init.get("from"), str):
        raw["autoencoder"] = _started(raw.get("autoencoder", {}), init["from"])
    for section in ("conditioners", "losses"):
        if isinstance(slots := raw.get(section), dict):
            raw[section] = {slot: _slot(slot, value) for slot, value in slots.items()}
    for choice in components.CHOICES:
        raw = _named(raw, choice.path)
    return raw


def _named(value: Any, path: tuple[str, ...]) -> Any:
    """`value` with `{type: name}` for a name at `path`; what is on the way is copied."""
    if not path:
        return {"type": value} if isinstance(value, str) else value
    step, *rest = path
    if isinstance(value, list) and step == "*":
        return [_named(inner, tuple(rest)) for inner in value]
    if not isinstance(value, dict):
        return value
    return {key: _named(inner, tuple(rest)) if step in (key, "*") else inner for key, inner in value.items()}


def _shortened(resolved: dict[str, Any]) -> None:
    """An optimizer without options is its name, and no extra loss is nothing to say."""
    if not resolved["losses"]:
        del resolved["losses"]
    for stage in (resolved.get("train"), resolved["autoencoder"].get("train")):
        if stage and isinstance(named := stage.get("optimizer"), dict) and list(named) == ["type"]:
            stage["optimizer"] = named["type"]


def _started(autoencoder: Any, init: str) -> Any:
    """The autoencoder of a recipe with `init`: the trained model's, unless it comes from elsewhere or is trained again."""
    if not isinstance(autoencoder, dict) or autoencoder.get("train") is not None or autoencoder.get("from") is not None:
        return autoencoder
    return {**autoencoder, "from": init}


def _slot(slot: str, value: Any) -> Any:
    value = {} if value is None else value
    return {"type": slot.replace("_", "-"), **value} if isinstance(value, dict) else value


def refuse_newer_schema(document: Document) -> None:
    """A recipe of a later schema is not guessed at. Raises RecipeError."""
    version = document.value.get("schema") if isinstance(document.value, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise RecipeError(
            f"schema: {version} is newer than this ldmkit, which reads schema {SCHEMA}",
            hint="pip install --upgrade ldmkit",
            where=place(("schema",), document),
        )


def _validated(document: Document) -> tuple[Recipe | None, list[Problem]]:
    raw = document.value
    if not isinstance(raw, dict):
        return None, [Problem((), f"a recipe is a mapping of keys, got {shown(raw)}")]
    try:
        recipe = Recipe.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        return None, problems_of(error, raw, lambda path: keys_at(path, raw))
    recipe._document = document
    if recipe.alone and "denoiser" not in recipe.model_fields_set:
        # Nothing of it is trained, saved or shown; the model is put together all the same.
        recipe.denoiser = Denoiser.model_validate({"channels": 8, "multipliers": [1], "blocks": 1, "attention": []})
    return recipe, []


def failure(problems: list[Problem], document: Document) -> LdmkitError:
    """One error that lists every problem with its place, in the order of the file."""
    located = sorted(((mark_of(problem.path, document), problem) for problem in problems), key=_position)
    lines = dict.fromkeys(
        f"{mark}: {problem.key}: {problem.text}" if problem.path else f"{mark}: {problem.text}"
        for mark, problem in located
    )
    kind = PluginError if all(problem.plugin for problem in problems) else RecipeError
    return kind("\n".join(lines))


def _position(item: tuple[Mark, Problem]) -> tuple[str, int, int, str]:
    mark, problem = item
    return mark.file, mark.line or 0, mark.column or 0, problem.key


def mark_of(path: KeyPath, document: Document) -> Mark:
    """The mark of a key, or of the nearest mapping around it."""
    while path and path not in document.marks:
        path = path[:-1]
    return document.marks.get(path, Mark("recipe"))


def place(path: KeyPath, document: Document) -> str:
    return str(mark_of(path, document))


def keys_at(path: KeyPath, raw: Any) -> tuple[str, ...]:
    """The keys that the mapping at `path` may have."""
    annotation: Any = Recipe
    for step in path:
        model = _model(annotation)
        if model is None:
            origin = get_origin(annotation)
            annotation = get_args(annotation)[-1 if origin is dict else 0] if origin in (dict, list) else None
        else:
            annotation = next((hint for key, hint in _hints(model) if key == step), None)
    model = _model(annotation)
    extra = ("extends",) if model is Recipe else ()
    return () if model is None else (*model.keys(), *extra)


def _hints(model: type[Section]) -> list[tuple[str, Any]]:
    return [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]


def _model(annotation: Any) -> type[Section] | None:
    """The section that an annotation stands for: itself, or the one beside None."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    arms = [arm for arm in get_args(annotation) if isinstance(arm, type) and issubclass(arm, Section)]
    return arms[0] if len(arms) == 1 and get_origin(annotation) not in (dict, list) else None
