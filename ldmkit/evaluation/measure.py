"""`evaluate`: a trained model and its data in, `Results` out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from torch import nn

from ldmkit.errors import LdmkitError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure, Picture, Results


def evaluate(
    evaluation: Evaluation,
    metrics: Mapping[str, Metric] | Sequence[tuple[str, Metric]],
    *,
    pictures: Sequence[Picture] = (),
) -> Results:
    """The figures of `metrics` (name -> metric, in the order of the recipe).

    A metric that cannot be computed (`LdmkitError`: weights that are not here, pictures too small) is named in
    `Results.unavailable` with its reason; the others go on. What `evaluation.check` raises ends it.
    """
    started = time.monotonic()
    training = evaluation.model.training
    evaluation.model.eval()
    figures: list[Figure] = []
    unavailable: dict[str, str] = {}
    try:
        for name, metric in dict(metrics).items():
            if evaluation.alone and metric.asks != "autoencoder":
                unavailable[name] = "needs a diffusion model, and this run has an autoencoder alone"
                continue
            try:
                found = metric.compute(evaluation)
            except LdmkitError as error:
                unavailable[name] = str(error)
                continue
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if "memory" in str(error).lower():
                    raise
                # A metric's own fault, perhaps a plugin's, is no reason to lose the others after a long training.
                kind = type(metric)
                unavailable[name] = f"{kind.__module__}.{kind.__qualname__} raised {type(error).__name__}: {error}"
                continue
            figures.extend(found)
            if not found:
                unavailable[name] = "does not apply to this model and its data"
    finally:
        evaluation.model.train(training)
    return Results(
        figures=tuple(figures),
        n=evaluation.n,
        seed=evaluation.seed,
        sources=evaluation.sources,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        sampling={} if evaluation.alone else sampling(evaluation),
        unavailable=unavailable,
        pictures=tuple(pictures),
        data=data_facts(evaluation),
        parts=tuple(parts(evaluation)),
        seconds=round(time.monotonic() - started, 1),
    )


def sampling(evaluation: Evaluation) -> dict[str, Any]:
    """How the pictures were sampled: sampler, steps, guidance, and the sampler's options."""
    given = {"sampler": evaluation.sampler, "steps": evaluation.steps, "guidance": evaluation.guidance}
    defaults = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **evaluation.model.sampling}
    used = {**defaults, **{k: v for k, v in given.items() if v is not None}, **(evaluation.options or {})}
    method = {k: v for k, v in (used.pop("guidance_options", None) or {}).items() if v}  # what is off is not said
    if method not in ({}, {"type": "plain"}):
        used["guidance_options"] = method
    return {k: v for k, v in used.items() if v is not None}


def parts(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What the model is made of: name, kind, output, parameters."""
    model = evaluation.model
    latent = "x".join(map(str, model.latent_shape(model.size)))
    kinds = {
        slot: model.slots[slot].type if slot in model.slots else type(c).__name__
        for slot, c in model.conditioners.items()
    }
    rows = [_part("autoencoder", model.autoencoder, str(model.autoencoder.config.get("type", "")), latent)]
    for slot, conditioner in model.conditioners.items():
        ports = {port: width for port, width in vars(conditioner.emits).items() if width and port != "length"}
        rows.append(
            _part(slot, conditioner, kinds[slot], ", ".join(f"{port} {width}" for port, width in ports.items()))
        )
    return (
        rows if evaluation.alone else [*rows, _part("denoiser", model.denoiser, type(model.denoiser).__name__, latent)]
    )


def _part(name: str, module: nn.Module, kind: str, output: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, "output": output, "parameters": sum(p.numel() for p in module.parameters())}


def data_facts(evaluation: Evaluation) -> dict[str, Any]:
    """What a reader has to know of the data: where they come from, under which licence, how many were used."""
    source = evaluation.train.source
    info = source.info()
    return {
        "attribution": source.attribution(),
        "licence": info.licence,
        "notes": info.notes,
        "fields": {name: field.kind for name, field in info.fields.items()},
        "training pictures": info.count,
        "held-out pictures": evaluation.validation.source.info().count,
        "compared": evaluation.distinct,
        "examples": {slot: _example(evaluation, slot) for slot in evaluation.model.conditioners},
    }


def _example(evaluation: Evaluation, slot: str) -> str:
    """A value a person could give for a slot on the command line: a word or a number of the data, else a file's name."""
    names = evaluation.model.conditioners.fields[slot].values()
    name = next(iter(names), "image")
    field = evaluation.train.source.info().fields.get(name)
    kind = field.kind if field else "other"
    if kind == "label" and field is not None and field.names:
        return field.names[0]
    value = evaluation.samples[0].get(name) if kind in ("label", "text", "number") else None
    return f"{name}.png" if value is None else str(value)
