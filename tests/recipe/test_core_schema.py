"""The torch-free copy of the core's options is what the constructors say, and what a recipe says reaches them."""

from __future__ import annotations

import json
import typing
from dataclasses import fields

import pytest

from ldmkit import plugins
from ldmkit.autoencoder.config import NetworkConfig, NetworkOptions
from ldmkit.diffusion import DISTANCES, TIMESTEP_SAMPLINGS, WEIGHTINGS
from ldmkit.guidance import METHODS
from ldmkit.plugins import defaults
from ldmkit.plugins.ranges import Count
from ldmkit.recipe import generate
from ldmkit.recipe.core_schema import COMPONENTS
from ldmkit.schedules import SCHEDULES
from ldmkit.training.optimizers import MAKERS


def test_the_copy_is_not_stale():
    assert generate.PLACE.read_text("utf-8") == generate.text(), "run `python -m ldmkit.recipe.generate`"


def test_a_constructor_that_changes_makes_the_copy_stale(monkeypatch):
    monkeypatch.setitem(generate.SECTIONS, "RuntimeKeys", ("ldmkit.training.runtime:resolve", ("threads",)))
    assert generate.PLACE.read_text("utf-8") != generate.text()


REGISTERED = plugins.load(only=()).catalogs
CORE = [(kind, name) for kind, named in COMPONENTS.items() for name in named if kind in REGISTERED]


@pytest.mark.parametrize(("kind", "name"), CORE, ids=lambda value: value)
def test_defaults_are_the_constructors(kind, name):
    """Both ways of reading an option give the same: what is generated, and what a plugin's component would be read by."""
    options, copy = REGISTERED[kind].options(name), COMPONENTS[kind][name]
    required = set(options.required())
    assert {key for key, field in copy.model_fields.items() if field.is_required()} == required
    ours = json.loads(options.model_construct().model_dump_json(by_alias=True, warnings=False))
    theirs = json.loads(copy.model_construct().model_dump_json(by_alias=True, warnings=False))
    assert theirs == ours


def test_what_is_registered_is_what_python_knows_by_name():
    """The tables for Python's use have the names that recipes have."""
    assert defaults.SCHEDULES.keys() == SCHEDULES.keys()
    assert defaults.GUIDANCE.keys() == METHODS.keys()
    assert defaults.OPTIMIZERS.keys() - MAKERS.keys() == {"muon"}  # which Python imports
    registry = plugins.load(only=())
    assert {name: registry.schedules.load(name) for name in SCHEDULES} == SCHEDULES
    assert {name: registry.guidance.load(name) for name in METHODS} == METHODS
    assert {name: registry.optimizers.load(name) for name in MAKERS} == MAKERS
    tables = {"distances": DISTANCES, "weightings": WEIGHTINGS, "timestep_samplings": TIMESTEP_SAMPLINGS}
    assert {kind: list(COMPONENTS[kind]) for kind in tables} == {kind: list(table) for kind, table in tables.items()}


def test_the_keywords_that_autoencoders_pass_on_are_the_configurations():
    assert set(typing.get_type_hints(NetworkOptions)) == {field.name for field in fields(NetworkConfig)}


def test_help_comes_from_the_docstring():
    field = COMPONENTS["autoencoders"]["vq"].model_fields["codebook"]
    assert field.description == "number of codes."
    shown = plugins.load(only=()).autoencoders.options("vq").model_fields["option_latent_channels"].description
    assert shown == "width of the latent."  # of the dataclass that the constructor passes on


def test_an_annotation_that_no_recipe_can_hold_is_refused():
    def broken(*, table: set[Count] = frozenset()) -> None: ...

    broken.__annotations__["table"] = set[int]
    with pytest.raises(TypeError, match="which no recipe can hold"):
        generate._Writer().write("Broken", broken, [("table", set[int], ...)])
