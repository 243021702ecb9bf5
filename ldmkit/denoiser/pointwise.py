"""1x1 convolutions computed as the matrix products that they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution over a grid, under a convolution's parameter shapes.

    Attention wants its channels last and convolutions want them first. As a linear layer over pixels it reads and returns views
    of either, so that nothing is copied on the way from one to the other.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w), whose channels lie last in memory."""
        rows = input.permute(0, 2, 3, 1).flatten(1, 2)
        found = F.linear(rows, self.weight.flatten(1), self.bias)
        return found.view(input.shape[0], *input.shape[2:], self.out_channels).permute(0, 3, 1, 2)


class PointwiseConv1d(nn.Conv1d):
    """The same over a sequence."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(b, inputs, n) -> (b, outputs, n), whose channels lie last in memory."""
        return F.linear(input.transpose(1, 2), self.weight.flatten(1), self.bias).transpose(1, 2)
