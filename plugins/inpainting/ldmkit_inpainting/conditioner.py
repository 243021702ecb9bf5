"""Inpainting: the mask and the masked image's latent, joined to the noisy latent (paper, section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, ForeignStage, LatentSpec, Ports, Tensors
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError
from ldmkit_inpainting import masks, values

if TYPE_CHECKING:
    from PIL.Image import Image

UNKNOWN = Field("image")


class InpaintingConditioner(Conditioner):
    """An image and what of it is painted anew, by concat: the mask on the latent grid, and the latent of the image with holes.

    Args:
        kinds: the masks of training, one of them drawn for each sample: `boxes`, `strokes`, and LaMa's `wide` (strokes or boxes,
            large) and `medium`.
        fill: what stands in the holes of the masked image: 0 is grey, -1 black.
        mask_last: the mask is the last channel; otherwise the first.
        signed: the mask's channel is -1 where the image is kept, instead of 0; where it is painted anew it is 1.

    What is kept is kept to the pixel: `finish` puts it back. The null is a mask that is white everywhere: nothing is known.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        latent: LatentSpec,
        kinds: list[Literal["boxes", "strokes", "wide", "medium"]] | None = None,
        fill: float = 0.0,
        mask_last: bool = False,
        signed: bool = False,
    ) -> None:
        super().__init__()
        if kinds is not None and not kinds:
            raise RecipeError("kinds is empty", hint="give at least one of boxes, strokes, wide, medium")
        if not -1 <= fill <= 1:
            raise RecipeError(f"fill is {fill}; it lies from -1 (black) to 1 (white)")
        self.kinds = list(kinds or ("wide", "medium"))
        self.fill, self.mask_last, self.signed = fill, mask_last, signed
        self.emits = Ports(concat=1 + latent.channels)

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"masked": (c, h, w) in [-1, 1], "mask": (1, h, w), 1 where it is painted anew}."""
        image: Tensor = sample["image"]
        return self._masked(image, masks.drawn((image.shape[-2], image.shape[-1]), self.kinds, generator))

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """ "photo.png,mask.png", JSON, a mapping of `image` and `mask`, or the two in a tuple; white is painted anew."""
        return self._masked(*values.read(value, self.known_fields.get("image", UNKNOWN), size))

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """A list of pairs, mappings or texts with a comma holds one an image; an image and its mask are one value."""
        return all(isinstance(one, Mapping | list | tuple) or (isinstance(one, str) and "," in one) for one in value)

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The mask by nearest neighbour, as the paper's code resizes it, and the latent of the masked image."""
        masked = canvas.extend(prepared["masked"].to(torch.float32))
        mask = canvas.extend(prepared["mask"].to(torch.float32))
        if masked.shape[-2:] != canvas.size:
            masked = F.interpolate(masked, canvas.size, mode="bilinear", antialias=True)
        latent = canvas.to_latent(masked.to(canvas.dtype)).to(canvas.dtype)
        small = F.interpolate(mask, canvas.grid, mode="nearest").to(canvas.dtype)
        small = 2 * small - 1 if self.signed else small
        return Conditioning(concat=torch.cat([latent, small] if self.mask_last else [small, latent], dim=1))

    def null(self, canvas: Canvas) -> Conditioning:
        """All of an image is to be painted: the latent of one hole."""
        channels = 1 if self.known_fields.get("image", UNKNOWN).channels == 1 else 3
        hole = canvas.zeros(1, channels, *canvas.size) + self.fill
        ones = canvas.zeros(1, 1, *canvas.size) + 1
        return self.encode({"masked": hole, "mask": ones}, canvas)

    def finish(self, images: Tensor, prepared: Tensors) -> Tensor:
        """The images with what was to be kept put back, to the pixel."""
        masked, mask = (prepared[name].to(images.device, images.dtype) for name in ("masked", "mask"))
        height, width = mask.shape[-2:]
        pasted = images.clone()
        pasted[..., :height, :width] = torch.where(mask > 0.5, images[..., :height, :width], masked)
        return pasted

    def preview(self, prepared: Tensors) -> Image:
        """The masked image, its holes in magenta."""
        from PIL import Image

        masked = prepared["masked"].cpu().float().expand(3, -1, -1)
        magenta = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
        shown = torch.where(prepared["mask"].cpu() > 0.5, magenta, masked)
        pixels = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy())

    def fidelity(self, images: Tensor, prepared: Tensors) -> Tensor:
        """(b,) in [0, 1]: how well what was painted goes on from what was kept.

        1 less half the mean difference, over neighbours across the mask's border, of an image's pixel inside from the kept pixel
        outside. Real images do not reach 1: they have edges of their own.
        """
        masked, mask = (prepared[name].to(images.device, torch.float32) for name in ("masked", "mask"))
        total, count = images.new_zeros(len(images)), images.new_zeros(len(images))
        for axis in (-1, -2):
            length = mask.shape[axis] - 1
            for inside, outside in ((0, 1), (1, 0)):
                border = (mask.narrow(axis, inside, length) > 0.5) & (mask.narrow(axis, outside, length) <= 0.5)
                apart = (images.narrow(axis, inside, length) - masked.narrow(axis, outside, length)).abs().mean(1, True)
                total += (apart * border).flatten(1).sum(1)
                count += border.flatten(1).sum(1)
        return 1 - total / count.clamp(min=1) / 2

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """CompVis' inpainting (latent, masked latent, mask from -1 to 1; black holes) and the kind of Stable Diffusion
        (latent, mask from 0 to 1, masked latent; grey holes)."""
        paper = stage.target == "__is_first_stage__" and stage.key == "masked_image"
        if not paper and not ("Inpaint" in stage.target and stage.key == "masked_image"):
            return None
        if stage.channels < 2:
            return None
        space = LatentSpec(stage.channels - 1, 1, (1, 1))  # its channels alone matter here
        return cls(latent=space, fill=-1.0 if paper else 0.0, mask_last=paper, signed=paper)

    def _masked(self, image: Tensor, painted: Tensor) -> Tensors:
        if not bool(torch.isfinite(image).all()):
            raise DataError("the image has values that are not finite (NaN or infinite)", hint="look at its file")
        return {"masked": image.masked_fill(painted, self.fill), "mask": painted[None].float()}


class MasksConditioner(InpaintingConditioner):
    """`inpainting` with the data's own masks: the field `mask`, pixel on pixel with the image; white is painted anew.

    Args:
        fill: what stands in the holes of the masked image: 0 is grey, -1 black.
        mask_last: the mask is the last channel; otherwise the first.
        signed: the mask's channel is -1 where the image is kept, instead of 0; where it is painted anew it is 1.
    """

    reads = ("image", "mask")
    aligned = ("mask",)

    def __init__(self, *, latent: LatentSpec, fill: float = 0.0, mask_last: bool = False, signed: bool = False) -> None:
        super().__init__(latent=latent, fill=fill, mask_last=mask_last, signed=signed)

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """As `InpaintingConditioner`; raises DataError for a mask of another size, or numbers that are none."""
        image: Tensor = sample["image"]
        painted = values.as_mask(sample["mask"], DataError, low=-1.0)
        if painted.shape != image.shape[-2:]:
            (h, w), (rows, columns) = image.shape[-2:], painted.shape
            raise DataError(
                f"the image is {h} x {w} pixels (h x w) and its mask {rows} x {columns}",
                hint="save both at the same size, or name the field: data.aligned: [mask]",
            )
        return self._masked(image, painted)

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """None: `InpaintingConditioner` reads such checkpoints."""
        return None
