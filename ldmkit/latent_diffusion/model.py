"""`LatentDiffusion`: autoencoder + denoiser + conditioners + diffusion (arXiv 2112.10752, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ldmkit import guidance as guiding
from ldmkit.autoencoder import Autoencoder, Posterior
from ldmkit.conditioning import Batch, Canvas, ConditionerSet, Conditioning, Tensors, Values
from ldmkit.conditioning import values as user_values
from ldmkit.diffusion import Diffusion
from ldmkit.errors import PluginError, UsageError
from ldmkit.latent_diffusion import files
from ldmkit.latent_diffusion.parts import Draws, Slot
from ldmkit.random import generators, normal, sample_generators, uniform
from ldmkit.unet import UNet

if TYPE_CHECKING:
    from PIL.Image import Image

Sampler = Callable[..., Tensor]
Guidance = float | Mapping[str, float] | str
Callback = Callable[[int, int, Tensor, Tensor], None]


class LatentDiffusion(nn.Module):
    """A latent diffusion model; `forward` is the loss, `sample` makes pictures.

    Args:
        autoencoder: E and D, frozen here.
        denoiser: epsilon_theta.
        conditioners: tau_theta, one a slot, trained jointly with the denoiser.
        diffusion: schedule, prediction and objective.
        size: the training image's (h, w) in pixels.
        samplers: name -> sampler, for `sample(sampler=name)`.
        sampling: defaults of `sample`: ``sampler``, ``steps``, ``guidance`` and the sampler's options.
        slots: where each conditioner came from.
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
        step = self.autoencoder.factor * self.denoiser.reduction
        if any(side < step or side % step for side in size):
            nearest = tuple(max(step, round(side / step) * step) for side in size)
            raise UsageError(
                f"an image of {size[0]} x {size[1]} cannot be made: both sides must be multiples of {step} (the autoencoder "
                f"divides by {self.autoencoder.factor}, the denoiser by {self.denoiser.reduction})",
                hint=f"the nearest size is {nearest[0]} x {nearest[1]}",
            )
        factor = self.autoencoder.factor
        return self.autoencoder.latent_channels, size[0] // factor, size[1] // factor

    def canvas(self, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32) -> Canvas:
        """Where a batch of images of `size` (h, w) is painted."""
        size = size or self.size
        _, *grid = self.latent_shape(size)
        return Canvas(size, (grid[0], grid[1]), self.device, dtype, self.autoencoder.encode)

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
        return files.write(self, Path(path), raw)

    # training

    def batch(self, samples: Sequence[Mapping[str, Any]], *, positions: Tensor | None = None, seed: int = 0) -> Batch:
        """Samples, prepared and collated, for the loss. A sample's `image` is float (c, h, w) in [-1, 1]."""
        where = torch.arange(len(samples)) if positions is None else positions
        rows = [self._prepare(sample, int(position), seed) for sample, position in zip(samples, where, strict=True)]
        return self.conditioners.collate(torch.stack([sample["image"] for sample in samples]), rows, where)

    def _prepare(self, sample: Mapping[str, Any], position: int, seed: int) -> dict[str, Tensors | None]:
        out: dict[str, Tensors | None] = {}
        for slot, conditioner in self.conditioners.items():
            names = self.conditioners.fields[slot]
            values = {own: sample.get(name) for own, name in names.items()}
            absent = any(value is None for value in values.values())
            source = generators(seed, f"prepare/{slot}", [position])[0]
            out[slot] = None if absent else conditioner.prepare({**sample, **values}, source)
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
        conditioning = self.conditioners(batch.prepared, batch.present, canvas, len(batch), dropped=draws.dropped)
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
        given = user_values.rows(values, count)
        prepared, size = user_values.prepare(self.conditioners, given, size, self.size)
        batch = self._user_batch(prepared)
        kept = frozenset(self.conditioners) - set(drop)
        with torch.no_grad(), _evaluating(self):
            return self._branch(batch, self.canvas(size), kept)

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
        negative: Mapping[str, Any] | None = None,
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
            count: the number of images; default: what `values` holds, else 1.
            size: (h, w) in pixels; default: what a condition implies (a low-resolution picture), else the training size.
            sampler, steps, guidance: default: what the model was saved with, else ddim, 50, 1.0. Guidance is a number, an ordered
                mapping slot -> scale, or an expression over subsets (`ldmkit.guidance.parse`).
            negative: slot -> value that stands in for the slot's null.
            seed: row i has the seed `seed + i`, whatever the batch.
            noise: x_T (b, c, h, w), instead of a drawn one.
            output: "pil" images, a "tensor" (b, c, h, w) in [-1, 1], or the scaled "latent".
            options: the sampler's own (``eta`` ...).
        """
        given = user_values.rows(values, count)
        prepared, size = user_values.prepare(self.conditioners, given, size, self.size)
        against: dict[str, Tensors] = {}
        if negative:
            replaced, _ = user_values.prepare(self.conditioners, [negative] * len(given), size, size)
            for slot in negative:
                found = [tensors for row in replaced if (tensors := row[slot]) is not None]
                against[slot] = self.conditioners[slot].collate(found)
        latents = self.sample_latents(
            self._user_batch(prepared),
            size=size,
            seed=seed,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            negative=against,
            noise=noise,
            callback=callback,
            options=options,
        )
        if output == "latent":
            return latents
        with _evaluating(self):
            images = self.autoencoder.decode(latents).clamp(-1, 1)
        return images if output == "tensor" else to_pil(images)

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
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negative: Mapping[str, Tensors] | None = None,
        noise: Tensor | None = None,
        callback: Callback | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Scaled latents (b, c, h, w) for prepared conditions; what is not given comes from the model's own defaults."""
        defaults = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **self.sampling}
        named = defaults.pop("sampler") if sampler is None else sampler
        own = (
            {k: v for k, v in defaults.items() if k not in ("sampler", "steps", "guidance")} if sampler is None else {}
        )
        function = self._sampler(named)
        shape = self.latent_shape(size or self.size)
        sources = sample_generators(seed, len(batch))
        drawn = normal(sources, shape)  # drawn in any case, so that a given noise leaves the later draws as they are
        with _evaluating(self):
            latents = function(
                self._denoiser(batch, size, defaults["guidance"] if guidance is None else guidance, negative or {}),
                (drawn if noise is None else noise).to(self.device),
                self.diffusion.schedule,
                defaults["steps"] if steps is None else steps,
                generators=sources,
                callback=callback,
                **{**own, **(options or {})},
            )
        expected = tuple((drawn if noise is None else noise).shape)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != expected:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise PluginError(f"the sampler {named} gave {got}; expected latents of shape {expected}")
        return latents

    def _sampler(self, name: str) -> Sampler:
        if name not in self.samplers:
            raise UsageError(f"no sampler is called {name!r}", hint=f"there are {', '.join(sorted(self.samplers))}")
        return self.samplers[name]

    def _denoiser(
        self, batch: Batch, size: tuple[int, int] | None, guidance: Guidance, negative: Mapping[str, Tensors]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_t, t) -> x_0, guided: the branches that guidance needs, each encoded once."""
        canvas = self.canvas(size)
        present = frozenset(slot for slot in self.conditioners if bool(batch.present[slot].any()))
        self._check_absent(present)
        weights = guiding.parse(guidance, tuple(self.conditioners), self.conditioners.dropout.trained)
        merged: dict[frozenset[str], float] = {}
        for kept, weight in weights.items():  # a slot without a value is null in every branch
            merged[kept & present] = merged.get(kept & present, 0.0) + weight
        self._check_branches(kept for kept, weight in merged.items() if weight)
        branches = {kept: self._branch(batch, canvas, kept, negative) for kept, weight in merged.items() if weight}
        return guiding.guided(self._conditional, branches, {kept: merged[kept] for kept in branches})

    def _conditional(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.diffusion.to_x0(self.denoiser(noisy, timestep, **conditioning.kwargs()), noisy, timestep)

    def _branch(
        self, batch: Batch, canvas: Canvas, kept: frozenset[str], negative: Mapping[str, Tensors] | None = None
    ) -> Conditioning:
        rows = len(batch)
        moved = batch.to(self.device)
        dropped = {slot: torch.full((rows,), slot not in kept) for slot in self.conditioners}
        result: Conditioning = self.conditioners(
            moved.prepared, moved.present, canvas, rows, dropped=dropped, negative=negative or {}
        )
        return result

    def _check_absent(self, present: frozenset[str]) -> None:
        absent = frozenset(self.conditioners) - present
        if absent and absent not in self.conditioners.dropout.trained:
            names = "+".join(slot for slot in self.conditioners if slot in absent)
            raise UsageError(
                f"no value was given for {names}, and training never showed the model a picture without",
                hint=f"give one, or train with `dropout: {{{names}: 0.1}}`",
            )

    def _check_branches(self, branches: Iterable[frozenset[str]]) -> None:
        """What guidance leaves out and what was not given, together, were dropped in training."""
        for kept in branches:
            missing = frozenset(self.conditioners) - kept
            if missing and missing not in self.conditioners.dropout.trained:
                names = "+".join(slot for slot in self.conditioners if slot in missing)
                raise UsageError(
                    f"with the values given, this guidance needs a picture without {names}, which training never showed",
                    hint=f"give more values, turn guidance off (1), or train with `dropout: {{{names}: 0.1}}`",
                )

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


def to_pil(images: Tensor) -> list[Image]:
    """Images (b, c, h, w) in [-1, 1] as Pillow images: grey for one channel, else the first three as RGB."""
    from PIL import Image

    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row[..., 0] if row.shape[2] < 3 else row[..., :3]) for row in pixels]
