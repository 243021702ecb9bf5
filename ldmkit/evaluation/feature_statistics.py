"""Means and covariances of features, gathered a batch at a time, kept in the field's own file format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmkit.errors import DataError, UsageError
from ldmkit.evaluation.features import FeatureExtractor
from ldmkit.evaluation.images import to_tensor
from ldmkit.files import replacing

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class FeatureStatistics:
    """Count, mean (d,) and covariance (d, d) of features, in float64; no batch is kept.

    Around the first batch's mean, so that large means cost no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._centre = self._sum = self._products = torch.zeros(0)

    def add(self, features: Tensor) -> None:
        """Features (b, d) more."""
        features = features.double().cpu()
        if self.count == 0:
            self._centre = features.mean(0)
            self._sum = torch.zeros_like(self._centre)
            self._products = torch.zeros(len(self._centre), len(self._centre), dtype=torch.float64)
        centred = features - self._centre
        self.count += len(features)
        self._sum += centred.sum(0)
        self._products += centred.T @ centred

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Those of features (n, d)."""
        found = cls()
        found.add(features)
        return found

    @property
    def mean(self) -> Tensor:
        """(d,)"""
        return self._centre + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(d, d), with n - 1. `UsageError` for fewer than two rows."""
        if self.count < 2:
            raise UsageError(f"a Frechet distance needs at least 2 pictures on each side; there are {self.count}")
        return (self._products - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)

    def save(self, path: Path) -> None:
        """An .npz with ``mu``, ``sigma`` and ``count``, in one piece: what pytorch-fid and others read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:  # numpy appends a suffix to a name
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), count=self.count)

    @classmethod
    def load(cls, path: Path) -> FeatureStatistics:
        """Reads such a file, also one without ``count``. Raises `DataError`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
                count = int(file["count"]) if "count" in file else 0
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"no statistics of features: {error}", hint="an .npz with mu and sigma", where=str(path)
            ) from error
        found = cls()
        found.count, found._centre, found._sum = max(count, 2), mean, torch.zeros_like(mean)
        found._products = covariance * (found.count - 1)
        return found


def frechet(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al., arXiv 1706.08500, equation 6).

    The trace of the root is taken from the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: no complex numbers.
    Raises UsageError for statistics of features of different widths.
    """
    if a.mean.shape != b.mean.shape:
        raise UsageError(f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return max(0.0, float(means + a.covariance.trace() + b.covariance.trace() - 2 * cross))


def reference(
    place: Path, extract: FeatureExtractor, *, device: torch.device, channels: int, tick: Callable[[int, int], None]
) -> FeatureStatistics:
    """The statistics of a directory of images, or of an .npz; those of a directory are kept beside the user's caches.

    Images are read one at a time as they are stored (an extractor resizes them), so that any number of them fits into memory.
    Raises `DataError` where there are none.
    """
    if place.is_file():
        return FeatureStatistics.load(place)
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS) if place.is_dir() else []
    if len(files) < 2:
        raise DataError(
            f"{place} has no images to compare with", hint="a directory of images, or an .npz with mu and sigma"
        )
    kept = _cache() / f"{_digest(files, extract)}.npz"
    if kept.is_file():
        return FeatureStatistics.load(kept)
    found = FeatureStatistics()
    with torch.no_grad():
        for done, features in enumerate(_read(files, extract, device, channels), start=1):
            tick(done, len(files))
            found.add(features)
    found.save(kept)
    return found


def _read(files: Iterable[Path], extract: FeatureExtractor, device: torch.device, channels: int) -> Iterator[Tensor]:
    for path in files:
        try:
            with Image.open(path) as image:
                tensor = to_tensor(image, channels)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"an image cannot be read: {error}", where=str(path)) from error
        yield extract(tensor[None].to(device)).features


def _digest(files: Iterable[Path], extract: FeatureExtractor) -> str:
    """Changes with the files and with the features."""
    found = hashlib.sha256(f"{extract.name} {extract.resized}".encode())
    for path in files:
        about = path.stat()
        found.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return found.hexdigest()[:32]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ldmkit" / "statistics"
