"""Distances and overlaps of feature distributions besides Frechet's: KID, Inception score, precision and recall."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.features import extractor
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.metrics.frechet import features_of
from ldmkit.evaluation.results import Figure
from ldmkit.random import generator

CHUNK = 1024  # rows of a table of distances at a time


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased squared MMD of features (n, d), (n, d) under the kernel (x y / d + 1)^3, in float64.

    Binkowski et al., arXiv 1801.01401, section 4.
    """
    a, b = a.double(), b.double()
    n, m, d = len(a), len(b), a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / d + 1) ** 3

    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `polynomial_mmd` over `subsets` pairs of `size` rows drawn without replacement.

    `a` (n, d) and `b` (m, d) are features; `size` is at most as many as there are. Raises `UsageError` for fewer than
    two rows.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise UsageError(f"KID needs at least 2 images on each side; there are {len(a)} and {len(b)}")
    source = generator(seed, "kid", 0)
    values = []
    for _ in range(subsets):
        rows = [torch.randperm(len(each), generator=source)[:size] for each in (a, b)]
        values.append(polynomial_mmd(a[rows[0]], b[rows[1]]))
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std(correction=0))


def inception_score(logits: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(E KL(p(y|x) || p(y))), of logits (n, k) in the order given.

    Salimans et al., arXiv 1606.03498, section 4. Raises UsageError for fewer images than splits.
    """
    logits = logits.double()
    scores = []
    for index in range(splits):
        part = logits[index * len(logits) // splits : (index + 1) * len(logits) // splits]
        if len(part) == 0:
            raise UsageError(f"an Inception score of {splits} splits needs as many images; there are {len(logits)}")
        p, log_p = part.softmax(1), part.log_softmax(1)
        scores.append(float((p * (log_p - p.mean(0, keepdim=True).log())).sum(1).mean().exp()))
    found = torch.tensor(scores, dtype=torch.float64)
    return float(found.mean()), float(found.std(correction=0))


def radii(features: Tensor, k: int) -> Tensor:
    """(n,) the distance of each of features (n, d) to its k-th nearest other one. Raises UsageError where n <= k."""
    if len(features) <= k:
        raise UsageError(f"neighbourhoods of {k} need more than {k} images; there are {len(features)}")
    parts = [torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in torch.split(features, CHUNK)]
    return torch.cat(parts)


def inside(queries: Tensor, features: Tensor, reach: Tensor) -> Tensor:
    """(n, m) bool: whether query i (n, d) lies within `reach` (m,) of feature j (m, d)."""
    parts = [torch.cdist(part, features) <= reach for part in torch.split(queries, CHUNK)]
    return torch.cat(parts)


def overlap(samples: Tensor, real: Tensor, *, k: int = 3) -> dict[str, Tensor]:
    """Precision (n,) of each sample, recall (m,) and coverage (m,) of each real image, and the samples' density (n,).

    Features (n, d), (m, d). Precision: within the k-neighbourhood of a real image; recall: the other way (Kynkaanniemi et al.,
    arXiv 1904.06991). Density: how many real neighbourhoods hold it, over k; coverage: whether any sample lies in that of a real
    image (Naeem et al., arXiv 2002.09797). Means over n or m are the published figures.
    """
    samples, real = samples.double(), real.double()
    near = inside(samples, real, radii(real, k))
    back = inside(real, samples, radii(samples, k))
    return {
        "precision": near.any(1).double(),
        "recall": back.any(1).double(),
        "density": near.double().sum(1) / k,
        "coverage": near.any(0).double(),
    }


class KID(Metric):
    """Kernel Inception distance: the unbiased MMD of features, which needs fewer images than FID.

    Args:
        features, weights: as in `fid`.
        subsets, size: pairs of so many images that it is the mean over.
    """

    def __init__(
        self, *, features: str = "inception", weights: str | None = None, subsets: int = 100, size: int = 1000
    ) -> None:
        self.features, self.weights, self.subsets, self.size = features, weights, subsets, size

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        extract = extractor(self.features, self.weights)
        truth = features_of(evaluation, extract, evaluation.truth)

        def distance(images: Tensor) -> tuple[float, float]:
            own = features_of(evaluation, extract, images)
            return kernel_distance(own, truth, subsets=self.subsets, size=self.size, seed=evaluation.seed)

        value, spread = distance(evaluation.generated)
        return [
            evaluation.figure(
                "kid",
                1000 * value,
                title=f"KID x 1000 ({extract.name})",
                better="lower",
                beside={"reconstructions": 1000 * distance(evaluation.reconstructions)[0]},
                note=f"Mean over {self.subsets} subsets of {min(self.size, len(truth), evaluation.n)}, which spread by "
                f"{1000 * spread:.3f}; images {extract.resized}. Unbiased: around 0, and below, where nothing differs.",
            )
        ]


class InceptionScore(Metric):
    """Inception score of the samples, beside that of held-out images.

    Args:
        weights: of Inception, as in `fid`.
        splits: parts that it is the mean over; as many as published: 10.
    """

    def __init__(self, *, weights: str | None = None, splits: int = 10) -> None:
        self.weights, self.splits = weights, splits

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        extract = extractor("inception", self.weights)

        def logits(images: Tensor) -> Tensor:
            found = []
            with torch.no_grad():
                for part in evaluation.chunks("classes", len(images)):
                    out = extract(images[part].to(evaluation.device)).logits
                    assert out is not None
                    found.append(out.cpu())
            return torch.cat(found)

        value, spread = inception_score(logits(evaluation.generated), splits=self.splits)
        note = f"{self.splits} splits, which spread by {spread:.2f}. It knows the classes of ImageNet, and no others."
        beside = {"held-out pictures": inception_score(logits(evaluation.truth), splits=self.splits)[0]}
        return [evaluation.figure("inception-score", value, title="Inception score", beside=beside, note=note)]


class PrecisionRecall(Metric):
    """Precision, recall, density and coverage of the samples in a space of features.

    Args:
        features, weights: as in `fid`.
        neighbours: k; 3 as published for precision and recall, 5 for density and coverage.
    """

    def __init__(self, *, features: str = "inception", weights: str | None = None, neighbours: int = 3) -> None:
        self.features, self.weights, self.neighbours = features, weights, neighbours

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        extract = extractor(self.features, self.weights)
        real = features_of(evaluation, extract, evaluation.truth)
        own = overlap(features_of(evaluation, extract, evaluation.generated), real, k=self.neighbours)
        decoded = overlap(features_of(evaluation, extract, evaluation.reconstructions), real, k=self.neighbours)
        notes = {
            "precision": "The share of samples that lie where real images do.",
            "recall": "The share of real images that lie where samples do.",
            "density": "How many real neighbourhoods a sample lies in, over k; near 1 for real images.",
            "coverage": "The share of real images with a sample in their neighbourhood.",
        }
        return [
            evaluation.figure(
                name,
                own[name],
                title=f"{name} ({extract.name})",
                unit="" if name == "density" else "fraction",
                beside={"reconstructions": float(decoded[name].mean())},
                differences={},
                note=f"{note} Neighbourhoods reach to the {self.neighbours}. nearest; images {extract.resized}.",
            )
            for name, note in notes.items()
        ]
