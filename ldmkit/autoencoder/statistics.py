"""The latent's mean and standard deviation as a measured artefact: with count, confidence interval, and whose weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.errors import DivergedError, UsageError

# Half-width of a 95 % interval in standard errors, for a mean over many images.
Z95 = 1.959964
HASH_BYTES = 32


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel, over `count` images of unscaled latents. `*_interval` are half-widths of 95 % confidence intervals.

    The interval treats images, not pixels, as independent: neighbouring latent pixels of one image say much the same.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean_interval: tuple[float, ...]
    std_interval: tuple[float, ...]
    weights: str = ""  # SHA-256 of the autoencoder that made the latents; empty where unknown

    @property
    def overall_std(self) -> float:
        """Standard deviation over the entries of all channels together, the paper's (section G) sigma."""
        centre = sum(self.mean) / len(self.mean)
        second = [std**2 + (mean - centre) ** 2 for mean, std in zip(self.mean, self.std, strict=True)]
        return math.sqrt(sum(second) / len(second))

    def scaling(self, scale: str | float) -> tuple[Tensor, Tensor]:
        """(shift, factor), each (c,), for `std`, `per-channel` or a number; see `Autoencoder.set_statistics`.

        Raises:
            DivergedError: a standard deviation of zero or not finite, as constant or broken images give.
            UsageError: another word, or a number that is not positive.
        """
        channels = len(self.mean)
        if isinstance(scale, int | float):
            if not (scale > 0 and math.isfinite(scale)):
                raise UsageError(f"scale is {scale}; it must be a positive number, std or per-channel")
            return torch.zeros(channels), torch.full((channels,), float(scale))
        if scale == "std":
            return torch.zeros(channels), torch.full((channels,), 1 / _usable(self.overall_std, "all channels", self))
        if scale == "per-channel":
            stds = [_usable(std, f"channel {channel}", self) for channel, std in enumerate(self.std)]
            return torch.tensor(self.mean), 1 / torch.tensor(stds)
        raise UsageError(f"scale is {scale!r}; allowed are std, per-channel or a number")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with the overall standard deviation."""
        return {**asdict(self), "overall_std": self.overall_std}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentStatistics:
        """The inverse of `to_dict`."""
        rows = {key: tuple(values[key]) for key in ("mean", "std", "mean_interval", "std_interval")}
        return cls(count=int(values["count"]), weights=str(values.get("weights", "")), **rows)


class Moments:
    """Sums over images, added up batch by batch in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | None = (
            None  # (5, c): of p, q, p p, p q, q q, where p is an image's mean and q its mean square
        )

    def add(self, latents: Tensor) -> None:
        """Take in unscaled latents (b, c, h, w). Raises UsageError for another number of dimensions."""
        if latents.dim() != 4:
            raise UsageError(f"latents have shape {tuple(latents.shape)}; expected (b, c, h, w)")
        values = latents.detach().double()
        p, q = values.mean(dim=(2, 3)), values.square().mean(dim=(2, 3))
        sums = torch.stack([p, q, p * p, p * q, q * q]).sum(dim=1).cpu()
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += len(latents)

    def result(self, weights: str = "") -> LatentStatistics:
        """Statistics of what was added.

        Raises:
            UsageError: nothing was added.
            DivergedError: latents that are not finite.
        """
        if self.sums is None or not self.count:
            raise UsageError("no latents to measure: the data gave not a single image")
        if not torch.isfinite(self.sums).all():
            raise DivergedError("the latents are not finite", hint="the autoencoder diverged: lower its learning rate")
        n = self.count
        p, q, pp, pq, qq = self.sums / n
        std = (q - p * p).clamp_min(0).sqrt()
        # Delta method: the variance q - p^2 moves with an image's y = q_i - 2 p p_i, the standard deviation with y / (2 std).
        y_variance = (qq - 4 * p * pq + 4 * p * p * pp) - (q - 2 * p * p) ** 2
        error = Z95 / math.sqrt(max(1, n - 1))
        mean_interval = error * (pp - p * p).clamp_min(0).sqrt()
        std_interval = error * y_variance.clamp_min(0).sqrt() / (2 * std).clamp_min(1e-12)
        rows = (p, std, mean_interval, std_interval)
        mean, std_, low, high = (tuple(float(value) for value in row) for row in rows)
        return LatentStatistics(n, mean, std_, low, high, weights)


def measure(latents: Iterable[Tensor], *, weights: str = "") -> LatentStatistics:
    """Statistics of batches of *unscaled* latents (b, c, h, w); `weights` is `autoencoder.weights_hash()`.

    Raises:
        UsageError: no latents, or not four dimensions.
        DivergedError: latents that are not finite.
    """
    moments = Moments()
    for batch in latents:
        moments.add(batch)
    return moments.result(weights)


class StatisticsBuffers(nn.Module):
    """Statistics as tensors, so that they travel with the weights whichever way those are stored."""

    values: Tensor
    count: Tensor
    weights: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(4, channels))  # mean, std, and the half-widths of their intervals
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # 0: nothing was measured
        self.register_buffer("weights", torch.zeros(HASH_BYTES, dtype=torch.uint8))

    def read(self) -> LatentStatistics | None:
        """What was written, or None."""
        if self.count.is_meta or not int(self.count):
            return None
        mean, std, mean_interval, std_interval = (tuple(row) for row in self.values.float().tolist())
        digest = bytes(self.weights.tolist())
        return LatentStatistics(
            int(self.count), mean, std, mean_interval, std_interval, digest.hex() if any(digest) else ""
        )

    def write(self, statistics: LatentStatistics) -> None:
        """Keep `statistics`."""
        rows = [statistics.mean, statistics.std, statistics.mean_interval, statistics.std_interval]
        self.values.copy_(torch.tensor(rows))
        self.count.fill_(statistics.count)
        digest = bytes.fromhex(statistics.weights) if statistics.weights else bytes(HASH_BYTES)
        self.weights.copy_(torch.frombuffer(bytearray(digest), dtype=torch.uint8))


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _usable(std: float, what: str, statistics: LatentStatistics) -> float:
    if not math.isfinite(std) or std < 1e-8:
        raise DivergedError(
            f"the standard deviation of the latents over {what} is {std:g} in {statistics.count} images: there is no scale",
            hint="constant images, or an encoder that collapsed: look at the reconstructions of stage one",
        )
    return std
