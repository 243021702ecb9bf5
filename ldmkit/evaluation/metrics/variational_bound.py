"""The variational bound on held-out data, in bits per dimension of what the diffusion model models."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.autoencoder import IdentityAutoencoder, Posterior
from ldmkit.diffusion import Bound, variational_bound
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure
from ldmkit.latent_diffusion.sampling import Sampling, Settings
from ldmkit.random import generators


class VariationalBound(Metric):
    """How many bits a dimension the model needs to tell held-out latents, given their conditions (`variational_bound`).

    Without an autoencoder the dimensions are the pixels' 256 levels, as in the literature. Latents are numbers of any size, so
    their bits count from the latents' own scale, may be negative, and compare between models of one autoencoder alone.

    Args:
        steps: length of the chain, 1 to T, so many calls of the network a picture; a shorter chain bounds less tightly.
        count: held-out pictures.
    """

    asks = "model"

    def __init__(self, *, steps: int = 100, count: int = 64) -> None:
        self.steps, self.count = steps, count

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        count = min(self.count, evaluation.distinct)
        bounds = [self._bound(evaluation, part) for part in evaluation.chunks("variational bound", count)]
        prior, chain, last = (
            torch.cat([getattr(bound, name) for bound in bounds]).cpu()
            for name in ("prior", "diffusion", "reconstruction")
        )
        pixels = levels(evaluation) is not None
        what = "picture" if pixels else "latent"
        return [
            evaluation.figure(
                "variational-bound",
                prior + chain + last,
                title="variational bound",
                unit="bits/dim",
                better="lower",
                beside={"prior": prior, "chain": chain, "last step": last},
                note=f"An upper bound on what telling a held-out {what} costs, given its conditions, with a chain of "
                f"{self.steps} steps; beside it what it is the sum of."
                + ("" if pixels else " It compares between models of the same autoencoder and scale alone."),
            )
        ]

    def _bound(self, evaluation: Evaluation, part: slice) -> Bound:
        model = evaluation.model
        batch = evaluation.batch.select(range(part.start, part.stop)).to(evaluation.device)
        x0: Tensor = model.autoencoder.draw(Posterior(evaluation.posterior.mean[part].to(evaluation.device)))
        return variational_bound(
            Sampling(model, batch, model.size, Settings()).denoiser(),
            x0,
            model.diffusion.schedule,
            generators=generators(evaluation.seed, "bound", range(part.start, part.stop)),
            steps=self.steps,
            levels=levels(evaluation),
        )


def levels(evaluation: Evaluation) -> int | None:
    """256 where the diffusion model's data are the pixels as they are stored."""
    autoencoder = evaluation.model.autoencoder
    if not isinstance(autoencoder, IdentityAutoencoder):
        return None
    as_they_are = bool((autoencoder.latent_scale == 1).all()) and not bool(autoencoder.latent_shift.any())
    return 256 if as_they_are else None
