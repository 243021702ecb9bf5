"""`LatentDiffusion`: autoencoder + denoiser + conditioners + diffusion (arXiv 2112.10752, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldmkit.autoencoder import Autoencoder, Posterior
from ldmkit.conditioning import Batch, Canvas, ConditionerSet, Conditioning, Tensors, Values
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.denoiser import Denoiser
from ldmkit.denoiser.unet import UNet
from ldmkit.diffusion import Diffusion
from ldmkit.errors import DataError, UsageError
from ldmkit.guidance import METHODS, Guidance, Likelihood, Method
from ldmkit.latent_diffusion import finite, sampling, serialization, user_images
from ldmkit.latent_diffusion.arguments import Size, precision, sides, whole
from ldmkit.latent_diffusion.draws import Draws, Slot
from ldmkit.latent_diffusion.feature_cache import FeatureCache
from ldmkit.latent_diffusion.notebook import model_page
from ldmkit.latent_diffusion.sampled import SampledImages
from ldmkit.latent_diffusion.sampler_options import GRID
from ldmkit.latent_diffusion.sampling import Negative, Settings
from ldmkit.losses import DiffusionPass, ExtraLosses
from ldmkit.random import generators, normal, sample_generators, uniform
from ldmkit.samplers import Callback, Clip, Sampler, invert


class LatentDiffusion(nn.Module):
    """A latent diffusion model; `forward` is the loss, `sample` makes pictures.

    Args:
        autoencoder: E and D, frozen here.
        denoiser: epsilon_theta.
        conditioners: tau_theta, one a slot, trained jointly with the denoiser.
        diffusion: schedule, prediction and objective.
        size: the training image's (h, w) in pixels.
        samplers: name -> sampler, for `sample(sampler=name)`.
        sampling: defaults of `sample`: ``sampler``, ``steps``, ``guidance``, ``guidance_options``, ``negative``, ``clip``,
            ``cache`` and the sampler's options.
        slots: where each conditioner came from.
        loader: (path, weights) -> another model, for autoguidance by a path.
        parts: ``autoencoder`` and ``denoiser`` -> `type` and options, for `config`; default: those of the core's own classes.
        origins: part -> the distribution that has it, of parts that plugins have.

    `extra` holds the extra terms of the loss while the model is trained, and is empty otherwise.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        conditioners: ConditionerSet,
        diffusion: Diffusion,
        *,
        size: tuple[int, int],
        samplers: Mapping[str, Sampler] | None = None,
        guidance: Mapping[str, type[Method]] = METHODS,
        sampling: Mapping[str, Any] | None = None,
        slots: Mapping[str, Slot] | None = None,
        loader: Callable[[str, str], LatentDiffusion] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        origins: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.conditioners = conditioners
        self.diffusion = diffusion
        self.size = size
        self.extra = ExtraLosses()
        self.guidance = guidance
        self.parts = {
            "autoencoder": autoencoder.config,
            "denoiser": {"type": "unet", **denoiser.config} if isinstance(denoiser, UNet) else {},
            **(parts or {}),
        }
        self.origins = dict(origins or {})
        self.samplers: dict[str, Sampler] = dict(samplers or {})
        self.sampling: dict[str, Any] = dict(sampling or {})
        self.slots: dict[str, Slot] = dict(slots or {})
        self.loader = loader
        # What `loader` read. A plain dict: those models are no part of this one.
        self.others: dict[tuple[str, str], LatentDiffusion] = {}
        self.latent_shape(size)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Training mode for the denoiser and the conditioners; the autoencoder stays in eval mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the denoiser's parameters are."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in: its parameters' dtype."""
        return precision(self.denoiser) or torch.float32

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latent of an image of `size` (h, w), which the autoencoder pads where its `pad` says so.

        Raises `UsageError` where the size does not divide.
        """
        step, factor = self._step, self.autoencoder.factor
        padded = tuple(-(-side // factor) * factor for side in size) if self.autoencoder.pad else size
        if any(side < step or side % step for side in padded):
            nearest = tuple(max(step, round(side / step) * step) for side in size)
            raise UsageError(
                f"an image of {size[0]} x {size[1]} cannot be made: both sides must be multiples of {step} (the autoencoder "
                f"divides by {factor}, the denoiser by {self.denoiser.reduction})",
                hint=f"the nearest size is {nearest[0]} x {nearest[1]}",
            )
        return self.autoencoder.latent_channels, padded[0] // factor, padded[1] // factor

    @property
    def _step(self) -> int:
        """Sides of images are its multiples."""
        return int(self.autoencoder.factor * self.denoiser.reduction)

    def paintable(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest size (h, w) from `size` up that can be made."""
        return -(-size[0] // self._step) * self._step, -(-size[1] // self._step) * self._step

    def canvas(self, size: Size | None = None, dtype: torch.dtype | None = None) -> Canvas:
        """Where a batch of images of `size` (h, w) is painted: `paintable(size)`, the images in its upper left.

        `dtype`: what conditioners answer in; default: that of their own weights.
        """
        picture = sides(size) or self.size
        dtype = dtype or precision(self.conditioners, self.denoiser) or torch.float32
        painted = self.paintable(picture)
        _, *grid = self.latent_shape(painted)
        to_latent = partial(_encoded_as, self.autoencoder, dtype)
        return Canvas(painted, (grid[0], grid[1]), self.device, dtype, to_latent, picture)

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values: what `config.json` holds."""
        return {
            "size": list(self.size),
            **{name: dict(part) for name, part in self.parts.items()},
            "diffusion": self.diffusion.config,
            "conditioners": {slot: self.slots[slot].to_json() for slot in self.conditioners if slot in self.slots},
            "dropout": self.conditioners.dropout.to_json(),
            "sampling": self.sampling,
            **({"origins": self.origins} if self.origins else {}),
        }

    def save(self, path: str | Path, raw: Mapping[str, Tensor] | None = None) -> Path:
        """Writes `config.json` and safetensors into a new directory; `ldmkit.load(path)` reads it back.

        `raw` holds the weights before averaging of those tensors that have an average; without it raw and average are one.
        Raises `CheckpointError` where the directory holds something already.
        """
        return serialization.write(self, Path(path), raw)

    def _repr_html_(self) -> str:
        """Its parts, slots and defaults, for a notebook."""
        return model_page(self)

    # training

    def batch(self, samples: Sequence[Mapping[str, Any]], *, positions: Tensor | None = None, seed: int = 0) -> Batch:
        """Samples, prepared and collated, for the loss. A sample's `image` is float (c, h, w) in [-1, 1].

        A field that a sample lacks, or that is None there, is absent; one that no sample has is a `DataError`.
        """
        known = {name for sample in samples for name in sample}
        for slot, names in self.conditioners.fields.items():
            if missing := sorted(set(names.values()) - known):
                raise DataError(
                    f"slot {slot} reads {', '.join(missing)}, and the samples have {', '.join(sorted(known))}"
                )
        where = torch.arange(len(samples)) if positions is None else positions
        rows = [self._prepare(sample, int(position), seed) for sample, position in zip(samples, where, strict=True)]
        return self.conditioners.collate(torch.stack([sample["image"] for sample in samples]), rows, where)

    def _prepare(self, sample: Mapping[str, Any], position: int, seed: int) -> dict[str, Tensors | None]:
        out: dict[str, Tensors | None] = dict.fromkeys(self.conditioners.left_out)
        for slot in self.conditioners:
            if slot in out:
                continue
            names = self.conditioners.fields[slot]
            values = {own: sample.get(name) for own, name in names.items()}
            absent = any(value is None for value in values.values())
            source = generators(seed, f"prepare/{slot}", [position])[0]
            out[slot] = None if absent else self.conditioners.examiner(slot).prepare({**sample, **values}, source)
        return out

    def draw(self, positions: Tensor | Sequence[int], seed: int, size: tuple[int, int] | None = None) -> Draws:
        """Every random number of a training step on the CPU; row i depends on (seed, positions[i]) alone."""
        keys = [int(position) for position in positions]
        shape = self.latent_shape(size or self.size)
        perturbed = self.diffusion.input_perturbation > 0
        return Draws(
            timesteps=self.diffusion.sample_timesteps(uniform(generators(seed, "timestep", keys)), torch.tensor(keys)),
            noise=self.diffusion.draw_noise(generators(seed, "noise", keys), shape),
            posterior=normal(generators(seed, "posterior", keys), shape),
            dropped=self.conditioners.dropout.draw(generators(seed, "dropout", keys)),
            perturbation=normal(generators(seed, "perturbation", keys), shape) if perturbed else None,
        )

    def latents(self, batch: Batch, posterior: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) of a batch: from its cached posterior where it has one, else encoded now."""
        with torch.no_grad():
            if batch.latents is None:
                found = self.autoencoder.posterior(batch.images)
            else:
                found = Posterior(batch.latents["mean"], batch.latents.get("logvar"))
            return self.autoencoder.scale(found.sample(posterior))

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch (paper, equation 3) and its parts, each detached; in training with the terms of `extra`."""
        losses, parts = self.losses(batch, draws, self.extra if self.training else None)
        loss = losses.mean()
        return loss, {"loss": loss.detach(), **parts}

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as calling the model; call the model itself under DDP, FSDP or compile."""
        result: tuple[Tensor, dict[str, Tensor]] = self(batch, draws)
        return result

    def losses(self, batch: Batch, draws: Draws, extra: ExtraLosses | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row (b,), and parts of the mean; with `extra`, its terms too."""
        latents = self.latents(batch, draws.posterior)
        latents = latents if latents.dtype == torch.float64 else latents.float()
        noise, t = draws.noise, draws.timesteps
        noisy = self.diffusion.noised(latents, noise, t, perturbation=draws.perturbation if self.training else None)
        canvas = self.canvas((latents.shape[2] * self.autoencoder.factor, latents.shape[3] * self.autoencoder.factor))
        conditioning = self.conditioners(
            batch.prepared, batch.present, canvas, len(batch), dropped=draws.dropped, known=batch.answers
        )
        present = {f"present/{slot}": value.float().mean() for slot, value in batch.present.items()}
        if not extra:
            output = self.predict(noisy, t, conditioning)
            return self.diffusion.loss(output, latents, noise, t), present
        with extra.reading(self.denoiser) as features:
            output = self.predict(noisy, t, conditioning)
        losses = self.diffusion.loss(output, latents, noise, t)
        added, parts = extra.of_diffusion(
            DiffusionPass(
                name="",
                seed=extra.seed,
                step=extra.step,
                positions=batch.positions,
                denoiser=self.denoiser,
                diffusion=self.diffusion,
                batch=batch,
                latents=latents,
                noise=noise,
                noisy=noisy,
                timesteps=t,
                conditioning=conditioning,
                output=output,
                features=features,
            )
        )
        return losses + added, {**present, "diffusion": losses.detach().mean(), **parts}

    # sampling

    def condition(
        self,
        values: Values = None,
        *,
        count: int | None = None,
        size: Size | None = None,
        drop: Sequence[str] = (),
    ) -> Conditioning:
        """What the denoiser reads for these conditions; slots in `drop`, and slots without a value, are null."""
        given = user_values.rows(values, whole("count", count), self.conditioners)
        prepared, size = user_values.prepare(self.conditioners, given, sides(size), self.size)
        batch = self._user_batch(prepared)
        kept = frozenset(self.conditioners) - set(drop)
        with torch.no_grad(), _evaluating(self):
            return sampling.branch(self, batch, self.canvas(size), kept)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise (b, c, h, w) in `noisy` at `timestep` (b,), whatever the denoiser's own prediction is."""
        return self.diffusion.to_eps(self.predict(noisy, timestep, conditioning), noisy, timestep)

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's answer (b, c, h, w) to `noisy` at `timestep` (b,), asked in its own dtype, given in that of `noisy`."""
        dtype = self.dtype
        own = conditioning.map(lambda value: value.to(dtype) if value.is_floating_point() else value)
        output: Tensor = self.denoiser(noisy.to(dtype), timestep, **own.kwargs())
        return output.to(noisy.dtype)

    @torch.no_grad()
    def sample(
        self,
        values: Values = None,
        *,
        count: int | None = None,
        size: Size | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        guidance_options: str | Mapping[str, Any] | None = None,
        negative: Negative | None = None,
        clip: Clip = None,
        cache: FeatureCache | Mapping[str, Any] | int | None = None,
        likelihood: Likelihood | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        keep: Any = None,
        seed: int = 0,
        noise: Tensor | None = None,
        output: Literal["pil", "tensor", "latent"] = "pil",
        callback: Callback | None = None,
        **options: Any,
    ) -> SampledImages | Tensor:
        """Images for conditions: a list of Pillow images that knows its conditions and seeds.

        Args:
            values: a mapping slot -> value, or a sequence of mappings, one an image (a missing slot is null there). In a mapping
                a `torch.Tensor` is a batch with its rows in the first dimension, and so is a list or a numpy array of one
                dimension, one value an image; anything else is repeated `count` times.
            count: the number of images; default: what `values` or `image` holds, else 1.
            size: (h, w) in pixels, or one number for a square; default: what a condition implies (a low-resolution picture), else
                the training size. An implied size need not be one that can be made: the canvas is the next larger one, and the
                picture is cut out.
            sampler, steps, guidance, guidance_options, negative: default: what the model was saved with, else ddim, 50, 1.0,
                plain, none. Guidance is a number, an ordered mapping slot -> scale, or an expression over subsets
                (`ldmkit.guidance.parse`); its options a method, or a mapping of `type` and options (`guidance.make_method`).
            negative: slot -> value that stands in for the slot's null; for perp-neg also a sequence of such mappings.
            clip: bounds on the predicted x_0, for models of pixels: True for [-1, 1], a number for [-r, r], a mapping of
                `quantile` and `max` for dynamic thresholding, False for none (`samplers.clipped`); default: as saved, else none.
            cache: ``{"every": 3}`` runs the denoiser's inner blocks in every third evaluation only and takes what they gave in
                between: faster, and another image (`FeatureCache`); default: as saved, else never.
            likelihood: a log-likelihood from outside to climb.
            image: the picture to start from (`pictures.read`): with `strength` alone it is varied (img2img), with a `mask` a part
                of it is painted anew.
            strength: in (0, 1], how far back to noise `image` goes; default 0.75, and with a mask all the way.
            mask: what of `image` is painted anew: 1 (white) is, 0 (black) is kept (`pictures.read_mask`). ``sampler="repaint"``
                paints by RePaint, which takes longer and fits the two better.
            keep: the reverse of `mask`: white is kept.
            seed: row i has the seed `seed + i`, whatever the batch.
            noise: x_T (b, c, h, w), instead of a drawn one; `noise` and `invert` make some.
            output: "pil" images, a "tensor" (b, c, h, w) in [-1, 1], or the scaled "latent".
            callback: called after each step with (steps done, steps in all, x_t, the x_0 predicted in it), scaled latents.
            options: the sampler's own (``eta`` ...), checked as a recipe's are. What is left out is as the model was saved while
                the sampler is; a `spacing` and `clean` that were chosen there hold for every sampler.

        Raises UsageError for what does not go together, DivergedError where a part gives what is not finite: which, at which
        step, and what to try.
        """
        seed, count, size = whole("seed", seed) or 0, whole("count", count), sides(size)
        steps = whole("steps", steps)
        if count is None and values is None and image is not None:
            count = user_images.rows(image)
        given = user_values.rows(values, count, self.conditioners)
        if size is not None:
            self.latent_shape(size)
        prepared, size = user_values.prepare(self.conditioners, given, size, self.size)
        canvas = self.canvas(size)
        start = None if image is None else self._picture(image, canvas.size, len(given))
        rest = user_images.kept(mask, keep, size=canvas.size, count=len(given))
        rest = None if rest is None else rest.to(self.device)
        batch = self._user_batch(prepared)
        latents = self.sample_latents(
            batch,
            size=size,
            seed=seed,
            noise=noise,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            guidance_options=guidance_options,
            negative=negative,
            clip=clip,
            cache=cache,
            likelihood=likelihood,
            known=None if start is None else self._encoded(start),
            strength=strength,
            keep=None if rest is None else user_images.on_grid(rest, canvas.grid),
            callback=callback,
            options=options,
        )
        if output == "latent":
            return latents
        images = self._decoded(latents)
        if start is not None and rest is not None:
            # What was kept is the image itself, not what the autoencoder makes of it.
            images = torch.lerp(images, start.to(images.dtype), rest.to(images.dtype))
        images = self.conditioners.finish(images[..., : size[0], : size[1]], batch)
        if output == "tensor":
            return images
        return SampledImages(user_images.to_pil(images), conditions=given, seeds=range(seed, seed + len(given)))

    @torch.no_grad()
    def sample_batch(self, batch: Batch, **settings: Any) -> Tensor:
        """Images (b, c, h, w) in [-1, 1] for prepared conditions; settings as in `sample_latents`."""
        return self.conditioners.finish(self._decoded(self.sample_latents(batch, **settings)), batch)

    @torch.no_grad()
    def sample_latents(
        self,
        batch: Batch,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Scaled latents (b, c, h, w) for prepared conditions. `settings` are those of `sampling.Settings`."""
        size = size or self.size
        sources = sample_generators(seed, len(batch))
        # Drawn in any case, so that a given noise leaves the later draws as they are.
        drawn = normal(sources, self.latent_shape(self.paintable(size)))
        if noise is not None and noise.shape != drawn.shape:
            raise UsageError(f"noise of shape {tuple(noise.shape)}; here it is {tuple(drawn.shape)}")
        # The state of a sampler keeps float32 where the network has less, and float64 where it has that.
        start = (drawn if noise is None else noise).to(self.device, torch.promote_types(self.dtype, torch.float32))
        asked = Settings(**{**settings, "options": settings.get("options") or {}}).completed(self)
        with _evaluating(self):
            return sampling.sample(self, batch, start, size, asked, sources)

    def noise(self, seeds: Sequence[int], size: Size | None = None) -> Tensor:
        """The noise (b, c, h, w) that `sample` draws for these seeds: to go between them (`samplers.slerp`)."""
        return normal([sample_generators(s, 1)[0] for s in seeds], self.latent_shape(sides(size) or self.size))

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        values: Values = None,
        *,
        size: Size | None = None,
        steps: int | None = None,
        iterations: int = 5,
        **options: Any,
    ) -> Tensor:
        """The noise (b, c, h, w) from which DDIM makes `image` again under the same conditions, without guidance.

        Args:
            image: as in `sample`.
            values, size, steps: as in `sample`; the options are the grid's, `spacing` and `clean`. Sample with the same ones.
            iterations: evaluations a step (see `samplers.invert`).
        """
        given = user_values.rows(values, None if values is not None else user_images.rows(image), self.conditioners)
        prepared, size = user_values.prepare(self.conditioners, given, sides(size), self.size)
        asked = Settings(sampler="ddim", steps=steps, guidance=1.0, guidance_options="plain", negative={})
        saved = asked.completed(self)
        grid = {key: value for key, value in saved.options.items() if key in GRID}
        with _evaluating(self):
            denoiser = sampling.denoiser(self, self._user_batch(prepared), size, saved)
            latents = self._encoded(self._picture(image, self.paintable(size), len(given)))
            own = {"iterations": iterations, **grid, **options}
            return invert(denoiser, latents, self.diffusion.schedule, sampling.steps_of(saved), **own)

    def _picture(self, image: Any, size: tuple[int, int], count: int) -> Tensor:
        channels = self.autoencoder.image_channels
        return user_images.read(image, size=size, channels=channels, count=count).to(self.device)

    def _encoded(self, images: Tensor) -> Tensor:
        with _evaluating(self):
            latents = finite.check(self.autoencoder.encode(images), "encoder", self.autoencoder)
        return latents.to(torch.promote_types(self.dtype, torch.float32))

    def _decoded(self, latents: Tensor) -> Tensor:
        """Images (b, c, h, w) in [-1, 1] of scaled latents, in the autoencoder's dtype."""
        with _evaluating(self):
            return finite.check(self.autoencoder.decode(latents), "decoder", self.autoencoder).clamp(-1, 1)

    def _user_batch(self, prepared: user_values.Prepared) -> Batch:
        images = torch.zeros(len(prepared), self.autoencoder.image_channels, 1, 1)
        return self.conditioners.collate(images, prepared, torch.arange(len(prepared)))


def _encoded_as(autoencoder: Autoencoder, dtype: torch.dtype, images: Tensor) -> Tensor:
    return autoencoder.encode(images).to(dtype)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time of a block."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()
