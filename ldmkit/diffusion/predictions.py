"""What a network may predict: eps, x0, v or flow; each is a linear function of (x_0, eps), so each gives the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Prediction(ABC):
    """One parameterisation. x_t = alpha x_0 + sigma eps; alpha and sigma broadcast against (b, c, h, w)."""

    name: ClassVar[str]

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should output."""

    @abstractmethod
    def x0(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_0 of the network's output."""

    @abstractmethod
    def noise(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """eps of the network's output."""

    @abstractmethod
    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|error of the output|^2 / |error of x_0|^2 at the same x_t."""


class Eps(Prediction):
    """The noise (Ho et al. 2020)."""

    name = "eps"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def x0(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * output) / alpha

    def noise(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2


class X0(Prediction):
    """The clean sample."""

    name = "x0"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def x0(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def noise(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - alpha * output) / sigma

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha.new_ones(alpha.shape)


class V(Prediction):
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022, appendix D)."""

    name = "v"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x0

    def x0(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * noisy - sigma * output) / (alpha**2 + sigma**2)

    def noise(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma * noisy + alpha * output) / (alpha**2 + sigma**2)

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha**2 + sigma**2) / sigma) ** 2


class Velocity(Prediction):
    """`flow`: u = eps - x_0, the velocity of the straight path from data to noise (Liu et al. 2022)."""

    name = "flow"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def x0(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * output) / (alpha + sigma)

    def noise(self, output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy + alpha * output) / (alpha + sigma)

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha + sigma) / sigma) ** 2


PREDICTIONS: dict[str, type[Prediction]] = {kind.name: kind for kind in (Eps, X0, V, Velocity)}
