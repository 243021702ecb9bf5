"""A registered conditioner or denoiser, examined against its contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmkit.conditioning import Conditioner
    from ldmkit.data import Source
    from ldmkit.denoiser import Denoiser
    from ldmkit.plugins import Registry
    from ldmkit.plugins.catalog import Catalog

SIZE = 64  # pixels of the samples
SAMPLES = 4


def examine(
    registry: Registry,
    name: str,
    options: Mapping[str, Any],
    data: Mapping[str, Any],
    fields: Mapping[str, str],
) -> str | None:
    """What is wrong with the conditioner or the denoiser `name`, in words, or None.

    `options` are given to its constructor, after a conditioner's `fit` has seen the data; `data` is the type of a data source and
    its options, as in a recipe; `fields` maps a conditioner's fields to those of the data. Raises UsageError where the
    data source cannot be made from its options, and DataError where the data lacks a field.
    """
    if name in registry.denoisers and name not in registry.conditioners:
        return _denoiser(registry.denoisers.load(name), options)
    return _conditioner(registry, name, options, data, fields)


def _denoiser(kind: type[Denoiser], options: Mapping[str, Any]) -> str | None:
    from ldmkit.testing import ContractError, check_denoiser

    try:
        check_denoiser(kind, options)
    except ContractError as error:
        return str(error)
    return None


def _conditioner(
    registry: Registry, name: str, options: Mapping[str, Any], data: Mapping[str, Any], fields: Mapping[str, str]
) -> str | None:
    from ldmkit.conditioning import fitted
    from ldmkit.conditioning.checks import called
    from ldmkit.data import Dataset
    from ldmkit.testing import ContractError, check_conditioner

    kind = registry.conditioners.load(name)
    source = source_of(registry.data_sources, data).split("train")
    info = source.info().fields
    known = {field: info[fields.get(field, field)] for field in kind.reads if fields.get(field, field) in info}
    aligned = frozenset(fields.get(field, field) for field in kind.aligned)
    dataset = Dataset(source, size=SIZE, aligned=aligned)
    samples = [
        _renamed(dataset.sample(index), kind.reads, fields) for index in range(min(SAMPLES, dataset.count or SAMPLES))
    ]
    who = f"the conditioner '{name}' of {registry.conditioners.entry(name).origin}"
    learned = called(who, "fit", lambda: fitted(kind, dict(options), _first(source, kind.reads, fields), known))
    conditioner = made(registry.conditioners, kind, {**learned, **options})
    conditioner.known_fields = known
    try:
        check_conditioner(conditioner, samples[0], others=samples[1:])
    except ContractError as error:
        return str(error)
    return None


def source_of(catalog: Catalog, data: Mapping[str, Any]) -> Source:
    """The data source of this `type` with these options; keys that are none of its are left out.

    Raises UsageError for options it does not take."""
    from pydantic import ValidationError

    from ldmkit.errors import UsageError
    from ldmkit.messages import problems_of

    kind = catalog.load(data["type"])
    model = catalog.options_of(kind)
    given = {key: value for key, value in data.items() if key in model.names()}
    try:
        made: Source = kind(**model.read(given).arguments())
    except ValidationError as error:
        wrong = problems_of(error, given, lambda path: () if path else model.names())
        raise UsageError(
            f"the data source {data['type']} cannot be made: " + "; ".join(f"{p.key}: {p.text}" for p in wrong),
            hint="give what it needs, for example --set data.path=DIR, or a recipe: --recipe FILE",
        ) from error
    return made


def made(catalog: Catalog, kind: type[Conditioner], options: Mapping[str, Any]) -> Conditioner:
    """A conditioner with these options, in the latent space of the contract kit.

    Raises UsageError for options it does not take, and PluginError where its constructor fails.
    """
    from pydantic import ValidationError

    from ldmkit.conditioning.checks import called
    from ldmkit.errors import UsageError
    from ldmkit.messages import problems_of
    from ldmkit.plugins.options import fill
    from ldmkit.testing import LATENT

    model = catalog.options_of(kind)
    try:
        arguments = model.read(options).arguments()
    except ValidationError as error:
        wrong = problems_of(error, dict(options), lambda path: () if path else model.names())
        raise UsageError(
            f"{kind.__name__} does not take these options: " + "; ".join(f"{p.key}: {p.text}" for p in wrong),
            hint=f"its options are {', '.join(model.names())}",
        ) from error
    return called(kind.__name__, "__init__", lambda: kind(**arguments, **fill(kind, LatentSpec=LATENT)))


def _first(source: Any, reads: tuple[str, ...], fields: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for index in range(min(64, source.info().count or 64)):
        yield _renamed(source[index], reads, fields)


def _renamed(sample: Mapping[str, Any], reads: tuple[str, ...], fields: Mapping[str, str]) -> dict[str, Any]:
    """A sample with the fields that are read, under the names that the conditioner knows."""
    from ldmkit.errors import DataError

    wanted = {field: fields.get(field, field) for field in ("image", *reads)}
    if missing := [name for name in wanted.values() if name not in sample]:
        raise DataError(
            f"the data has no field {', '.join(missing)}; it has {', '.join(sample)}",
            hint="choose other data (--data), or say which field to read: --field label=class",
        )
    return {field: sample[name] for field, name in wanted.items()}
