"""A linear way past a network: what is linear in its input need not be learned by its blocks."""

from __future__ import annotations

from torch import Tensor, nn

from ldmkit.denoiser.layers import zeroed


class LinearShortcut(nn.Module):
    """A 3x3 convolution of the input, each of whose channels is scaled by 1 + a linear map of the embedding; it starts as zero.

    Much of what a diffusion model predicts is linear in its input, with factors that depend on the timestep (for Gaussian data
    all of it is; Karras et al. 2022, arXiv 2206.00364, take such a part out by preconditioning). A UNet's group norms, each
    relative to its own image, forget the input's size and mean, and the blocks have to learn them again.

    `gain` multiplies the convolution. Adam moves each weight by about its learning rate a step, and what is copied has a weight of
    one: with a gain of 10 it is there after a tenth of the steps.
    """

    def __init__(self, inputs: int, outputs: int, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.scale = zeroed(nn.Linear(width, inputs))
        self.conv = zeroed(nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(b, inputs, h, w) and an embedding (b, width) -> (b, outputs, h, w)."""
        moved: Tensor = self.conv(x * (1 + self.scale(embedding))[:, :, None, None])
        return moved if self.gain == 1 else self.gain * moved
