"""Which code is nearest: exact, and never the whole N x K matrix of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.errors import DivergedError

# Entries of the distance matrix held at a time. On a CPU it is to stay in the cache; a GPU wants few, large products.
CPU_CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 26


def nearest_code(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest row of `codes` (k, c), Euclidean, for each row of `vectors` (n, c): (n,) int64, without gradient.

    The tree is exact. Products round: of codes whose squared distances differ by less than about 1e-6 of their squared
    lengths, either may be returned.

    Raises:
        DivergedError: a vector is not finite (checked where it costs nothing: on the CPU).
    """
    if vectors.is_meta or codes.is_meta:
        return torch.empty(len(vectors), dtype=torch.int64, device="meta")
    vectors, codes = vectors.detach().float(), codes.detach().float()
    if vectors.device.type == "cpu":
        if not torch.isfinite(vectors.sum()):
            raise DivergedError(
                "the encoder's output is not finite, so no code is nearest to it",
                hint="lower the learning rate, or clip the gradients",
            )
        if tree_wins(*codes.shape):
            return by_tree(vectors, codes)
    return by_product(vectors, codes, CPU_CHUNK if vectors.device.type == "cpu" else DEVICE_CHUNK)


def tree_wins(codes: int, width: int) -> bool:
    """Whether a k-d tree is faster on a CPU than products; `benchmarks/vq_nearest.py` measures the crossing."""
    return codes >= 256 if width <= 4 else width <= 8 and codes >= 2048


def by_tree(vectors: Tensor, codes: Tensor) -> Tensor:
    """By a k-d tree, built for this call: that costs a few milliseconds even for 16384 codes. (n,) int64."""
    # Imported here: scipy takes a tenth of a second, and only VQ on a CPU needs it.
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    _, indices = cKDTree(codes.numpy()).query(vectors.numpy(), workers=torch.get_num_threads())
    return torch.from_numpy(indices).long()


def by_product(vectors: Tensor, codes: Tensor, chunk: int) -> Tensor:
    """By argmin of |e|^2 - 2 z e, which differs from |z - e|^2 by what all codes share; `chunk` entries at a time. (n,) int64."""
    squares = codes.square().sum(dim=1)
    rows = max(16, chunk // max(1, len(codes)))
    found = [torch.addmm(squares, part, codes.T, alpha=-2).argmin(dim=1) for part in torch.split(vectors, rows)]
    return torch.cat(found) if found else vectors.new_empty(0, dtype=torch.int64)
