"""`Networks`: autoencoder, denoiser, conditioners and diffusion together: sizes, conditions, predictions and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldmkit.autoencoder import Autoencoder, Posterior
from ldmkit.conditioning import Batch, Canvas, ConditionerSet, Conditioning, KeptSlots, Tensors
from ldmkit.denoiser import Denoiser
from ldmkit.denoiser.unet import UNet
from ldmkit.diffusion import Diffusion
from ldmkit.errors import DataError, UsageError
from ldmkit.guidance import METHODS, Method
from ldmkit.latent_diffusion.arguments import Size, precision, sides
from ldmkit.latent_diffusion.draws import Draws, Slot
from ldmkit.losses import DiffusionPass, ExtraLosses
from ldmkit.random import generators, normal, uniform
from ldmkit.samplers import Sampler


class Networks(nn.Module):
    """The parts of a latent diffusion model and how they work together; `forward` is the loss.

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
        loader: Callable[[str, str], Networks] | None = None,
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
        self.others: dict[tuple[str, str], Networks] = {}
        self.latent_shape(size)

    def train(self, mode: bool = True) -> Self:
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
                autoencoder=self.autoencoder,
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

    def branch(
        self,
        batch: Batch,
        canvas: Canvas,
        kept: KeptSlots,
        negative: Mapping[str, Tensors] | None = None,
    ) -> Conditioning:
        """What the denoiser reads for prepared conditions with the slots `kept`, the others null (or `negative`)."""
        rows = len(batch)
        moved = batch.to(self.device)
        dropped = {slot: torch.full((rows,), slot not in kept) for slot in self.conditioners}
        against = {
            slot: {k: v.to(self.device) for k, v in tensors.items()} for slot, tensors in (negative or {}).items()
        }
        result: Conditioning = self.conditioners(
            moved.prepared, moved.present, canvas, rows, dropped=dropped, negative=against, closely=True
        )
        return result

    def predict_noise(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise (b, c, h, w) in `noisy` at `timestep` (b,), whatever the denoiser's own prediction is."""
        return self.diffusion.to_eps(self.predict(noisy, timestep, conditioning), noisy, timestep)

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's answer (b, c, h, w) to `noisy` at `timestep` (b,), asked in its own dtype, given in that of `noisy`."""
        dtype = self.dtype
        own = conditioning.map(lambda value: value.to(dtype) if value.is_floating_point() else value)
        output: Tensor = self.denoiser(noisy.to(dtype), timestep, **own.kwargs())
        return output.to(noisy.dtype)


def _encoded_as(autoencoder: Autoencoder, dtype: torch.dtype, images: Tensor) -> Tensor:
    return autoencoder.encode(images).to(dtype)
