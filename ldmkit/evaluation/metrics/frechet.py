"""Frechet distance of feature distributions (Heusel et al., arXiv 1706.08500, equation 6), with any timm backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.errors import OfflineError, UsageError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure
from ldmkit.hub import cache_unless_reached
from ldmkit.random import key

LEAST = 32  # pixels a side that a backbone is shown


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features (n, d), (m, d), in float64.

    The trace of the root is taken from the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: no complex numbers.
    Raises `UsageError` for fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise UsageError(f"a Frechet distance needs at least 2 pictures on each side; there are {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    covariance_a, covariance_b = _covariance(a), _covariance(b)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(means + covariance_a.trace() + covariance_b.trace() - 2 * cross))


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


class Frechet(Metric):
    """Distance of the samples' features to those of held-out pictures, beside that of as many training pictures.

    Args:
        backbone: a timm model.
        weights: ``random`` (seeded; says whether distributions differ, not how people see it) or ``pretrained`` (timm's, from its
            cache or the hub).
    """

    def __init__(self, *, backbone: str = "resnet10t", weights: Literal["random", "pretrained"] = "random") -> None:
        self.backbone, self.weights = backbone, weights

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        network = self.network().to(evaluation.device)
        truth = self._features(evaluation, network, evaluation.truth)
        count = evaluation.train.count
        items = range(len(truth) if count is None else min(len(truth), count))
        other = [evaluation.train.readable(item)["image"] for item in items]
        beside = {
            "training pictures": frechet_distance(self._features(evaluation, network, torch.stack(other)), truth),
            "reconstructions": frechet_distance(self._features(evaluation, network, evaluation.reconstructions), truth),
        }
        return [
            evaluation.figure(
                "frechet",
                frechet_distance(self._features(evaluation, network, evaluation.generated), truth),
                title=f"Frechet distance ({self.backbone}, {self.weights} weights)",
                better="lower",
                beside=beside,
                note=f"{truth.shape[1]} features, {evaluation.n} samples against {len(truth)} held-out pictures. Not the "
                "published FID, which is Inception's over 50,000 pictures; with so few it is biased upwards, so compare it "
                "with the figure of real training pictures.",
            )
        ]

    def network(self) -> nn.Module:
        """The backbone without its classifier, in eval mode. `OfflineError` where its weights are wanted and not there."""
        import timm

        make: Callable[..., nn.Module] = timm.create_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(0, f"frechet/{self.backbone}", 0))
            if self.weights == "random":
                return make(self.backbone, pretrained=False, num_classes=0).eval()
            about = timm.get_pretrained_cfg(self.backbone)
            name = (about and about.hf_hub_id) or self.backbone
            try:
                with cache_unless_reached(name):
                    return make(self.backbone, pretrained=True, num_classes=0).eval()
            except OSError as error:  # what huggingface-hub raises without a network and without the file
                raise OfflineError(
                    f"the weights of {self.backbone} are not here and cannot be fetched",
                    hint=f"where there is a network: hf download {name}, and bring ~/.cache/huggingface here; or give "
                    "`weights: random`",
                ) from error

    def _features(self, evaluation: Evaluation, network: nn.Module, images: Tensor) -> Tensor:
        out = []
        with torch.no_grad():
            for part in evaluation.chunks("Frechet features", len(images)):
                chosen = images[part]
                chosen = chosen.expand(-1, 3, -1, -1) if chosen.shape[1] == 1 else chosen[:, :3]
                if min(chosen.shape[-2:]) < LEAST:
                    chosen = F.interpolate(chosen, scale_factor=-(-LEAST // min(chosen.shape[-2:])), mode="nearest")
                out.append(network(chosen.to(evaluation.device)).float().cpu())
        return torch.cat(out)
