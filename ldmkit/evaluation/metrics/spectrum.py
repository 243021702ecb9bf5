"""The radial power spectrum: whether a picture has as much fine detail as real ones, wherever that detail lies."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure
from ldmkit.evaluation.statistics import bootstrap_interval


def radial_spectra(images: Tensor) -> Tensor:
    """(n, k) power of images (n, c, h, w) at radial frequency 1..k cycles an image, k = half the smaller side.

    Channels are averaged to grey; a Hann window keeps the picture's edges, which are no edges in the scene, out of the spectrum.
    """
    grey = images.double().mean(dim=1)
    grey = grey - grey.mean(dim=(1, 2), keepdim=True)
    height, width = grey.shape[-2:]
    window = torch.outer(*(torch.hann_window(side, periodic=True, dtype=torch.float64) for side in (height, width)))
    power = torch.fft.fft2(grey * window).abs().square()
    side = min(height, width)
    vertical, horizontal = (torch.fft.fftfreq(s, d=1.0, dtype=torch.float64) * side for s in (height, width))
    ring = torch.hypot(vertical[:, None], horizontal[None, :]).round().long()
    rings = side // 2
    sums = torch.zeros(len(power), int(ring.max()) + 1, dtype=torch.float64)
    sums = sums.index_add(1, ring.flatten(), power.flatten(1))
    counts = torch.bincount(ring.flatten(), minlength=sums.shape[1]).clamp(min=1)
    return (sums / counts)[:, 1 : rings + 1]


def radial_spectrum(images: Tensor) -> Tensor:
    """(k,) the mean of `radial_spectra` over the images."""
    return radial_spectra(images).mean(dim=0)


def decibels(power: Tensor) -> Tensor:
    """10 log10 of power of any shape, in dB; below 1e-12 as at 1e-12, safe at zero."""
    return 10 * torch.log10(power.clamp(min=1e-12))


def spectral_distance(images: Tensor, truth: Tensor) -> float:
    """Root mean square difference in dB of the radial spectra of images (n, c, h, w); frequencies count the same."""
    return apart(radial_spectrum(images), radial_spectrum(truth))


def apart(power: Tensor, other: Tensor) -> float:
    """Root mean square difference in dB of two spectra (k,)."""
    return float((decibels(power) - decibels(other)).square().mean().sqrt())


class Spectrum(Metric):
    """Distance of the generated pictures' radial power spectrum to that of real ones, beside bicubic's."""

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        count = evaluation.distinct
        powers = {"held-out pictures": evaluation.truth, "samples": evaluation.generated}
        if evaluation.baseline is not None:
            powers["bicubic"] = evaluation.baseline[:count]
        powers["reconstruction"] = evaluation.reconstructions
        spectra = {name: radial_spectra(images) for name, images in powers.items()}
        truth, own = spectra["held-out pictures"], spectra["samples"]
        others = {name: power for name, power in spectra.items() if name not in ("held-out pictures", "samples")}

        def difference(other: Tensor) -> tuple[float, float]:
            def statistic(rows: Tensor) -> float:
                real = truth[rows].mean(0)
                return apart(own[rows].mean(0), real) - apart(other[rows].mean(0), real)

            return bootstrap_interval(statistic, evaluation.groups[:count], seed=evaluation.seed)

        return [
            evaluation.figure(
                "spectrum",
                apart(own.mean(0), truth.mean(0)),
                title="spectrum distance",
                unit="dB",
                better="lower",
                beside={name: apart(power.mean(0), truth.mean(0)) for name, power in others.items()},
                differences={name: difference(power) for name, power in others.items()},
                baseline="bicubic" if evaluation.baseline is not None else None,
                note="How far the power at each spatial frequency is from that of real images. Blur lacks power at high "
                "frequencies, noise has too much; 0 is the same amount of detail.",
                series={name: tuple(decibels(power.mean(0)).tolist()) for name, power in spectra.items()},
                axes=("cycles an image", "power (dB)"),
            )
        ]
