"""The embedding of an image by a frozen encoder: variations of an image, and images like another one.

As in the released Stable unCLIP and image-variation models (Ramesh et al. 2022, arXiv 2204.06125), what the encoder sees of an
image stands for it; the encoder is never trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.errors import DataError
from ldmkit.plugins.ranges import Positive
from ldmkit_image_embedding.encoders import make


class ImageEmbeddingConditioner(Conditioner):
    """What a frozen encoder sees of an image, as a vector, as tokens, or both.

    It reads the image itself; `fields: {image: reference}` reads another one. Nothing in it is trained, so a run computes the
    embedding of each image once. The middle square of the image is seen.

    Args:
        encoder: `efficientnet-lite0`, whose weights come inside a package, or a name of timm.
        weights: a file of the encoder's weights, .safetensors or .pth; default: the package's, or timm's, downloaded once.
        side: pixels a side of what the encoder sees; default: 128, or what timm's network was trained at.
        port: `vector` (added to the time embedding), `tokens` (the cells of its last map, cross-attended), or `both`.

    Embeddings have a mean square of 1; the null is zeros.

    Raises RecipeError for an unknown encoder, or a side that it cannot see.
    """

    reads = ("image",)
    frozen = ("encoder",)

    def __init__(
        self,
        *,
        encoder: str = "efficientnet-lite0",
        weights: str | None = None,
        side: Positive | None = None,
        port: Literal["vector", "tokens", "both"] = "vector",
    ) -> None:
        super().__init__()
        self.encoder, self.weights, self.port = make(encoder, side), weights, port
        self.side = self.encoder.side
        vector = self.encoder.vector if port != "tokens" else 0
        tokens, length = (self.encoder.tokens, self.encoder.length) if port != "vector" else (0, 0)
        self.emits = Ports(vector=vector, tokens=tokens, length=length)

    def load_pretrained(self) -> None:
        """The encoder's weights. Raises OfflineError where they cannot be had, CheckpointError where a file does not fit."""
        self.encoder.load_pretrained(self.weights)

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"image": (3, side, side)} in [-1, 1]: the middle square, resized (bilinear, antialiased). Grey is repeated.

        Raises DataError for what is no image of 1 or 3 channels, or holds values that are not finite.
        """
        image = sample["image"]
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"image is {given}; the encoder sees an image (1 or 3, h, w)")
        if not bool(torch.isfinite(image).all()):
            raise DataError("image has values that are not finite (NaN or infinite)")
        square = min(image.shape[1:])
        top, left = ((extent - square) // 2 for extent in image.shape[1:])
        middle = image[None, :, top : top + square, left : left + square].float()
        seen = F.interpolate(middle, (self.side, self.side), mode="bilinear", antialias=True)[0]
        return {"image": seen.expand(3, -1, -1).clone()}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The embeddings, scaled to a mean square of 1."""
        vector, tokens = self._embedded(prepared["image"])
        return Conditioning(
            vector=_scaled(vector).to(canvas.dtype) if self.emits.vector else None,
            tokens=_scaled(tokens).to(canvas.dtype) if self.emits.tokens else None,
        )

    def null(self, canvas: Canvas) -> Conditioning:
        """Zeros, which no embedding is."""
        return Conditioning(
            vector=canvas.zeros(1, self.emits.vector) if self.emits.vector else None,
            tokens=canvas.zeros(1, self.emits.length, self.emits.tokens) if self.emits.tokens else None,
        )

    def preview(self, prepared: Tensors) -> Image.Image:
        """What the encoder sees."""
        pixels = ((prepared["image"].float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def fidelity(self, images: Tensor, prepared: Tensors) -> Tensor:
        """(b,) from -1 to 1: the cosine between the pooled vectors of an image and of what it should be like."""
        seen = torch.stack([self.prepare({"image": image})["image"] for image in images])
        made, wanted = (self._embedded(of)[0] for of in (seen, prepared["image"].to(seen.device)))
        return F.cosine_similarity(made.float(), wanted.float())

    def _embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.encoder(images.to(next(self.encoder.parameters()).dtype))
        return found


def _scaled(embedding: Tensor) -> Tensor:
    return F.normalize(embedding.float(), dim=-1) * math.sqrt(embedding.shape[-1])
