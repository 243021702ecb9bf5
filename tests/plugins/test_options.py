"""The constructor is the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from ldmkit.errors import PluginError
from ldmkit.plugins import options


class LatentSpec:
    """Known by its name."""


class Depth:
    def __init__(
        self,
        *,
        latent: LatentSpec,
        far: float = 10.0,
        features: int,
        sizes: tuple[int, ...] = (1, 2),
        mode: Literal["near", "far"] = "near",
        path: Path | None = None,
        schema: bool = True,
    ) -> None:
        self.given = locals()


def test_parameters_become_options_in_their_order_and_the_latent_space_does_not():
    model = options.model(Depth)
    assert model.names() == ("far", "features", "sizes", "mode", "path", "schema")
    assert model.required() == ("features",)
    assert options.derived(Depth) == ("latent",)


def test_values_of_a_recipe_become_arguments_of_the_right_types():
    arguments = options.model(Depth).read({"features": 3, "far": 2, "sizes": [4], "path": "a/b"}).arguments()
    assert arguments == {
        "far": 2.0, "features": 3, "sizes": (4,), "mode": "near", "path": Path("a/b"), "schema": True,
    }  # fmt: skip
    assert Depth(latent=LatentSpec(), **arguments).given["features"] == 3


def test_plain_values_read_back_equal():
    model = options.model(Depth)
    first = model.read({"features": 3, "path": "x", "sizes": [1]})
    assert model.read(first.plain()).plain() == first.plain() == {
        "far": 10.0, "features": 3, "sizes": [1], "mode": "near", "path": "x", "schema": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        {"features": "3"},
        {"features": True},
        {"features": 3.5},
        {"features": 3, "far": float("nan")},
        {"features": 3, "far": float("inf")},
        {"features": 3, "mode": "neer"},
        {"features": 3, "fra": 1.0},
        {"features": 3, "latent": 1},
        {"features": 3, "schema": "yes"},
        {},
    ],
)
def test_nothing_is_converted_and_nothing_unknown_passes(bad):
    with pytest.raises(ValidationError):
        options.model(Depth).read(bad)


def test_functions_skip_what_is_no_option():
    def sampler(denoiser, noise, *, eta: float = 0.0, generators: list | None = None): ...

    assert options.model(sampler, skipped={"generators"}).names() == ("eta",)


def _positional(self, far: float = 1.0): ...
def _unannotated(self, *, far=1.0): ...
def _rest(self, *, far: float = 1.0, **rest: int): ...
def _unknown(self, *, far: Missing): ...  # noqa: F821
def _object(self, *, far: pytest.MonkeyPatch): ...
def _reserved(self, *, lr: float = 1.0): ...


@pytest.mark.parametrize(
    ("constructor", "message"),
    [
        (_positional, "the parameter `far` is not keyword-only"),
        (_unannotated, "the option `far` has no annotation"),
        (_rest, r"takes `\*\*rest`"),
        (_unknown, "the annotation `Missing` of `far` cannot be evaluated"),
        (_object, "an option's annotation is nothing a recipe can hold"),
        (_reserved, "has an option `lr`, a name that recipes use themselves"),
    ],
)
def test_constructors_that_are_no_schema_are_refused(constructor, message):
    kind = type("Depth", (), {"__init__": constructor})
    with pytest.raises(PluginError, match=message):
        options.model(kind, reserved={"lr"})


@pytest.mark.parametrize(
    "annotation", [LatentSpec, LatentSpec | None, "LatentSpec", "ldmkit.LatentSpec", "LatentSpec | None"]
)
def test_the_latent_space_is_known_by_name(annotation):
    assert options.is_derived(annotation)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(int, "int"), (int | None, "int | null"), (Literal["a", "b"], '"a" | "b"'), (tuple[int, ...], "tuple[int, ...]")],
)
def test_types_are_described_for_people(annotation, text):
    assert options.describe(annotation) == text
