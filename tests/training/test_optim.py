from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ldmkit.errors import CheckpointError, ResourceError
from ldmkit.recipe import AutoencoderTrain, Train
from ldmkit.recipe.training import LambdaSchedule
from ldmkit.training.optim import Group, Optimization, rate_factor, schedule_of


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


def linear(n: int, warmup: int, start: float, high: float, low: float, length: int) -> float:
    """`LambdaLinearScheduler` of the released code, as its formulas say."""
    return (high - start) / warmup * n + start if n < warmup else low + (high - low) * (length - n) / length


def cosine(n: int, warmup: int, start: float, high: float, low: float, length: int) -> float:
    """`LambdaWarmUpCosineScheduler`."""
    if n < warmup:
        return (high - start) / warmup * n + start
    return low + 0.5 * (high - low) * (1 + math.cos(min((n - warmup) / (length - warmup), 1.0) * math.pi))


def schedule(**lr_schedule: Any) -> Callable[[int], float]:
    return schedule_of(Train(steps=10, lr_schedule=LambdaSchedule(**lr_schedule)))


def test_the_released_schedules_with_the_released_numbers() -> None:
    plain = schedule(type="lambda-linear")  # warm-up 10000 from 1e-6, then constant for 1e13 steps
    for step in (0, 1, 5000, 9999, 10_000, 400_000):
        assert plain(step) == pytest.approx(linear(step, 10_000, 1e-6, 1.0, 1.0, 10_000_000_000_000))
    inpainting = schedule(type="lambda-cosine", warmup=1000, length=50_000, start=0.001, high=0.1, low=1e-4)
    for step in (0, 1, 500, 999, 1000, 25_500, 49_999, 50_000, 80_000):
        assert inpainting(step) == pytest.approx(cosine(step, 1000, 0.001, 0.1, 1e-4, 50_000))
    assert inpainting(80_000) == pytest.approx(1e-4)


@pytest.mark.parametrize(("kind", "formula"), [("lambda-linear", linear), ("lambda-cosine", cosine)])
def test_cycles_follow_each_other_and_the_last_end_is_held(kind: str, formula: Callable[..., float]) -> None:
    both = {"warmup": (2, 4), "start": (0.1, 0.2), "high": (1.0, 0.5), "low": (0.3, 0.0), "length": (10, 20)}
    factor = schedule(type=kind, **both)
    one, other = ([values[cycle] for values in both.values()] for cycle in (0, 1))
    for step in range(11):  # the border belongs to the earlier cycle
        assert factor(step) == pytest.approx(formula(step, *one))
    for step in range(11, 31):
        assert factor(step) == pytest.approx(formula(step - 10, *other))
    assert factor(1000) == factor(30) == pytest.approx(0.0)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="its own warm-up and decay"):
        Train(steps=10, warmup=5, lr_schedule=LambdaSchedule(type="lambda-linear"))
    with pytest.raises(ValidationError, match="warmup has 2, length has 3"):
        LambdaSchedule(type="lambda-linear", warmup=(1, 2), length=(3, 4, 5))
    with pytest.raises(ValidationError, match=r"adam has no weight decay, and weight_decay is 0\.1"):
        Train(steps=10, optimizer="adam", weight_decay=0.1)
    assert Train(steps=10, optimizer="adam").weight_decay is None
    with pytest.raises(ValidationError, match="the autoencoder's stage takes each batch whole"):
        AutoencoderTrain(steps=10, accumulate=2)
    again = Train.model_validate(Train(steps=10, optimizer="adam").model_dump())
    assert (again.optimizer.type, again.weight_decay) == ("adam", None)


def test_the_batch_scaled_learning_rate_is_for_every_group() -> None:
    net = network()
    groups = [Group(named(net, "0.")), Group(named(net, "2."), lr=2e-6)]
    settings = Train(steps=4, lr=1e-6, batch=48, scale_lr=True, accumulate=4)  # 4 GPUs of 3 rows, 4 times: 48
    optimization = Optimization.of(groups, settings)
    optimization.begin(0)
    assert [argument["lr"] for argument in optimization.optimizer.param_groups] == pytest.approx([48e-6, 96e-6])
    plain = Optimization.of(groups, Train(steps=4, lr=1e-6, batch=48))
    assert plain.rate == pytest.approx(1e-6)


def test_channels_last_goes_on_with_the_same_bits() -> None:
    """The fused optimizers read moments and weights from end to end: both must lie in memory alike."""

    def convolution() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def descend_on(net: nn.Module, optimization: Optimization, steps: range) -> None:
        for step in steps:
            optimization.begin(step)
            net(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimization.step()

    whole, halves = convolution(), convolution()
    descend_on(whole, Optimization([Group(named(whole))], lr=0.01, steps=4), range(4))
    first = Optimization([Group(named(halves))], lr=0.01, steps=4)
    descend_on(halves, first, range(2))
    saved = {name: value.contiguous().clone() for name, value in first.tensors().items()}  # as files keep it
    second = Optimization([Group(named(halves))], lr=0.01, steps=4)
    second.load(saved)
    descend_on(halves, second, range(2, 4))
    assert torch.equal(whole.weight, halves.weight)  # type: ignore[arg-type]


class AdamW8bit(torch.optim.Optimizer):
    """A stand-in with bitsandbytes' names and kinds of state: signs of the gradients in 8 bits."""

    def __init__(self, params: Any, lr: float, betas: Any, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"], state["qmap1"] = 0, torch.arange(256.0)
                    state["state1"] = state["state2"] = torch.zeros_like(p, dtype=torch.uint8)
                assert type(state["step"]) is int
                state["step"] += 1
                state["state1"] = state["state1"] + (p.grad > 0).to(torch.uint8)
                p.sub_(group["lr"] * state["state1"].float() / state["step"])


def test_eight_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        Optimization([Group(named(net))], lr=0.1, steps=1, optimizer="adamw-8bit")
    library = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="runs on a GPU only"):
        Optimization([Group(named(net))], lr=0.1, steps=1, optimizer="adamw-8bit")

    monkeypatch.setattr("ldmkit.training.optimizers._eight_bit", lambda parameters: AdamW8bit)
    whole, halves = network(), network()
    descend(whole, Optimization([Group(named(whole))], lr=0.1, steps=4, optimizer="adamw-8bit"), range(4))
    first = Optimization([Group(named(halves))], lr=0.1, steps=4, optimizer="adamw-8bit")
    descend(halves, first, range(2))
    second = Optimization([Group(named(halves))], lr=0.1, steps=4, optimizer="adamw-8bit")
    second.load(first.tensors())
    descend(halves, second, range(2, 4))
    for mine, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(CheckpointError, match="another optimizer's"):
        Optimization([Group(named(net))], lr=0.1, steps=1).load(first.tensors())
