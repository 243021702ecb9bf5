"""Vector quantisation (van den Oord et al., arXiv 1711.00937), with the repairs that keep a codebook alive."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.autoencoder import all_reduce
from ldmkit.autoencoder.codebook_search import nearest_code
from ldmkit.errors import UsageError
from ldmkit.random import generator

# Below this running count a code keeps its place: dividing by it would only amplify rounding.
LEAST_COUNT = 1e-5


class Quantized(NamedTuple):
    """One pass through the quantizer."""

    latents: Tensor  # (b, c, h, w): the codes, with the gradient of the input (straight-through)
    indices: Tensor  # (b, h, w) int64
    terms: dict[str, Tensor]  # scalars: loss `codebook`; reports `perplexity`, `usage`, `revived`


class Quantizer(nn.Module):
    """A codebook of `codes` vectors; each latent vector is replaced by the nearest one.

    Args:
        codes: how many vectors.
        width: their width, the latent's channels.
        commitment: weight of the term that pulls latents to their codes (beta in eq. 3 of the paper).
        swapped: put `commitment` on the term that pulls codes to latents instead, as all released models were trained.
        ema: decay of an exponential moving average that sets the codes (appendix A.1 of the paper) in place of a gradient.
        revive: a code that no latent chose for this many training steps is moved onto a latent of the batch.
    """

    count: Tensor
    total: Tensor
    idle: Tensor
    steps: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        commitment: float = 0.25,
        swapped: bool = False,
        ema: float | None = None,
        revive: int | None = None,
    ) -> None:
        super().__init__()
        _check(codes, commitment, swapped, ema, revive)
        self.commitment, self.swapped, self.ema, self.revive = commitment, swapped, ema, revive
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        if ema is not None:
            self.embedding.weight.requires_grad_(False)
            # Started as if each code had been chosen once, so that the codes are their own averages.
            self.register_buffer("count", torch.ones(codes))
            self.register_buffer("total", self.embedding.weight.detach().clone())
        if revive is not None:
            self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_fresh_upkeep)  # type: ignore[no-untyped-call]

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return self.embedding.num_embeddings

    def indices(self, latents: Tensor) -> Tensor:
        """The nearest code of each position: (b, c, h, w) -> (b, h, w) int64."""
        b, _, h, w = latents.shape
        return nearest_code(_rows(latents), self.embedding.weight.detach()).view(b, h, w)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes at (b, h, w) integer `indices`: (b, c, h, w).

        Raises:
            UsageError: an index outside of the codebook, or not an integer.
        """
        if indices.is_floating_point() or indices.dim() != 3:
            raise UsageError(
                f"code indices are {indices.dtype} of shape {tuple(indices.shape)}; expected integers (b, h, w)"
            )
        if indices.numel() and not indices.is_meta:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.codes:
                raise UsageError(f"code indices run from {low} to {high}; this codebook has 0 to {self.codes - 1}")
        return self.embedding(indices.long()).movedim(-1, 1)  # type: ignore[no-any-return]

    def quantize(self, latents: Tensor) -> Tensor:
        """The nearest codes in place of the latents, straight-through where a gradient is wanted. (b, c, h, w)."""
        codes = self.embedding(self.indices(latents)).movedim(-1, 1)
        if torch.is_grad_enabled() and latents.requires_grad:
            return latents + (codes - latents).detach()  # type: ignore[no-any-return]
        return codes  # type: ignore[no-any-return]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise (b, c, h, w) for training: codes, their indices and the loss terms; in train mode also the upkeep.

        Latents that are not finite give a loss that is not, and leave the codebook as it is: the training loop skips the update.
        """
        indices = self.indices(torch.nan_to_num(latents.detach(), 0.0, 0.0, 0.0) if self.training else latents)
        codes = self.embedding(indices).movedim(-1, 1)
        terms = {"codebook": self._loss(latents, codes)}
        counts = (
            torch.bincount(indices.flatten(), minlength=self.codes)
            if not indices.is_meta
            else indices.new_zeros(self.codes)
        )
        if self.training and not indices.is_meta:
            counts = all_reduce.total(counts)
            terms |= self._upkeep(_rows(latents.detach()), indices.flatten(), counts)
        terms |= _report(counts)
        return Quantized(latents + (codes - latents).detach(), indices, terms)

    def _loss(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Eq. 3 of arXiv 1711.00937 without the reconstruction: means over all entries."""
        to_codes = F.mse_loss(latents, codes.detach())
        if self.ema is not None:
            return self.commitment * to_codes
        to_latents = F.mse_loss(codes, latents.detach())
        if self.swapped:
            return to_codes + self.commitment * to_latents
        return to_latents + self.commitment * to_codes

    @torch.no_grad()
    def _upkeep(self, rows: Tensor, indices: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Move the codes that the gradient does not: the running averages, and codes nobody chose. `counts` are those of all
        ranks, on which the codes stay equal."""
        if self.ema is not None:
            self._average(rows, indices, counts, self.ema)
        return {"revived": self._revive(rows, counts, self.revive)} if self.revive is not None else {}

    def _average(self, rows: Tensor, indices: Tensor, counts: Tensor, decay: float) -> None:
        """Eq. 6 to 8 of arXiv 1711.00937, appendix A.1."""
        sums = all_reduce.total(torch.zeros_like(self.total).index_add_(0, indices, rows.to(self.total)))
        share = torch.isfinite(sums).all().to(sums) * (
            1 - decay
        )  # 0 for a spoilt batch, without waiting for the device
        self.count.lerp_(counts.to(self.count), share)
        self.total.lerp_(sums.nan_to_num(0.0, 0.0, 0.0), share)
        averages = self.total / self.count.clamp_min(LEAST_COUNT).unsqueeze(1)
        kept = (self.count < LEAST_COUNT).unsqueeze(1)
        self.embedding.weight.copy_(torch.where(kept, self.embedding.weight, averages))

    def _revive(self, rows: Tensor, counts: Tensor, patience: int) -> Tensor:
        """Put codes that were idle for `patience` steps onto latents of this batch; how many were moved."""
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        self.steps.add_(1)
        dead = (self.idle >= patience).nonzero().flatten()
        if len(dead):
            rows = all_reduce.joined(rows)
            dead = dead[: len(rows)]
            chosen = torch.randperm(len(rows), generator=generator(0, "revive", int(self.steps)))[: len(dead)]
            places = rows[chosen.to(rows.device)].to(self.embedding.weight)
            places = torch.where(places.isfinite().all(dim=1, keepdim=True), places, self.embedding.weight[dead])
            self.embedding.weight[dead] = places
            self.idle[dead] = 0
            if self.ema is not None:
                self.count[dead], self.total[dead] = 1.0, places.to(self.total)
        return torch.tensor(float(len(dead)), device=rows.device)


def _fresh_upkeep(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A codebook from a model without averages or revival begins them anew."""
    fresh = {name: torch.zeros_like(buffer) for name, buffer in module.named_buffers()}
    if "total" in fresh and prefix + "embedding.weight" in state_dict:
        fresh |= {"count": torch.ones_like(fresh["count"]), "total": state_dict[prefix + "embedding.weight"].clone()}
    for name, tensor in fresh.items():
        state_dict.setdefault(prefix + name, tensor)


def _report(counts: Tensor) -> dict[str, Tensor]:
    """Perplexity (1 to the codebook's size) and usage (share of the codebook chosen) in this batch."""
    shares = counts / counts.sum().clamp_min(1)
    perplexity = torch.exp(-torch.xlogy(shares, shares).sum())
    return {"perplexity": perplexity, "usage": (counts > 0).float().mean()}


def _rows(latents: Tensor) -> Tensor:
    """(b, c, h, w) -> (b h w, c)."""
    return latents.movedim(1, -1).flatten(0, 2)


def _check(codes: int, commitment: float, swapped: bool, ema: float | None, revive: int | None) -> None:
    if codes < 1:
        raise UsageError(f"codebook is {codes}; it must have at least 1 code")
    if commitment < 0:
        raise UsageError(f"commitment is {commitment}; it must not be negative")
    if ema is not None and not 0 < ema < 1:
        raise UsageError(
            f"ema is {ema}; allowed is a decay between 0 and 1, or null for a codebook that learns by gradient"
        )
    if ema is not None and swapped:
        raise UsageError(
            "swapped has no meaning with ema: there is no codebook term to swap", hint="leave one of them out"
        )
    if revive is not None and revive < 1:
        raise UsageError(f"revive is {revive}; allowed is a number of steps from 1, or null for never")
