"""`LatentDiffusion`: autoencoder + denoiser + conditioners + diffusion (arXiv 2112.10752, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ldmkit.autoencoder import Autoencoder, Posterior
from ldmkit.conditioning import Batch, Canvas, ConditionerSet, Conditioning, Tensors, Values
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.denoiser.unet import UNet
from ldmkit.diffusion import Diffusion
from ldmkit.errors import DataError, UsageError
from ldmkit.guidance import Guidance, Likelihood
from ldmkit.latent_diffusion import sampling, serialization, user_images
from ldmkit.latent_diffusion.draws import Draws, Slot
from ldmkit.latent_diffusion.sampling import Negative, Settings
from ldmkit.random import generators, normal, sample_generators, uniform
from ldmkit.samplers import Callback, Sampler, invert

if TYPE_CHECKING:
    from PIL.Image import Image


class LatentDiffusion(nn.Module):
    """A latent diffusion model; `forward` is the loss, `sample` makes pictures.

    Args:
        autoencoder: E and D, frozen here.
        denoiser: epsilon_theta.
        conditioners: tau_theta, one a slot, trained jointly with the denoiser.
        diffusion: schedule, prediction and objective.
        size: the training image's (h, w) in pixels.
        samplers: name -> sampler, for `sample(sampler=name)`.
        sampling: defaults of `sample`: ``sampler``, ``steps``, ``guidance``, ``guidance_options``, ``negative`` and the sampler's
            options.
        slots: where each conditioner came from.
        loader: (path, weights) -> another model, for autoguidance by a path.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: UNet,
        conditioners: ConditionerSet,
        diffusion: Diffusion,
        *,
        size: tuple[int, int],
        samplers: Mapping[str, Sampler] | None = None,
        sampling: Mapping[str, Any] | None = None,
        slots: Mapping[str, Slot] | None = None,
        loader: Callable[[str, str], LatentDiffusion] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.conditioners = conditioners
        self.diffusion = diffusion
        self.size = size
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

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(c, h, w) of the latent of an image of `size` (h, w). Raises `UsageError` where the size does not divide."""
        step = self._step
        if any(side < step or side % step for side in size):
            nearest = tuple(max(step, round(side / step) * step) for side in size)
            raise UsageError(
                f"an image of {size[0]} x {size[1]} cannot be made: both sides must be multiples of {step} (the autoencoder "
                f"divides by {self.autoencoder.factor}, the denoiser by {self.denoiser.reduction})",
                hint=f"the nearest size is {nearest[0]} x {nearest[1]}",
            )
        factor = self.autoencoder.factor
        return self.autoencoder.latent_channels, size[0] // factor, size[1] // factor

    @property
    def _step(self) -> int:
        """Sides of images are its multiples."""
        return int(self.autoencoder.factor * self.denoiser.reduction)

    def paintable(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest size (h, w) from `size` up that can be made."""
        return -(-size[0] // self._step) * self._step, -(-size[1] // self._step) * self._step

    def canvas(self, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32) -> Canvas:
        """Where a batch of images of `size` (h, w) is painted: `paintable(size)`, the images in its upper left."""
        picture = size or self.size
        size = self.paintable(picture)
        _, *grid = self.latent_shape(size)
        return Canvas(size, (grid[0], grid[1]), self.device, dtype, self.autoencoder.encode, picture)

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values: what `config.json` holds."""
        return {
            "size": list(self.size),
            "autoencoder": self.autoencoder.config,
            "denoiser": self.denoiser.config,
            "diffusion": self.diffusion.config,
            "conditioners": {slot: self.slots[slot].to_json() for slot in self.conditioners if slot in self.slots},
            "dropout": self.conditioners.dropout.to_json(),
            "sampling": self.sampling,
        }

    def save(self, path: str | Path, raw: Mapping[str, Tensor] | None = None) -> Path:
        """Writes `config.json` and safetensors into a new directory; `ldmkit.load(path)` reads it back.

        `raw` holds the weights before averaging of those tensors that have an average; without it raw and average are one.
        Raises `CheckpointError` where the directory holds something already.
        """
        return serialization.write(self, Path(path), raw)

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
        """The mean loss of a batch (paper, equation 3) and its parts, each detached."""
        losses, parts = self.losses(batch, draws)
        loss = losses.mean()
        return loss, {"loss": loss.detach(), **parts}

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as calling the model; call the model itself under DDP, FSDP or compile."""
        result: tuple[Tensor, dict[str, Tensor]] = self(batch, draws)
        return result

    def losses(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row (b,), and parts of the mean."""
        latents = self.latents(batch, draws.posterior)
        noise, t = draws.noise, draws.timesteps
        noisy = self.diffusion.noised(latents, noise, t, perturbation=draws.perturbation if self.training else None)
        canvas = self.canvas((latents.shape[2] * self.autoencoder.factor, latents.shape[3] * self.autoencoder.factor))
        conditioning = self.conditioners(
            batch.prepared, batch.present, canvas, len(batch), dropped=draws.dropped, known=batch.answers
        )
        output = self.denoiser(noisy, t, **conditioning.kwargs())
        losses = self.diffusion.loss(output, latents, noise, t)
        present = {f"present/{slot}": value.float().mean() for slot, value in batch.present.items()}
        return losses, present

    # sampling

    def condition(
        self,
        values: Values = None,
        *,
        count: int | None = None,
        size: tuple[int, int] | None = None,
        drop: Sequence[str] = (),
    ) -> Conditioning:
        """What the denoiser reads for these conditions; slots in `drop`, and slots without a value, are null."""
        given = user_values.rows(values, count, self.conditioners)
        prepared, size = user_values.prepare(self.conditioners, given, size, self.size)
        batch = self._user_batch(prepared)
        kept = frozenset(self.conditioners) - set(drop)
        with torch.no_grad(), _evaluating(self):
            return sampling.branch(self, batch, self.canvas(size), kept)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise (b, c, h, w) in `noisy` at `timestep` (b,), whatever the denoiser's own prediction is."""
        return self.diffusion.to_eps(self.denoiser(noisy, timestep, **conditioning.kwargs()), noisy, timestep)

    @torch.no_grad()
    def sample(
        self,
        values: Values = None,
        *,
        count: int | None = None,
        size: tuple[int, int] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        guidance_options: str | Mapping[str, Any] | None = None,
        negative: Negative | None = None,
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
    ) -> list[Image] | Tensor:
        """Pictures for conditions.

        Args:
            values: a mapping slot -> value, or a sequence of mappings, one an image (a missing slot is null there). In a mapping
                a `torch.Tensor` is a batch with its rows in the first dimension; anything else is repeated `count` times.
            count: the number of images; default: what `values` or `image` holds, else 1.
            size: (h, w) in pixels; default: what a condition implies (a low-resolution picture), else the training size. An
                implied size need not be one that can be made: the canvas is the next larger one, and the picture is cut out.
            sampler, steps, guidance, guidance_options, negative: default: what the model was saved with, else ddim, 50, 1.0,
                plain, none. Guidance is a number, an ordered mapping slot -> scale, or an expression over subsets
                (`ldmkit.guidance.parse`); its options a method, or a mapping of `type` and options (`guidance.make_method`).
            negative: slot -> value that stands in for the slot's null; for perp-neg also a sequence of such mappings.
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
            options: the sampler's own (``eta`` ...).
        """
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
        latents = self.sample_latents(
            self._user_batch(prepared),
            size=size,
            seed=seed,
            noise=noise,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            guidance_options=guidance_options,
            negative=negative,
            likelihood=likelihood,
            known=None if start is None else self._encoded(start),
            strength=strength,
            keep=None if rest is None else user_images.on_grid(rest, canvas.grid),
            callback=callback,
            options=options,
        )
        if output == "latent":
            return latents
        with _evaluating(self):
            images = self.autoencoder.decode(latents).clamp(-1, 1)
        if start is not None and rest is not None:
            # What was kept is the picture itself, not what the autoencoder makes of it.
            images = torch.lerp(images, start, rest)
        images = images[..., : size[0], : size[1]]
        return images if output == "tensor" else user_images.to_pil(images)

    @torch.no_grad()
    def sample_batch(self, batch: Batch, **settings: Any) -> Tensor:
        """Images (b, c, h, w) in [-1, 1] for prepared conditions; settings as in `sample_latents`."""
        with _evaluating(self):
            return self.autoencoder.decode(self.sample_latents(batch, **settings)).clamp(-1, 1)

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
        start = (drawn if noise is None else noise).to(self.device)
        asked = Settings(**{**settings, "options": settings.get("options") or {}}).completed(self.sampling)
        with _evaluating(self):
            return sampling.sample(self, batch, start, size, asked, sources)

    def noise(self, seeds: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
        """The noise (b, c, h, w) that `sample` draws for these seeds: to go between them (`samplers.slerp`)."""
        return normal([sample_generators(s, 1)[0] for s in seeds], self.latent_shape(size or self.size))

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        values: Values = None,
        *,
        size: tuple[int, int] | None = None,
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
        prepared, size = user_values.prepare(self.conditioners, given, size, self.size)
        saved = Settings(steps=steps, guidance=1.0, guidance_options="plain", negative={}).completed(self.sampling)
        grid = {k: v for k, v in saved.options.items() if k in ("spacing", "clean") and saved.sampler == "ddim"}
        with _evaluating(self):
            denoiser = sampling.denoiser(self, self._user_batch(prepared), size, saved)
            latents = self._encoded(self._picture(image, self.paintable(size), len(given)))
            asked = {"iterations": iterations, **grid, **options}
            return invert(denoiser, latents, self.diffusion.schedule, sampling.steps_of(saved), **asked)

    def _picture(self, image: Any, size: tuple[int, int], count: int) -> Tensor:
        channels = self.autoencoder.image_channels
        return user_images.read(image, size=size, channels=channels, count=count).to(self.device)

    def _encoded(self, images: Tensor) -> Tensor:
        with _evaluating(self):
            return self.autoencoder.encode(images)

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
