"""Reads digits back: a classifier fitted on the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.data.source import Judge, Source
from ldmkit.images.view import View

WIDTH, RIDGE = 0.25, 0.01  # of the kernel exp(-WIDTH d^2); flat around these: 98.9 to 99.4 % of held-out digits


class DigitJudge(Judge):
    """Whether a picture shows the digit its sample's `label` says.

    Kernel ridge regression on one-hot labels with a Gaussian kernel over 8 x 8 greys (Hastie, Tibshirani, Friedman, The
    Elements of Statistical Learning, 5.8): a closed form, so every machine has the same judge. It is fitted on pictures that
    went the way the judged ones go: enlarged smoothly, then averaged down.
    """

    name = "digit recognised"
    chance = 0.1

    def __init__(self, source: Source) -> None:
        samples = [source[index] for index in range(source.info().count or 0)]
        view = View((8, 8), (0, 0, 8, 8), (32, 32))
        self._known = _features(torch.stack([view.image(sample["image"]) for sample in samples]))
        labels = F.one_hot(torch.tensor([sample["label"] for sample in samples]), 10).double() * 2 - 1
        gram = _kernel(self._known, self._known) + RIDGE * torch.eye(len(samples), dtype=torch.float64)
        self._weights = torch.linalg.solve(gram, labels)

    def read(self, images: Tensor) -> Tensor:
        """The digit (n,) int64 that each picture (n, 1 or 3, h, w) in [-1, 1] shows."""
        answers: Tensor = _kernel(_features(images), self._known) @ self._weights
        return answers.argmax(1)

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) 1 where the digit is the sample's label, else 0."""
        wanted = torch.tensor([int(sample["label"]) for sample in samples])
        return (self.read(images) == wanted).float()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-WIDTH * torch.cdist(a, b) ** 2)


def _features(images: Tensor) -> Tensor:
    grey = images.detach().double().cpu().mean(1, keepdim=True).clamp(-1, 1)
    return F.adaptive_avg_pool2d(grey, 8).flatten(1) / 2 + 0.5
