"""One sampling, put together: settings and the model's defaults, the guided denoiser, what is known of the picture."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from ldmkit import guidance as guiding
from ldmkit.conditioning import Batch, Canvas, Conditioning, DroppedSlots, KeptSlots, Tensors
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.diffusion import X0Predictor
from ldmkit.errors import PluginError, UsageError
from ldmkit.guidance import Guidance, Likelihood, Method
from ldmkit.latent_diffusion import autoguidance_model, finite, sampler_options
from ldmkit.latent_diffusion.arguments import whole
from ldmkit.latent_diffusion.feature_cache import FeatureCache
from ldmkit.messages import did_you_mean
from ldmkit.samplers import Callback, Clip, Grid, Sampler, Spacing, clipped, img2img, make_grid, masked, repaint

if TYPE_CHECKING:
    from ldmkit.latent_diffusion.model import LatentDiffusion

Negative = Mapping[str, Any] | Sequence[Mapping[str, Any]]
# The keys of a model's `sampling` that are not its sampler's own options.
OWN = ("sampler", "steps", "guidance", "guidance_options", "negative", "clip", "cache")
REPAINT = "repaint"  # a sampler that no recipe can name: it needs a picture and a mask
DDIM_STEPS = {"ddim": "eta", "euler": "s_churn"}  # samplers whose step CFG++ is made for, while this option is 0
STRENGTH = 0.75  # of img2img, where nothing is said


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How latents are sampled; see `LatentDiffusion.sample`. What is None comes from the model's own defaults."""

    sampler: str | None = None
    steps: int | None = None
    guidance: Guidance | None = None
    guidance_options: str | Mapping[str, Any] | None = None
    negative: Negative | None = None
    clip: Clip = None
    cache: FeatureCache | Mapping[str, Any] | int | None = None
    likelihood: Likelihood | None = None
    known: Tensor | None = None  # scaled latents (b, c, h, w) of the picture to start from
    strength: float | None = None
    keep: Tensor | None = None  # (b or 1, 1, h, w) on the latent grid, in [0, 1]; 1 keeps, 0 paints anew
    callback: Callback | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def completed(self, model: LatentDiffusion) -> Settings:
        """With the model's `sampling` for what is None, and its options checked. Raises UsageError for what does not fit."""
        saved = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **model.sampling}
        kept = {key: value for key, value in saved.items() if key not in OWN}
        name, before = self.sampler or str(saved["sampler"]), str(saved["sampler"])
        options = sampler_options.completed(name, before, lambda which: find(model, which), self.options, kept)
        chosen = {key: saved.get(key) for key in OWN if getattr(self, key) is None}
        steps = sampler_options.listed_steps(options) or saved["steps"] if self.steps is None else self.steps
        chosen["steps"] = whole("steps", steps)
        return replace(self, **chosen, options=options)


def sample(
    model: LatentDiffusion,
    batch: Batch,
    noise: Tensor,
    size: tuple[int, int],
    settings: Settings,
    generators: Sequence[Generator],
) -> Tensor:
    """Scaled latents (b, c, h, w) from `noise` (b, c, h, w), on the model's device. `settings` are completed.

    Raises UsageError for settings that do not go together, PluginError for a sampler that answers another shape.
    """
    name, method, options = (
        str(settings.sampler),
        guiding.make_method(settings.guidance_options, model.guidance),
        settings.options,
    )
    sampler, schedule = find(model, name), model.diffusion.schedule
    steps = _levels(model, settings) if method.on_grid else steps_of(settings)
    given = denoiser(model, batch, size, settings, method, steps)
    if settings.likelihood is not None:
        given = settings.likelihood.guide(given, schedule, model.autoencoder.decode)
    if settings.keep is not None or name == REPAINT:
        known, keep = _known(settings, name)
        if name == REPAINT:
            options = {**options, "known": known, "mask": keep}
        else:
            given = masked(given, known, keep)
    given = clipped(given, settings.clip)
    counted = finite.Steps(settings.callback)
    asked: dict[str, Any] = {"generators": generators, "callback": counted, **options}
    cache = FeatureCache.of(settings.cache)
    caching = nullcontext() if cache is None else cache.applied(model.denoiser.blocks())
    with finite.explained(model, counted, steps_of(settings)), caching:
        if (strength := _strength(settings)) is None:
            latents: Any = sampler(given, noise, schedule, steps, **asked)
        else:
            assert settings.known is not None
            latents = img2img(sampler, given, settings.known, noise, schedule, steps, strength=strength, **asked)
    if not isinstance(latents, Tensor) or latents.shape != noise.shape:
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise PluginError(f"the sampler {name} gave {got}; expected latents of shape {tuple(noise.shape)}")
    return latents


def find(model: LatentDiffusion, name: str) -> Sampler:
    """The sampler `name`. Raises UsageError."""
    if name == REPAINT:
        return repaint
    if name not in model.samplers:
        there = ", ".join(sorted(model.samplers))
        guess = did_you_mean(name, [*model.samplers, REPAINT])
        raise UsageError(f"no sampler is called {name!r}{guess}", hint=f"there are {there}; and {REPAINT}, with a mask")
    return model.samplers[name]


def _levels(model: LatentDiffusion, settings: Settings) -> Grid:
    """The sampler's noise levels, for CFG++. Raises UsageError where its steps are not DDIM's."""
    name, options = str(settings.sampler), settings.options
    if name not in DDIM_STEPS or options.get(DDIM_STEPS[name], 0):
        allowed = " or ".join(f"{name} with {option} 0" for name, option in DDIM_STEPS.items())
        raise UsageError(f"CFG++ changes DDIM's step, and the sampler is {name}", hint=f"sample with {allowed}")
    spacing: Spacing = options.get("spacing", "trailing")
    return make_grid(model.diffusion.schedule, steps_of(settings), spacing, clean=options.get("clean", True))


def steps_of(settings: Settings) -> int:
    """The steps of completed settings."""
    assert settings.steps is not None
    return settings.steps


def _known(settings: Settings, name: str) -> tuple[Tensor, Tensor]:
    if settings.known is None or settings.keep is None:
        what = f"the sampler {name}" if name == REPAINT else "a mask"
        raise UsageError(f"{what} needs a picture and a mask that says what of it is kept")
    return settings.known, settings.keep


def _strength(settings: Settings) -> float | None:
    """How far back to noise the picture goes; None: all is noise at first, as where there is no picture."""
    if settings.known is None:
        if settings.strength is not None:
            raise UsageError(f"strength {settings.strength:g} is of a picture to start from, and none was given")
        return None
    return STRENGTH if settings.strength is None and settings.keep is None else settings.strength


# guidance


def denoiser(
    model: LatentDiffusion,
    batch: Batch,
    size: tuple[int, int],
    settings: Settings,
    method: Method | None = None,
    steps: int | Grid | None = None,
) -> X0Predictor:
    """(x_t, t) -> x_0, guided; each branch is encoded once. `steps`: the sampler's grid, for methods that are `on_grid`."""
    method = method or guiding.make_method(settings.guidance_options, model.guidance)
    canvas = model.canvas(size)
    present = frozenset(slot for slot in model.conditioners if bool(batch.present[slot].any()))
    _check_absent(model, present)
    negatives = _negatives(model, settings.negative, len(batch), size)
    if method.replaces_null and len(negatives) > 1:
        raise UsageError(
            f"{len(negatives)} negatives, and only one can stand in for the null",
            hint="guidance_options={'type': 'perp-neg'} takes several",
        )
    stand_in = negatives[0] if negatives and method.replaces_null else {}
    trained = _trained(model, frozenset(stand_in))
    guidance = 1.0 if settings.guidance is None else settings.guidance
    if stand_in and set(_weights(model, guidance, present, trained)) == {present}:
        logging.getLogger("ldmkit").warning(
            "the negative changes nothing: guidance %s looks at the conditions alone; give one above 1", guidance
        )

    @cache
    def read(kept: KeptSlots) -> Conditioning:
        return branch(model, batch, canvas, kept, stand_in)

    def network(noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return model.diffusion.to_x0(model.predict(noisy, timestep, conditioning), noisy, timestep)

    return method(
        guiding.Given(
            denoiser=network,
            schedule=model.diffusion.schedule,
            guidance=guidance,
            weights=lambda: _weights(model, guidance, present, trained),
            conditional=present,
            null=lambda: _null(model, present, trained),
            branch=read,
            negatives=lambda: [_against(model, batch, canvas, present, values) for values in negatives],
            levels=steps if isinstance(steps, Grid) else None,
            other=lambda which, weights: _other(
                model, batch, canvas, present, autoguidance_model.find(model, which, weights)
            ),
        )
    )


def branch(
    model: LatentDiffusion,
    batch: Batch,
    canvas: Canvas,
    kept: KeptSlots,
    negative: Mapping[str, Tensors] | None = None,
) -> Conditioning:
    """What the denoiser reads with the slots `kept`, the others null (or `negative`)."""
    rows = len(batch)
    moved = batch.to(model.device)
    dropped = {slot: torch.full((rows,), slot not in kept) for slot in model.conditioners}
    against = {slot: {k: v.to(model.device) for k, v in tensors.items()} for slot, tensors in (negative or {}).items()}
    result: Conditioning = model.conditioners(
        moved.prepared, moved.present, canvas, rows, dropped=dropped, negative=against, closely=True
    )
    return result


def _against(
    model: LatentDiffusion, batch: Batch, canvas: Canvas, present: KeptSlots, values: Mapping[str, Tensors]
) -> Conditioning:
    """The conditional branch with these prepared values in their slots, in every row."""
    kept = present | frozenset(values)
    _check_branches(model, [kept])
    there = {slot: torch.ones(len(batch), dtype=torch.bool) for slot in values}
    changed = replace(batch, prepared={**batch.prepared, **values}, present={**batch.present, **there})
    return branch(model, changed, canvas, kept)


def _trained(model: LatentDiffusion, replaced: DroppedSlots) -> frozenset[DroppedSlots]:
    """The subsets of slots that may be left out: those that training dropped, and with them any whose null a negative value
    stands in for, which training has seen as a value.
    """
    own = model.conditioners.dropout.trained
    parts: list[DroppedSlots] = [frozenset()]
    for slot in replaced:
        parts += [part | {slot} for part in parts]
    return frozenset(subset | part for subset in own for part in parts)


def _weights(
    model: LatentDiffusion, guidance: Guidance, present: KeptSlots, trained: frozenset[DroppedSlots]
) -> dict[KeptSlots, float]:
    """Weights over the branches of the slots that are there; a slot without a value is null in every branch."""
    merged: dict[KeptSlots, float] = {}
    for kept, weight in guiding.parse(guidance, tuple(model.conditioners), trained).items():
        merged[kept & present] = merged.get(kept & present, 0.0) + weight
    merged = {kept: weight for kept, weight in merged.items() if weight}
    _check_branches(model, merged, trained)
    return merged


def _null(model: LatentDiffusion, present: KeptSlots, trained: frozenset[DroppedSlots]) -> KeptSlots:
    """The branch that guidance of one number goes away from."""
    (kept,) = guiding.parse(0.0, tuple(model.conditioners), trained)
    _check_branches(model, [kept & present], trained)
    return kept & present


def _negatives(
    model: LatentDiffusion, negative: Negative | None, rows: int, size: tuple[int, int]
) -> list[dict[str, Tensors]]:
    """Each negative's values, prepared and collated for `rows` rows."""
    found = []
    for values in [negative] if isinstance(negative, Mapping) else negative or ():
        if not values:
            continue
        prepared, _ = user_values.prepare(model.conditioners, [values] * rows, size, size)
        collated = {}
        for slot in values:
            tensors = [own for row in prepared if (own := row[slot]) is not None]
            if tensors:
                collated[slot] = model.conditioners[slot].collate(tensors)
        found.append(collated)
    return found


def _check_absent(model: LatentDiffusion, present: KeptSlots) -> None:
    if names := _never_absent(model, present):
        raise UsageError(
            f"no value was given for {names}, and training never showed the model a picture without",
            hint=f"give one, or train with `dropout: {{{names}: 0.1}}`",
        )


def _check_branches(
    model: LatentDiffusion, branches: Iterable[KeptSlots], trained: frozenset[DroppedSlots] | None = None
) -> None:
    """What guidance leaves out and what was not given, together, were dropped in training."""
    for kept in branches:
        if names := _never_absent(model, kept, trained):
            raise UsageError(
                f"with the values given, this guidance needs a picture without {names}, which training never showed",
                hint=f"give more values, turn guidance off (1), or train with `dropout: {{{names}: 0.1}}`",
            )


def _never_absent(model: LatentDiffusion, kept: KeptSlots, trained: frozenset[DroppedSlots] | None = None) -> str:
    """The slots outside `kept`, joined by +, where training never dropped just these; else nothing."""
    absent = frozenset(model.conditioners) - kept
    known = not absent or absent in (trained or model.conditioners.dropout.trained)
    return "" if known else "+".join(slot for slot in model.conditioners if slot in absent)


def _other(
    model: LatentDiffusion, batch: Batch, canvas: Canvas, present: KeptSlots, other: LatentDiffusion
) -> X0Predictor:
    """The prediction of another model for the same conditions: what autoguidance goes away from."""
    _check_absent(other, present)
    conditioning = branch(other.to(model.device).eval(), batch, canvas, present)
    return lambda x, t: other.diffusion.to_x0(other.predict(x, t, conditioning), x, t)
