"""A recipe's `data` section -> the samples to train on, and those held out."""

from __future__ import annotations

import inspect
from functools import partial

from ldmkit import plugins, random
from ldmkit.data import Dataset, Jitter, Source
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe


def datasets(
    recipe: Recipe, registry: Registry | None = None, *, source: Source | None = None
) -> tuple[Dataset, Dataset]:
    """The training data and the held-out data of a recipe, cut as its `data` section says.

    Args:
        source: the recipe's data source, where it was made before.
    """
    registry = registry or plugins.load()
    recipe = recipe.validate_components(registry)
    source = source or source_of(recipe, registry)
    data = recipe.data
    aligned = frozenset(
        slot.fields_.get(name, name)
        for slot in recipe.conditioners.values()
        for name in registry.conditioners.load(slot.type).aligned
    )
    cut = partial(
        Dataset,
        size=data.shape,
        channels=data.channels,
        crop=data.crop,
        zoom=data.zoom,
        portion=data.portion,
        resample=data.resample,
        aligned=aligned,
    )
    train = cut(
        source.split("train"),
        flip=data.flip,
        views=data.views,
        jitter=None if data.jitter is None else Jitter(**data.jitter.model_dump()),
        buckets=data.buckets,
        seed=recipe.seed,
    )
    # Held-out pictures are seen in fixed views of one size and their own colours, never mirrored.
    seed = random.key(recipe.seed, "validation", 0)
    validation = cut(
        source.split("validation" if source.holds_out() else "train"), flip=False, views=data.views or 1, seed=seed
    )
    return train, validation


def source_of(recipe: Recipe, registry: Registry) -> Source:
    """The recipe's data source."""
    kind = registry.data_sources.load(recipe.data.type)
    options = registry.data_sources.options(recipe.data.type).read(recipe.data.options)
    # A source that draws its pictures takes the size they are wanted at; it is the section's own key, and no option.
    drawn = {"size": recipe.data.shape} if "size" in inspect.signature(kind).parameters else {}
    source: Source = kind(**options.arguments(), **drawn)
    return source
