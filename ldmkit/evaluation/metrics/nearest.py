"""Distance to the nearest training picture: whether the model paints, or repeats what it was shown."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure

LEVELS = 127.5  # [-1, 1] -> 8-bit grey levels


def small(images: Tensor, side: int) -> Tensor:
    """(n, c * h * w) of pictures whose smaller side is reduced to at most `side` pixels by area averaging."""
    height, width = images.shape[-2:]
    shrink = max(1.0, min(height, width) / side)
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return F.interpolate(images, size, mode="area").flatten(1)


def nearest(queries: Tensor, references: Tensor, *, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Root mean square distance (n,) of queries (n, d) to the nearest of references (m, d), and its index (n,).

    The product form ||a||^2 - 2ab + ||b||^2 finds the neighbour; the distance is then taken directly, so that an exact copy
    is at 0 and not at the rounding error of the product.
    """
    norms = references.square().sum(1)
    index = torch.cat([(norms - 2 * part @ references.T).argmin(1) for part in torch.split(queries, chunk)])
    return (queries - references[index]).square().mean(1).sqrt(), index


class Nearest(Metric):
    """Distance of the generated pictures to the nearest training picture, beside that of held-out pictures.

    Args:
        side: pictures are compared at this many pixels (area averaged), so that noise does not hide a copy.
        pictures: the most training pictures to look through, drawn without selection.
        quantile: a sample is called near when it is nearer than this share of the held-out pictures are.
    """

    def __init__(self, *, side: int = 16, pictures: int = 2048, quantile: float = 0.01) -> None:
        self.side, self.pictures, self.quantile = side, pictures, quantile

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        items, references = evaluation.training_pictures(self.pictures, lambda images: small(images, self.side))
        own, index = nearest(small(evaluation.generated, self.side), references)
        evaluation.neighbours = [(items[j], float(d) * LEVELS) for j, d in zip(index.tolist(), own, strict=True)]
        held_out, _ = nearest(small(evaluation.truth, self.side), references)
        threshold = torch.quantile(held_out, self.quantile)
        common = (
            f"Root mean square difference at {self.side} pixels a side to the nearest of {len(references)} training "
            "pictures."
        )
        return [
            evaluation.figure(
                "nearest",
                float(own.median()) * LEVELS,
                title="distance to the nearest training picture",
                unit="grey levels",
                beside={"held-out pictures": float(held_out.median()) * LEVELS},
                note=f"{common} Medians. Samples as far away as real pictures the model never saw are no copies.",
            ),
            evaluation.figure(
                "near-copies",
                (own < threshold).double(),
                title="samples nearer to a training picture than real ones are",
                unit="fraction",
                better="lower",
                beside={"held-out pictures": (held_out < threshold).double()},
                note=f"{common} The threshold, {float(threshold) * LEVELS:.1f} grey levels, is passed by "
                f"{100 * self.quantile:g} % of the held-out pictures.",
            ),
        ]
