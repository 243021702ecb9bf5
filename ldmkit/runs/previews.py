"""Contact sheets while a run trains: always the same held-out conditions and seeds, always at ``samples/latest.png``."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, batches
from ldmkit.evaluation.images import Example, save, sheet, to_pil
from ldmkit.evaluation.pictures import preview
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.recipe import Recipe
from ldmkit.training.logging.log import Log

STEPS = 25  # of the sampler, at most: what is looked at in passing may be a little worse


class Previews:
    """Draws what `model` makes now of the first held-out samples.

    Args:
        folder: the run's directory; the sheets go to ``samples/latest.png`` and ``samples/steps/``.
        log: shows them too.
    """

    def __init__(
        self, folder: Path, model: LatentDiffusion, validation: Dataset, recipe: Recipe, log: Log | None = None
    ) -> None:
        self.folder, self.model, self.validation, self.recipe = folder / "samples", model, validation, recipe
        self.log = log

    @cached_property
    def batch(self) -> Batch:
        """The first held-out samples, in a fixed order."""
        count = self.recipe.sample.count if self.validation.count is None else self.validation.count
        rows = min(count, self.recipe.sample.count)
        seed = self.recipe.seed
        return next(iter(batches(self.validation, self.model.conditioners, start=0, batch=rows, seed=seed, steps=1)))

    @torch.no_grad()
    def reconstructions(self, step: int) -> None:
        """Held-out pictures beside what the autoencoder makes of them."""
        images = self.batch.images.to(self.model.autoencoder.latent_scale.device)
        decoded = self.model.autoencoder.decode(self.model.autoencoder.encode(images))
        pairs = zip(self.batch.images, decoded, strict=True)
        examples = [Example([("held out", to_pil(a)), ("reconstruction", to_pil(b))]) for a, b in pairs]
        self._write(sheet(examples, title=f"autoencoder, step {step}"), "autoencoder", step)

    @torch.no_grad()
    def samples(self, step: int) -> None:
        """Held-out conditions beside a sample for each, and the truth."""
        asked = self.recipe.sample
        made = self.model.sample_batch(self.batch, seed=asked.seed, steps=min(asked.steps, STEPS))
        conditioners = self.model.conditioners
        examples = []
        for row in range(len(self.batch)):
            there = {s for s, present in self.batch.present.items() if present[row]}  # the others carry another row's
            tensors = {
                s: {k: v[row] for k, v in p.items()} if p is not None and s in there else None
                for s, p in self.batch.prepared.items()
            }
            seen, words = preview(conditioners, tensors)
            truth = ("held out", to_pil(self.batch.images[row]))
            examples.append(Example([*seen, ("sample", to_pil(made[row])), truth], words))
        self._write(sheet(examples, title=f"diffusion, step {step}"), "diffusion", step)

    def _write(self, page: Image.Image, stage: str, step: int) -> None:
        try:
            save(page, self.folder / "latest.png")
            kept = self.folder / "steps" / f"{stage}-{step:08d}.png"
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(self.folder / "latest.png", kept)
            if self.log is not None:
                self.log.picture(step, page, kept)
        except OSError as error:  # a full disk ends the run at the next checkpoint
            if self.log is not None:
                self.log.trouble("a sheet of samples", error)
