"""What the autoencoder keeps of an image."""

from __future__ import annotations

from ldmkit.autoencoder.perceptual import Backbone
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.metrics.perceptual import STAND_IN, perceptual_distance, perceptual_network
from ldmkit.evaluation.metrics.similarity import psnr, ssim
from ldmkit.evaluation.results import Figure


class Reconstruction(Metric):
    """PSNR, SSIM and LPIPS of held-out pictures after encoding and decoding.

    Args:
        net, weights: of LPIPS; `weights` null leaves LPIPS out.
    """

    looks_at_samples = False

    def __init__(self, *, net: Backbone = "alex", weights: str | None = "random") -> None:
        self.net, self.weights = net, weights

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        truth, decoded = evaluation.truth, evaluation.reconstructions
        note = "Held-out images after encoding and decoding: what the autoencoder alone loses of them."
        figures = [
            evaluation.figure(
                "reconstruction-psnr", psnr(decoded, truth), title="reconstruction PSNR", unit="dB", note=note
            ),
            evaluation.figure("reconstruction-ssim", ssim(decoded, truth), title="reconstruction SSIM", note=note),
        ]
        if self.weights is not None:
            network = perceptual_network(self.net, self.weights).to(evaluation.device)
            figures.append(
                evaluation.figure(
                    "reconstruction-lpips",
                    perceptual_distance(network, decoded, truth, evaluation),
                    title=f"reconstruction {network.label}",
                    better="lower",
                    note=f"{note} {STAND_IN}" if self.weights == "random" else note,
                )
            )
        return figures
