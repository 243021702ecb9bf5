"""LPIPS (Zhang et al., arXiv 1801.03924): distance between deep features."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.autoencoder.perceptual import LEAST_SIZE, Backbone, Perceptual
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.metrics.similarity import compared
from ldmkit.evaluation.results import Figure

STAND_IN = "The backbone's weights are random: a stand-in that compares structure, not the published measure."


class LPIPS(Metric):
    """LPIPS of the generated pictures against the truth, beside bicubic and the reconstruction.

    Args:
        net: the backbone.
        weights: ``imagenet`` (torchvision's, from its cache or the network), ``random`` (seeded; orders pictures by structure,
            and is no LPIPS), or the path of a file.
    """

    def __init__(self, *, net: Backbone = "alex", weights: str = "random") -> None:
        self.net, self.weights = net, weights

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        network = perceptual_network(self.net, self.weights).to(evaluation.device)
        own, beside = compared(evaluation, lambda a, b: perceptual_distance(network, a, b, evaluation))
        note = "Distance between deep features of sample and truth: closer to how people see it than PSNR."
        return [
            evaluation.figure(
                "lpips",
                own,
                title=network.label,
                better="lower",
                beside=beside,
                baseline="bicubic" if "bicubic" in beside else None,
                note=f"{note} {STAND_IN}" if self.weights == "random" else note,
            )
        ]


@lru_cache(maxsize=1)
def perceptual_network(net: Backbone, weights: str) -> Perceptual:
    """The network, kept for the next metric: drawing torchvision's weights takes longer than using them."""
    return Perceptual(net, weights)


def perceptual_distance(network: Perceptual, images: Tensor, truth: Tensor, evaluation: Evaluation) -> Tensor:
    """(n,) distance of pictures (n, c, h, w) in [-1, 1]; those too small for the backbone are enlarged by whole pixels."""
    factor = -(-LEAST_SIZE[network.net] // min(images.shape[-2:]))
    values = []
    with torch.no_grad():
        for part in evaluation.chunks("perceptual distance", len(images)):
            pair = [pictures[part].to(evaluation.device) for pictures in (images, truth)]
            if factor > 1:
                pair = [F.interpolate(pictures, scale_factor=factor, mode="nearest") for pictures in pair]
            values.append(network(*pair).cpu())
    return torch.cat(values)
