from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldmkit.errors import CheckpointError
from ldmkit.training.optim import Group, Optimization, rate_factor


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [
        ("constant", 0, 1 / 4),
        ("constant", 3, 1.0),
        ("constant", 19, 1.0),
        ("linear", 4, 1.0),
        ("linear", 12, 0.5),
        ("linear", 19, 1 / 16),
        ("cosine", 4, 1.0),
        ("cosine", 12, 0.5),
        ("cosine", 16, 0.5 * (1 + math.cos(math.pi * 0.75))),
    ],
)
def test_rate_factor(decay: str, step: int, expected: float) -> None:
    assert rate_factor(step, steps=20, warmup=4, decay=decay) == pytest.approx(expected)  # type: ignore[arg-type]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def named(net: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if name.startswith(prefix)}


def descend(net: nn.Module, optimization: Optimization, steps: range, clip: float | None = None) -> None:
    for step in steps:
        optimization.begin(step)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimization.hold_back(step)
        optimization.gradient_norm(clip)
        optimization.step()


def test_adamw_as_the_paper_writes_it() -> None:
    """Loshchilov & Hutter 2017, algorithm 2, in float64."""
    net = network()
    twin = network().double()
    optimization = Optimization([Group(named(net))], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, steps=5, warmup=2)
    descend(net, optimization, range(5))
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.named_parameters()}
    for step in range(5):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).double()
        gradients = torch.autograd.grad(twin(x).square().mean(), list(twin.parameters()))
        rate = 0.01 * rate_factor(step, steps=5, warmup=2)
        with torch.no_grad():
            for (name, p), gradient in zip(twin.named_parameters(), gradients, strict=True):
                first, second = moments[name]
                first.mul_(0.8).add_(gradient, alpha=0.2)
                second.mul_(0.95).add_(gradient.square(), alpha=0.05)
                unbiased = (first / (1 - 0.8 ** (step + 1))) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                p.sub_(rate * (unbiased + 0.1 * p))
    for mine, reference in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.double(), reference, atol=1e-6)


def test_without_weight_decay_it_is_adam() -> None:
    net, twin = network(), network()
    optimization = Optimization([Group(named(net))], lr=0.01, betas=(0.5, 0.9), weight_decay=None, steps=3)
    descend(net, optimization, range(3))
    reference = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.5, 0.9))
    for step in range(3):
        reference.zero_grad()
        twin(torch.randn(8, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        reference.step()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_groups_have_their_own_rates_and_start_when_told() -> None:
    net = network()
    groups = [Group(named(net, "0.")), Group(named(net, "2."), lr=0.5, weight_decay=0.0, starts=2)]
    optimization = Optimization(groups, lr=0.01, steps=4)
    before = net[2].weight.detach().clone()
    descend(net, optimization, range(2))
    assert torch.equal(net[2].weight, before)
    assert not any(name.startswith("2.") for name in optimization.tensors())
    descend(net, optimization, range(2, 3))
    # The first step of Adam moves each weight by the learning rate, whatever the gradient.
    assert torch.allclose((net[2].weight - before).abs(), torch.full_like(before, 0.5), atol=1e-3)
    assert [argument["lr"] for argument in optimization.optimizer.param_groups] == [0.01, 0.5]


def test_clipping() -> None:
    net = network()
    optimization = Optimization([Group(named(net))], lr=0.01, steps=1)
    optimization.begin(0)
    (net(torch.ones(1, 3)).sum() * 1000).backward()
    norm = optimization.gradient_norm(clip=1.0)
    assert float(norm) > 100
    clipped = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(1.0, rel=1e-4)


def test_saved_state_goes_on_with_the_same_bits() -> None:
    whole, halves = network(), network()
    descend(whole, Optimization([Group(named(whole))], lr=0.01, steps=6, decay="cosine"), range(6))
    first = Optimization([Group(named(halves))], lr=0.01, steps=6, decay="cosine")
    descend(halves, first, range(3))
    saved = {name: value.clone() for name, value in first.tensors().items()}
    assert sorted(saved)[:3] == ["0.bias:exp_avg", "0.bias:exp_avg_sq", "0.bias:step"]
    second = Optimization([Group(named(halves))], lr=0.01, steps=6, decay="cosine")
    second.load(saved)
    descend(halves, second, range(3, 6))
    for mine, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_state_of_another_model_is_refused() -> None:
    optimization = Optimization([Group(named(network()))], lr=0.01, steps=1)
    with pytest.raises(CheckpointError, match=r"9\.weight"):
        optimization.load({"9.weight:exp_avg": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"0\.bias"):
        optimization.load({"0.bias:exp_avg": torch.ones(7)})
