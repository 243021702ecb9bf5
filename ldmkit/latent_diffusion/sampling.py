"""One sampling: settings and the model's defaults, the guided denoiser, what is known of the image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator, Tensor

from ldmkit import guidance as guiding
from ldmkit.conditioning import Batch, Conditioning, Tensors
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.diffusion import X0Predictor
from ldmkit.errors import PluginError, UsageError
from ldmkit.guidance import Guidance, Likelihood
from ldmkit.latent_diffusion import finite, sampler_options
from ldmkit.latent_diffusion.arguments import whole
from ldmkit.latent_diffusion.branches import Branches
from ldmkit.latent_diffusion.feature_cache import FeatureCache
from ldmkit.latent_diffusion.networks import Networks
from ldmkit.messages import did_you_mean
from ldmkit.samplers import Callback, Clip, Grid, Sampler, Spacing, clipped, img2img, make_grid, masked, repaint

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

    def completed(self, model: Networks) -> Settings:
        """With the model's `sampling` for what is None, and its options checked. Raises UsageError for what does not fit."""
        saved = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **model.sampling}
        kept = {key: value for key, value in saved.items() if key not in OWN}
        name, before = self.sampler or str(saved["sampler"]), str(saved["sampler"])
        options = sampler_options.completed(name, before, lambda which: find(model, which), self.options, kept)
        chosen = {key: saved.get(key) for key in OWN if getattr(self, key) is None}
        steps = sampler_options.listed_steps(options) or saved["steps"] if self.steps is None else self.steps
        chosen["steps"] = whole("steps", steps)
        return replace(self, **chosen, options=options)

    @property
    def count(self) -> int:
        """The steps of completed settings."""
        assert self.steps is not None
        return self.steps


class Sampling:
    """Latents for prepared conditions: one model, one batch, one size (h, w), completed `Settings`.

    Raises UsageError for settings that do not go together.
    """

    def __init__(self, model: Networks, batch: Batch, size: tuple[int, int], settings: Settings) -> None:
        self.model, self.batch, self.size, self.settings = model, batch, size, settings
        self.method = guiding.make_method(settings.guidance_options, model.guidance)

    def latents(self, noise: Tensor, generators: Sequence[Generator]) -> Tensor:
        """Scaled latents (b, c, h, w) from `noise` (b, c, h, w), on the model's device.

        Raises UsageError for settings that do not go together, PluginError for a sampler that returns another shape.
        """
        model, settings, name = self.model, self.settings, str(self.settings.sampler)
        sampler, schedule = find(model, name), model.diffusion.schedule
        steps = self._levels() if self.method.on_grid else settings.count
        denoiser, options = self._with_known(self.denoiser(steps))
        counted = finite.Steps(settings.callback)
        asked: dict[str, Any] = {"generators": generators, "callback": counted, **options}
        cache = FeatureCache.of(settings.cache)
        caching = nullcontext() if cache is None else cache.applied(model.denoiser.blocks())
        with finite.explained(model.denoiser, counted, settings.count), caching:
            if (strength := self._strength()) is None:
                latents: Any = sampler(denoiser, noise, schedule, steps, **asked)
            else:
                assert settings.known is not None
                latents = img2img(sampler, denoiser, settings.known, noise, schedule, steps, strength=strength, **asked)
        if not isinstance(latents, Tensor) or latents.shape != noise.shape:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise PluginError(f"the sampler {name} gave {got}; expected latents of shape {tuple(noise.shape)}")
        return latents

    def denoiser(self, steps: int | Grid | None = None) -> X0Predictor:
        """(x_t, t) -> x_0, guided; each branch is encoded once. `steps`: the sampler's grid, for methods that are `on_grid`."""
        model = self.model
        negatives = self._negatives()
        if self.method.replaces_null and len(negatives) > 1:
            raise UsageError(
                f"{len(negatives)} negatives, and only one can stand in for the null",
                hint="guidance_options={'type': 'perp-neg'} takes several",
            )
        stand_in = negatives[0] if negatives and self.method.replaces_null else {}
        branches = Branches(model, self.batch, model.canvas(self.size), stand_in)
        guidance = 1.0 if self.settings.guidance is None else self.settings.guidance
        if stand_in and set(branches.weights(guidance)) == {branches.present}:
            logging.getLogger("ldmkit").warning(
                "the negative changes nothing: guidance %s looks at the conditions alone; give one above 1", guidance
            )

        def network(noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            return model.diffusion.to_x0(model.predict(noisy, timestep, conditioning), noisy, timestep)

        return self.method(
            guiding.Given(
                denoiser=network,
                schedule=model.diffusion.schedule,
                guidance=guidance,
                weights=lambda: branches.weights(guidance),
                conditional=branches.present,
                null=branches.null,
                branch=branches.read,
                negatives=lambda: [branches.against(values) for values in negatives],
                levels=steps if isinstance(steps, Grid) else None,
                other=branches.of_other_model,
            )
        )

    def _negatives(self) -> list[dict[str, Tensors]]:
        """Each negative's values, prepared and collated for every row."""
        conditioners, negative, found = self.model.conditioners, self.settings.negative, []
        for values in [negative] if isinstance(negative, Mapping) else negative or ():
            if not values:
                continue
            prepared, _ = user_values.prepare(conditioners, [values] * len(self.batch), self.size, self.size)
            collated = {}
            for slot in values:
                tensors = [own for row in prepared if (own := row[slot]) is not None]
                if tensors:
                    collated[slot] = conditioners[slot].collate(tensors)
            found.append(collated)
        return found

    def _with_known(self, denoiser: X0Predictor) -> tuple[X0Predictor, Mapping[str, Any]]:
        """The denoiser, and the sampler's options, once they know what of the image is kept, and its bounds."""
        settings, name = self.settings, str(self.settings.sampler)
        options = settings.options
        if settings.likelihood is not None:
            model = self.model
            denoiser = settings.likelihood.guide(denoiser, model.diffusion.schedule, model.autoencoder.decode)
        if settings.keep is not None or name == REPAINT:
            if settings.known is None or settings.keep is None:
                what = f"the sampler {name}" if name == REPAINT else "a mask"
                raise UsageError(f"{what} needs an image and a mask that says what of it is kept")
            if name == REPAINT:
                options = {**options, "known": settings.known, "mask": settings.keep}
            else:
                denoiser = masked(denoiser, settings.known, settings.keep)
        return clipped(denoiser, settings.clip), options

    def _levels(self) -> Grid:
        """The sampler's noise levels, for CFG++. Raises UsageError where its steps are not DDIM's."""
        name, options = str(self.settings.sampler), self.settings.options
        if name not in DDIM_STEPS or options.get(DDIM_STEPS[name], 0):
            allowed = " or ".join(f"{name} with {option} 0" for name, option in DDIM_STEPS.items())
            raise UsageError(f"CFG++ changes DDIM's step, and the sampler is {name}", hint=f"sample with {allowed}")
        spacing: Spacing = options.get("spacing", "trailing")
        schedule = self.model.diffusion.schedule
        return make_grid(schedule, self.settings.count, spacing, clean=options.get("clean", True))

    def _strength(self) -> float | None:
        """How far back to noise the image goes; None: all is noise at first, as where there is no image."""
        settings = self.settings
        if settings.known is None:
            if settings.strength is not None:
                raise UsageError(f"strength {settings.strength:g} is of a picture to start from, and none was given")
            return None
        return STRENGTH if settings.strength is None and settings.keep is None else settings.strength


def find(model: Networks, name: str) -> Sampler:
    """The sampler `name`. Raises UsageError."""
    if name == REPAINT:
        return repaint
    if name not in model.samplers:
        there = ", ".join(sorted(model.samplers))
        guess = did_you_mean(name, [*model.samplers, REPAINT])
        raise UsageError(f"no sampler is called {name!r}{guess}", hint=f"there are {there}; and {REPAINT}, with a mask")
    return model.samplers[name]
