"""`LatentDiffusion`: what is done with a model: sampling, inverting, saving (arXiv 2112.10752, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldmkit.conditioning import Batch, Conditioning, Values
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.errors import UsageError
from ldmkit.guidance import Guidance, Likelihood
from ldmkit.latent_diffusion import finite, serialization, user_images
from ldmkit.latent_diffusion.arguments import Size, sides, whole
from ldmkit.latent_diffusion.feature_cache import FeatureCache
from ldmkit.latent_diffusion.networks import Networks
from ldmkit.latent_diffusion.notebook import model_page
from ldmkit.latent_diffusion.sampled import SampledImages
from ldmkit.latent_diffusion.sampler_options import GRID
from ldmkit.latent_diffusion.sampling import Negative, Sampling, Settings
from ldmkit.random import normal, sample_generators
from ldmkit.samplers import Callback, Clip, invert


class LatentDiffusion(Networks):
    """A latent diffusion model; `forward` is the loss, `sample` makes images. Its parts and arguments are those of `Networks`."""

    def save(
        self, path: str | Path, raw: Mapping[str, Tensor] | None = None, *, storage: serialization.Storage = "float32"
    ) -> Path:
        """Writes `config.json` and safetensors into a new directory; `ldmkit.load(path)` reads it back.

        `raw` holds the weights before averaging of those tensors that have an average; without it raw and average are one.
        `storage` is what float32 weights are written in: half as large in float16, rounded to 11 bits; float32 again when loaded.
        Raises `CheckpointError` where the directory holds something already.
        """
        return serialization.write(self, Path(path), raw, storage)

    def _repr_html_(self) -> str:
        """Its parts, slots and defaults, for a notebook."""
        return model_page(self)

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
            return self.branch(batch, self.canvas(size), kept)

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
            return Sampling(self, batch, size, asked).latents(start, sources)

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
            denoiser = Sampling(self, self._user_batch(prepared), size, saved).denoiser()
            latents = self._encoded(self._picture(image, self.paintable(size), len(given)))
            own = {"iterations": iterations, **grid, **options}
            return invert(denoiser, latents, self.diffusion.schedule, saved.count, **own)

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
