"""What the autoencoder keeps of an image, and how much of its codebook it uses (arXiv 2112.10752, table 8)."""

from __future__ import annotations

import torch

from ldmkit.autoencoder import VQAutoencoder
from ldmkit.autoencoder.perceptual import Backbone
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.metrics.perceptual import STAND_IN, perceptual_distance, perceptual_network
from ldmkit.evaluation.metrics.similarity import psnr, ssim
from ldmkit.evaluation.results import Figure


class Reconstruction(Metric):
    """PSNR, SSIM and LPIPS of held-out images after encoding and decoding; of a codebook its perplexity and codes in use.

    Args:
        net, weights: of LPIPS; `weights` null leaves LPIPS out.
    """

    asks = "autoencoder"

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
        if isinstance(autoencoder := evaluation.model.autoencoder, VQAutoencoder):
            figures += codebook_figures(evaluation, autoencoder)
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


def codebook_figures(evaluation: Evaluation, autoencoder: VQAutoencoder) -> list[Figure]:
    """The share of the codes that held-out images use, and the perplexity of their use: exp of its entropy."""
    counts = torch.zeros(autoencoder.quantize.codes, dtype=torch.float64)
    for part in evaluation.chunks("codes", evaluation.distinct):
        codes = autoencoder.quantize.indices(evaluation.posterior.mean[part].to(evaluation.device))
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    perplexity = float((-(shares * shares.log()).sum()).exp())
    n = evaluation.distinct
    note = f"Of {len(counts)} codes, over {int(counts.sum())} positions of held-out images."
    used = len(shares) / len(counts)
    return [
        evaluation.figure("codes-in-use", used, title="codes in use", unit="fraction", note=note, n=n),
        evaluation.figure(
            "codebook-perplexity",
            perplexity,
            title="codebook perplexity",
            note=f"{note} As many codes used equally.",
            n=n,
        ),
    ]
