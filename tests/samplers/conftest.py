"""A fixed toy network, and data whose denoiser is known in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldmkit.schedules import Schedule


@pytest.fixture(scope="session")
def toy() -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth network (x (b, 3, h, w), t (b,)) -> eps, nearly the right one for data of unit variance."""
    weight = 0.2 * torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        level = (t.double() / 1000).sqrt().view(-1, 1, 1, 1)
        bent = torch.sin(torch.nn.functional.conv2d(x.double(), weight, padding=1) + 3 * level)
        return (level * x.double() + 0.3 * bent).to(x.dtype)

    return network


class Mixture:
    """Independent numbers from 0.5 N(-1, 0.4^2) + 0.5 N(1, 0.4^2), and the exact x_0 expected at any noise level."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.means, self.std = schedule, torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.4

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.at(x, self.schedule.log_snr(t).view(-1, *(1 for _ in x.shape[1:])))

    def at(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (part.unsqueeze(-1) for part in self.schedule.coefficients(log_snr))
        variance = (alpha * self.std) ** 2 + sigma**2
        residual = x.double().unsqueeze(-1) - alpha * self.means
        share = torch.softmax(-0.5 * residual**2 / variance, -1)
        return (share * (self.means + alpha * self.std**2 / variance * residual)).sum(-1).to(x.dtype)

    def cdf(self, points: Tensor) -> Tensor:
        return torch.special.ndtr((points.unsqueeze(-1) - self.means) / self.std).mean(-1)


@pytest.fixture(scope="session")
def mixture() -> type[Mixture]:
    return Mixture
