"""The radial power spectrum: whether a picture has as much fine detail as real ones, wherever that detail lies."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure


def radial_spectrum(images: Tensor) -> Tensor:
    """(k,) mean power of pictures (n, c, h, w) at radial frequency 1..k cycles a picture, k = half the smaller side.

    Channels are averaged to grey; a Hann window keeps the picture's edges, which are no edges in the scene, out of the spectrum.
    """
    grey = images.double().mean(dim=1)
    grey = grey - grey.mean(dim=(1, 2), keepdim=True)
    height, width = grey.shape[-2:]
    window = torch.outer(*(torch.hann_window(side, periodic=True, dtype=torch.float64) for side in (height, width)))
    power = torch.fft.fft2(grey * window).abs().square().mean(dim=0)
    side = min(height, width)
    vertical, horizontal = (torch.fft.fftfreq(s, d=1.0, dtype=torch.float64) * side for s in (height, width))
    ring = torch.hypot(vertical[:, None], horizontal[None, :]).round().long()
    rings = side // 2
    sums = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add(0, ring.flatten(), power.flatten())
    counts = torch.bincount(ring.flatten(), minlength=len(sums)).clamp(min=1)
    return (sums / counts)[1 : rings + 1]


def decibels(power: Tensor) -> Tensor:
    """10 log10, safe at zero."""
    return 10 * torch.log10(power.clamp(min=1e-12))


def spectral_distance(images: Tensor, truth: Tensor) -> float:
    """Root mean square difference in dB of the radial spectra, each frequency counting the same; 0 is equal."""
    return float((decibels(radial_spectrum(images)) - decibels(radial_spectrum(truth))).square().mean().sqrt())


class Spectrum(Metric):
    """Distance of the generated pictures' radial power spectrum to that of real ones, beside bicubic's."""

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        truth = evaluation.truth
        others = {"autoencoder bound": evaluation.reconstructions}
        if evaluation.baseline is not None:
            others = {"bicubic": evaluation.baseline[: len(truth)], **others}
        sets = {"held-out pictures": truth, "samples": evaluation.generated, **others}
        curves = {name: tuple(decibels(radial_spectrum(images)).tolist()) for name, images in sets.items()}
        return [
            evaluation.figure(
                "spectrum",
                spectral_distance(evaluation.generated, truth),
                title="spectrum distance",
                unit="dB",
                better="lower",
                beside={name: spectral_distance(images, truth) for name, images in others.items()},
                baseline="bicubic" if evaluation.baseline is not None else None,
                note="How far the power at each spatial frequency is from that of real pictures. Blur lacks power at high "
                "frequencies, noise has too much; 0 is the same amount of detail.",
                series=curves,
                axes=("cycles a picture", "power (dB)"),
            )
        ]
