"""What an encoder says about an image: q(z|x), and what an autoencoder returns while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Range of the log-variance in the original code; exp stays finite in half precision's exponent range of float32 sums.
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the unscaled latent, or a point where `logvar` is None (VQ, identity)."""

    mean: Tensor  # (b, c, h, w)
    logvar: Tensor | None = None  # (b, c, h, w), within LOGVAR_RANGE

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Mean and log-variance side by side, (b, 2 c, h, w), as the encoder of a KL autoencoder emits them."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def mode(self) -> Tensor:
        """The most likely latent (b, c, h, w)."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """mean + standard deviation * noise; a point ignores the noise. (b, c, h, w)."""
        if self.logvar is None:
            return self.mean
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) in nats, summed over the latent of each image: (b,). Zero for a point."""
        if self.logvar is None:
            return self.mean.new_zeros(len(self.mean))
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class Reconstruction:
    """One training pass through an autoencoder."""

    images: Tensor  # (b, c, h, w)
    posterior: Posterior
    terms: dict[str, Tensor]  # scalars: what the regularizer wants in the loss, and what it reports
