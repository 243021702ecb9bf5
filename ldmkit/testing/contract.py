"""`check_conditioner`: the contract of a conditioner, as a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ldmkit.conditioning import Conditioner
from ldmkit.testing import answers, behaviour, declaration, persistence, preparation
from ldmkit.testing.subject import ContractError, Subject, duplicate, global_seed, said

# In this order: each may rely on those before it.
CHECKS: tuple[Callable[[Subject], None], ...] = (
    declaration.check_fields,
    declaration.check_options,
    declaration.check_ports,
    declaration.check_state,
    declaration.check_fit,
    declaration.check_foreign,
    preparation.check_missing_field,
    preparation.check_prepare,
    preparation.check_randomness,
    preparation.check_worker_copy,
    preparation.check_user_value,
    answers.check_encode,
    answers.check_null,
    answers.check_mask,
    answers.check_empty,
    behaviour.check_deterministic,
    behaviour.check_side_effects,
    behaviour.check_rows,
    behaviour.check_gradients,
    behaviour.check_people,
    persistence.check_round_trip,
    persistence.check_dtype,
    persistence.check_meta,
    persistence.check_accelerator,
)


def check_conditioner(
    conditioner: Conditioner,
    sample: Mapping[str, Any],
    *,
    value: Any = None,
    others: Sequence[Mapping[str, Any]] = (),
    sizes: Sequence[tuple[int, int]] = ((64, 64), (96, 160)),
) -> None:
    """Raises `ContractError` naming the first thing that `conditioner` does wrong and what to write instead.

    Args:
        conditioner: fresh or trained; a copy of it is examined, so it stays as it is.
        sample: a mapping with the fields it `reads`, as a data set gives them (an image is float (c, h, w) in [-1, 1]).
        value: what a person would give for one image, for `from_user`; None: `from_user` is not tried.
        others: more samples, as unlike as they come: of other lengths, sizes and contents. Whether a row depends on its
            batch shows best between unlike samples.
        sizes: canvases (h, w) in pixels, multiples of 8, at least two of different shape; the latent grid is 8 times smaller
            with 4 channels (`ldmkit.testing.LATENT`, for a constructor that wants a `LatentSpec`).

    What is checked: the declaration (fields, options, ports); `prepare`, with the error for a missing field, its randomness,
    and the copy without weights that data workers get; `from_user`; outputs and nulls on every canvas; masks; empty input;
    determinism; independence of rows; gradients; previews, sizes and fidelity; options and weights saved and loaded;
    bfloat16, meta and, where there is one, an accelerator.
    """
    if not isinstance(conditioner, Conditioner):
        raise ContractError(
            f"{type(conditioner).__name__} is no ldmkit.Conditioner\n  Subclass it, and pass an instance"
        )
    try:
        twin = duplicate(conditioner)
    except Exception as error:
        raise ContractError(
            f"{type(conditioner).__name__}: it cannot be copied: {said(error)}\n"
            "  `frozen` names submodules; other attributes are plain values (no open files, locks, lambdas or modules)"
        ) from error
    subject = Subject(twin, sample, value, others, sizes)
    with torch.no_grad(), global_seed(0):
        for check in CHECKS:
            check(subject)
