"""What a conditioner says about itself: fields, options, ports."""

from __future__ import annotations

import json
from typing import Any

from ldmkit.conditioning import RESERVED, Conditioner, ForeignStage, Ports, checks, fitted
from ldmkit.errors import LdmkitError, PluginError
from ldmkit.fields import NO_FIELDS
from ldmkit.plugins import options
from ldmkit.testing.subject import Subject, said


def check_fields(subject: Subject) -> None:
    """`reads` and `aligned` are tuples of field names, the second part of the first."""
    kind = type(subject.conditioner)
    reads = getattr(kind, "reads", None)
    if not isinstance(reads, tuple) or not reads or not all(isinstance(name, str) for name in reads):
        subject.fail(
            f"reads is {reads!r}", 'Name the fields of a sample it needs, as a class attribute: reads = ("depth",)'
        )
    if not isinstance(kind.aligned, tuple) or not set(kind.aligned) <= set(reads):
        subject.fail(f"aligned is {kind.aligned!r}, and reads is {reads!r}", "aligned is a tuple of fields in `reads`")
    for sample in subject.samples:
        if missing := [name for name in reads if name not in sample]:
            subject.fail(
                f"it reads {', '.join(missing)}, and a sample given to the check has {', '.join(sample) or 'no field'}",
                "Give samples with every field in `reads`",
            )
    for name in subject.conditioner.frozen:
        if name not in dict(subject.conditioner.named_modules()):
            subject.fail(f"frozen names {name!r}, which is no submodule", "Name submodules by their attribute")


def check_options(subject: Subject) -> None:
    """The constructor is a schema: keyword-only, annotated, no name that a slot uses itself."""
    try:
        options.model(type(subject.conditioner), reserved=RESERVED)
    except PluginError as error:
        subject.fail(error.message, error.hint or "See the constructor's rules in ldmkit.Conditioner")


def check_ports(subject: Subject) -> None:
    """`emits` is set in the constructor and names at least one port."""
    emits = vars(subject.conditioner).get("emits")
    if not isinstance(emits, Ports):
        subject.fail(
            f"emits is {emits!r}", "Set it in __init__: self.emits = Ports(tokens=width) (or vector, or concat)"
        )
    if (
        min(emits.tokens, emits.vector, emits.concat, emits.length) < 0
        or not emits.tokens + emits.vector + emits.concat
    ):
        subject.fail(f"emits is {emits}", "At least one port is wider than 0, and none is negative")


def check_state(subject: Subject) -> None:
    """Its state is tensors of known shapes, which is what a checkpoint holds."""
    try:
        checks.check_state("it", subject.conditioner)
    except PluginError as error:
        subject.fail(error.message, error.hint or "Register tensors as buffers")


def check_fit(subject: Subject) -> None:
    """What `fit` learns is JSON and made of options."""
    kind = type(subject.conditioner)
    given = recorded_options(subject.conditioner) or {}
    try:
        learned = fitted(kind, given, subject.samples, NO_FIELDS)
    except LdmkitError:
        return  # these samples cannot teach it, and it says so
    except Exception as error:
        subject.fail(
            f"fit raised {said(error)}",
            "Where nothing can be learned from the samples it raises a ValueError",
        )
    known = option_names(kind)
    if unknown := sorted(set(learned) - known):
        subject.fail(
            f"fit returned {', '.join(unknown)}, which the constructor does not take",
            f"Its options are {', '.join(sorted(known))}",
        )
    try:
        json.dumps(dict(learned))
    except (TypeError, ValueError) as error:
        subject.fail(f"what fit returned is no JSON: {said(error)}", "Return numbers, text, lists and mappings")


def check_foreign(subject: Subject) -> None:
    """A foreign stage that nobody knows is not claimed."""
    stage = ForeignStage(target="nobody.knows.This", params={}, key="nothing", port="tokens", channels=0, tensors={})
    try:
        claimed = type(subject.conditioner).from_foreign(stage)
    except Exception as error:
        subject.fail(
            f"from_foreign raised {said(error)} on an unknown stage", "Return None for a stage that is not yours"
        )
    if claimed is not None:
        subject.fail("from_foreign claims a stage it cannot know", "Return None for a stage that is not yours")


def option_names(kind: type[Conditioner]) -> set[str]:
    """The options of a conditioner, those that `build` fills not among them."""
    return set(options.model(kind, reserved=RESERVED).names())


def recorded_options(conditioner: Conditioner) -> dict[str, Any] | None:
    """The options it was made with: as the core records them, else as it keeps them itself; None where that tells not all."""
    kept = vars(conditioner)
    recorded = kept.get("options")
    if isinstance(recorded, dict):
        return dict(recorded)
    schema = options.model(type(conditioner), reserved=RESERVED)
    try:
        return schema.read({name: kept[name] for name in schema.names()}).plain()
    except (KeyError, TypeError, ValueError):
        return None


def derived_arguments(conditioner: Conditioner) -> dict[str, Any]:
    """Parameters annotated `LatentSpec`, filled with the kit's latent space as `build` fills them with the model's."""
    from ldmkit.testing.subject import LATENT

    return dict.fromkeys(options.derived(type(conditioner)), LATENT)
