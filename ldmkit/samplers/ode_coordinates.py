"""The coordinates in which Euler, Heun and LMS see a straight line: (position, scaled x), with a slope known from x_0."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldmkit.samplers.grid import Grid


@dataclass(frozen=True)
class Frame:
    """d(x / scale) / d(position) = slope, on one grid; two choices, of which a grid decides.

    rho: scale alpha, position rho = sigma / alpha, slope eps (Karras et al. 2022, eq. 4).
    straight: scale alpha + sigma, position sigma / (alpha + sigma), slope eps - x_0: for a rectified flow, and for a grid that
        starts from noise alone (`Grid.pure`), where rho has no end to start from and a step in it no second order.
    """

    grid: Grid

    @property
    def straight(self) -> bool:
        return self.grid.straight or self.grid.pure

    def scale(self, i: int) -> float:
        return self.grid.alpha[i] + self.grid.sigma[i] if self.straight else self.grid.alpha[i]

    def position(self, i: int) -> float:
        return self.grid.sigma[i] / self.scale(i) if self.straight else self.grid.rho(i)

    def slope(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        eps = (x - self.grid.alpha[i] * x0) / self.grid.sigma[i]
        return eps - x0 if self.straight else eps

    def euler(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        """x at node `i + 1` along the slope at node `i`: in both frames DDIM's step."""
        eps = (x - self.grid.alpha[i] * x0) / self.grid.sigma[i]
        return self.grid.alpha[i + 1] * x0 + self.grid.sigma[i + 1] * eps

    def bend(self, change: Tensor, weight: float, i: int) -> Tensor:
        """What `weight` (in units of position) times a change of slope adds to x at node `i + 1`."""
        return self.scale(i + 1) * weight * change
