"""A perceptual term of stage two: what the prediction decodes to looks like the image, not only in the latent.

Berrada et al. 2024, "Boosting latent diffusion with perceptual objectives" (arXiv 2411.04873) compare features of the decoder;
here the decoded images are compared by features of a network for images, as the perceptual term of stage one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.autoencoder.perceptual import Backbone, Perceptual
from ldmkit.losses.base import DiffusionPass, DiffusionTerm


class PerceptualTerm(DiffusionTerm):
    """Distance between deep features of the decoded prediction of x_0 and of the decoded clean latents.

    A squared error in the latent is least for the mean of all images that fit, which is blurred; features punish blur. The
    decoder runs on every row with a gradient, which costs about as much as stage one's step without its encoder.

    Args:
        net: backbone of the features: `efficientnet-lite0` comes installed with the extra `samples`; `vgg`, `alex` and `squeeze`
            give LPIPS.
        weights: `imagenet`, `random`, or the path of a file with the backbone's weights.
    """

    def __init__(self, *, net: Backbone = "efficientnet-lite0", weights: str = "imagenet") -> None:
        super().__init__()
        self.distance = Perceptual(net, weights)

    def forward(self, given: DiffusionPass) -> Tensor:
        """(b,): the distance of each row."""
        with torch.no_grad():
            images = given.autoencoder.decode(given.latents)
        distances: Tensor = self.distance(given.autoencoder.decode(given.x0()), images)
        return distances
