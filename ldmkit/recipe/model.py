"""`Recipe`: a validated recipe, with the place of each of its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, PrivateAttr, Tag, ValidationError, model_validator

from ldmkit.errors import LdmkitError, PluginError, RecipeError
from ldmkit.messages import KeyPath, Problem, problems_of, shown
from ldmkit.recipe import components, dump
from ldmkit.recipe.base import Section, Share
from ldmkit.recipe.checks import cross_checks
from ldmkit.recipe.objective import Diffusion
from ldmkit.recipe.sections import Autoencoder, Data, Denoiser, Init, Metric, Sample, Slot
from ldmkit.recipe.strict_yaml import Document, Mark
from ldmkit.recipe.training import Runtime, Train

if TYPE_CHECKING:
    from ldmkit.plugins import Registry

SCHEMA = 1
CHOICES = ("schedule", "loss", "weighting", "timestep_sampling")  # a name, or a mapping with `type`


class Recipe(Section):
    """A recipe whose core sections are valid. `validate_components` looks at what plugins own.

    `load` and `Recipe.parse` make one; `resolved` gives every default.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init: Init | None = None
    data: Data
    autoencoder: Autoencoder
    conditioners: dict[str, Slot] = Field(default_factory=dict)
    dropout: dict[str, Share] | None = None
    denoiser: Denoiser = Field(default_factory=Denoiser)
    diffusion: Diffusion = Field(default_factory=Diffusion)
    train: Train = Field(default_factory=lambda: Train.model_construct(steps=0))  # 0 can only be left out
    sample: Sample = Field(default_factory=Sample)
    evaluate: list[Metric] = Field(default_factory=list)
    runtime: Runtime = Field(default_factory=Runtime)

    _document: Document = PrivateAttr(default_factory=lambda: Document({}))
    _source: Path | None = PrivateAttr(default=None)

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
        if recipe is not None:
            recipe._source = source
            problems += cross_checks(recipe)
        if registry is not None:
            problems += components.problems(document.value, registry)
        if problems or recipe is None:
            raise failure(problems, document)
        return recipe if registry is None else components.completed(recipe, registry)

    @model_validator(mode="after")
    def _without_a_denoiser(self) -> Self:
        if self.alone and "denoiser" not in self.model_fields_set:
            # Nothing of it is trained, saved or shown; the model is put together all the same.
            self.denoiser = Denoiser(channels=8, multipliers=(1,), blocks=1, attention=())
        return self

    @property
    def alone(self) -> bool:
        """Whether the autoencoder alone is trained and judged: a recipe without `train`."""
        return self.train.steps == 0

    @property
    def source(self) -> Path | None:
        """The file it was read from."""
        return self._source

    @property
    def document(self) -> Document:
        """What was written, after `extends` and overrides, with the place of every key."""
        return self._document

    def where(self, *path: str | int) -> str:
        """The place of a key, or of the nearest mapping around it: `recipe.yaml:3:5`."""
        return place(path, self._document)

    def error(self, message: str, *path: str | int, hint: str | None = None) -> RecipeError:
        """An error about one key, with its place; for checks that need more than the recipe."""
        key = ".".join(str(step) for step in path)
        return RecipeError(f"{key}: {message}", hint=hint, where=self.where(*path))

    def validate_components(self, registry: Registry) -> Recipe:
        """The recipe with the options of its components validated and their defaults written out. Imports the components.

        Raises RecipeError or PluginError listing every problem.
        """
        return type(self).parse(self._document, source=self._source, registry=registry)

    def require_components(self, registry: Registry) -> None:
        """Check that everything the recipe names is registered, importing nothing. Raises PluginError listing all that is not."""
        if problems := components.unknown(self._document.value, registry):
            raise failure(problems, self._document)

    def updated(self, changes: Mapping[str, Any]) -> Recipe:
        """A recipe with values replaced: `updated({"conditioners.class.classes": [...]})`. Validated again; places are kept."""
        value = self.resolved(redact=False)
        for key, change in changes.items():
            *parents, last = key.split(".")
            inner = value
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = change
        return type(self).parse(Document(value, self._document.marks), source=self._source)

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
        return dump.redacted(value) if redact else value

    def to_yaml(self, *, redact: bool = True) -> str:
        """`resolved` as YAML; reading it gives an equal recipe."""
        return dump.to_yaml(self.resolved(redact=redact))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of recipe files, for editors."""
        schema = cls.model_json_schema(by_alias=True)
        properties = schema["properties"]
        properties["extends"] = {"type": "string", "description": "A recipe to build on: a file or a bundled name."}
        properties["evaluate"]["items"] = {"anyOf": [{"type": "string"}, properties["evaluate"]["items"]]}
        schema["$defs"]["Slot"]["required"] = []
        schema["required"] = []  # a recipe that extends another one may leave everything to it
        for section in (Data, Slot, Sample, Metric):
            schema["$defs"][section.__name__]["additionalProperties"] = True
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return schema

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; where it was written does not count."""
        return isinstance(other, Recipe) and self.resolved(redact=False) == other.resolved(redact=False)


def normalised(raw: Any) -> Any:
    """The short forms written out: a slot's type, an empty slot, a metric or a loss given by its name."""
    if not isinstance(raw, dict):
        return raw
    raw = dict(raw)
    if isinstance(init := raw.get("init"), dict) and isinstance(init.get("from"), str):
        raw["autoencoder"] = _started(raw.get("autoencoder", {}), init["from"])
    if isinstance(slots := raw.get("conditioners"), dict):
        raw["conditioners"] = {slot: _slot(slot, value) for slot, value in slots.items()}
    if isinstance(metrics := raw.get("evaluate"), list):
        raw["evaluate"] = [{"type": metric} if isinstance(metric, str) else metric for metric in metrics]
    if isinstance(diffusion := raw.get("diffusion"), dict):
        named = {key: {"type": diffusion[key]} for key in CHOICES if isinstance(diffusion.get(key), str)}
        raw["diffusion"] = {**diffusion, **named}
    if isinstance(sample := raw.get("sample"), dict) and isinstance(sample.get("guidance_options"), str):
        raw["sample"] = {**sample, "guidance_options": {"type": sample["guidance_options"]}}
    return raw


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
    """The keys that the mapping at `path` may have; of a section with several types, those of the type that `raw` names."""
    annotation: Any = Recipe
    value = raw
    for step in path:
        model = _model(annotation, value)
        if model is None:
            origin = get_origin(annotation)
            annotation = get_args(annotation)[-1 if origin is dict else 0] if origin in (dict, list) else None
        else:
            annotation = next((hint for key, hint in _hints(model) if key == step), None)
        value = _child(value, step)
    model = _model(annotation, value)
    extra = ("extends",) if model is Recipe else ()
    return () if model is None else (*model.keys(), *extra)


def _child(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    return value[step] if isinstance(value, list) and isinstance(step, int) else None


def _hints(model: type[Section]) -> list[tuple[str, Any]]:
    return [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]


def _model(annotation: Any, value: Any) -> type[Section] | None:
    """The section that an annotation stands for: itself, the one beside None, or the one whose tag is the value's type."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    tagged: dict[Any, type[Section]] = {_tag(arm): arm.__origin__ for arm in get_args(annotation) if _tag(arm)}
    if tagged:
        kind = value.get("type") if isinstance(value, dict) else None
        return tagged.get(kind, next(iter(tagged.values())))
    arms = [arm for arm in get_args(annotation) if isinstance(arm, type) and issubclass(arm, Section)]
    return arms[0] if len(arms) == 1 and get_origin(annotation) not in (dict, list) else None


def _tag(annotation: Any) -> str | None:
    return next((part.tag for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Tag)), None)
