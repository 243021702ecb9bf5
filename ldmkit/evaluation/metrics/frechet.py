"""Frechet distances of feature distributions (Heusel et al., arXiv 1706.08500): of samples, and of reconstructions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.feature_statistics import FeatureStatistics, frechet, reference
from ldmkit.evaluation.features import FeatureExtractor, Timm, extractor
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The distance of two sets of features (n, d), (m, d), in float64. Raises `UsageError` for fewer than two rows."""
    return frechet(FeatureStatistics.of(a), FeatureStatistics.of(b))


class Distance(Metric):
    """What the metrics here share: features of samples, held-out and training images, and of a reference.

    Args:
        features: ``inception`` (the published measure), or a backbone of timm.
        weights: a file; ``pretrained`` or ``random`` for a backbone of timm; None: as the features have them.
        reference: a directory of images or an .npz of statistics to compare with instead of the held-out images.
    """

    title, name = "FID", "fid"

    def __init__(
        self, *, features: str = "inception", weights: str | None = None, reference: str | None = None
    ) -> None:
        self.features, self.weights, self.reference = features, weights, reference

    def extractor(self) -> FeatureExtractor:
        """What the images are compared in."""
        return extractor(self.features, self.weights)

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        extract = self.extractor()
        truth = self._compared_with(evaluation, extract)
        beside = {"reconstructions": self.distance(evaluation, extract, evaluation.reconstructions, truth)}
        training = FeatureStatistics()
        count = evaluation.train.count
        total = evaluation.distinct if count is None else min(evaluation.distinct, count)
        for part in evaluation.chunks("reading training pictures", total):
            images = torch.stack([evaluation.train.readable(item)["image"] for item in range(part.start, part.stop)])
            training.add(features_of(evaluation, extract, images))
        if training.count > 1:
            beside = {"training pictures": frechet(training, truth), **beside}
        return [
            evaluation.figure(
                self.name,
                self.distance(evaluation, extract, evaluation.generated, truth),
                title=f"{self.title} ({extract.name})",
                better="lower",
                beside=beside,
                note=self._note(extract, evaluation, truth),
            )
        ]

    def _note(self, extract: FeatureExtractor, evaluation: Evaluation, truth: FeatureStatistics) -> str:
        other = f"those of {Path(self.reference).name}" if self.reference else f"{truth.count} held-out images"
        return (
            f"{len(truth.mean)} features, {evaluation.n} samples against {other}; images {extract.resized}, never through JPEG. "
            "With fewer images it is biased upwards (published ones take 50,000), so compare it with that of training images."
        )

    def _compared_with(self, evaluation: Evaluation, extract: FeatureExtractor) -> FeatureStatistics:
        if self.reference is None:
            return FeatureStatistics.of(features_of(evaluation, extract, evaluation.truth))

        def tick(done: int, total: int) -> None:
            evaluation.check()
            evaluation.progress("reference images", done, total)

        channels = evaluation.truth.shape[1]
        place = Path(self.reference).expanduser()
        return reference(place, extract, device=evaluation.device, channels=channels, tick=tick)

    def distance(
        self, evaluation: Evaluation, extract: FeatureExtractor, images: Tensor, truth: FeatureStatistics
    ) -> float:
        """Of images (n, c, h, w) to the statistics `truth`."""
        return frechet(FeatureStatistics.of(features_of(evaluation, extract, images)), truth)


class FID(Distance):
    """The published FID: Inception's features of samples against held-out images or a reference."""


class ReconstructionFID(Distance):
    """R-FID: Inception's features of held-out images after encoding and decoding, against the held-out images themselves."""

    asks = "autoencoder"
    title, name = "R-FID", "reconstruction-fid"

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        extract = self.extractor()
        truth = self._compared_with(evaluation, extract)
        value = self.distance(evaluation, extract, evaluation.reconstructions, truth)
        return [
            evaluation.figure(
                self.name,
                value,
                title=f"R-FID ({extract.name})",
                better="lower",
                note=f"{evaluation.distinct} reconstructions of held-out images; images {extract.resized}, never through JPEG.",
                n=evaluation.distinct,
            )
        ]


class Frechet(Distance):
    """Distance of the samples' features to those of held-out pictures, beside that of as many training pictures.

    Args:
        backbone: a timm model.
        weights: ``random`` (seeded; says whether distributions differ, not how people see it), ``pretrained`` (timm's, from its
            cache or the hub), or a file.
        reference: as in `Distance`.
    """

    title, name = "Frechet distance", "frechet"

    def __init__(self, *, backbone: str = "resnet10t", weights: str = "random", reference: str | None = None) -> None:
        super().__init__(features=backbone, weights=weights, reference=reference)
        self.backbone = backbone

    def extractor(self) -> FeatureExtractor:
        return Timm(self.backbone, self.weights or "random")

    def _note(self, extract: FeatureExtractor, evaluation: Evaluation, truth: FeatureStatistics) -> str:
        return f"Not the published FID, which is Inception's. {super()._note(extract, evaluation, truth)}"


def features_of(evaluation: Evaluation, extract: FeatureExtractor, images: Tensor) -> Tensor:
    """(n, d) on the CPU of images (n, c, h, w), a chunk at a time."""
    found = []
    with torch.no_grad():
        for part in evaluation.chunks(f"features ({extract.name})", len(images)):
            found.append(extract(images[part].to(evaluation.device)).features.float().cpu())
    return torch.cat(found)
