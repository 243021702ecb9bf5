from __future__ import annotations

import pytest
import torch
from torch import nn

from ldmkit.errors import CheckpointError
from ldmkit.training.ema import EMA, averaged


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_the_average_follows_the_formula_of_the_released_code() -> None:
    net = network()
    ema = EMA(dict(net.named_parameters()), decay=0.3)
    expected = net.weight.detach().double().clone()
    for n in range(1, 8):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(n)))
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))  # LitEma: 2/11, 3/12, 4/13, then the ceiling
        expected = decay * expected + (1 - decay) * net.weight.detach().double()
    assert torch.allclose(ema.tensors()["weight"].double(), expected, atol=1e-6)


def test_the_average_is_there_inside_the_block_and_gone_after() -> None:
    net = network()
    ema = EMA(dict(net.named_parameters()), decay=0.5)
    with torch.no_grad():
        net.weight.add_(1.0)
    live, average = net.weight.detach().clone(), ema.tensors()["weight"].clone()
    net.train()

    def fail_inside() -> None:
        with averaged(net, ema):
            assert torch.equal(net.weight, average)
            assert not net.training
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(net.weight, live)
    assert torch.equal(ema.tensors()["weight"], average)


def test_an_optimizer_goes_on_with_the_live_weights_after_a_swap() -> None:
    results = []
    for swap in (False, True):
        net = network()
        ema = EMA(dict(net.named_parameters()), decay=0.5)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            ema.update()
            if swap:
                with ema.applied():
                    net(torch.ones(1, 3))
        results.append((net.weight.detach().clone(), ema.tensors()["weight"].clone()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_saved_averages_go_on_with_the_same_bits() -> None:
    net = network()
    ema = EMA(dict(net.named_parameters()), decay=0.9999)
    ema.update()
    saved = {name: value.clone() for name, value in ema.tensors().items()}
    with torch.no_grad():
        net.weight.add_(1.0)
    other = EMA(dict(net.named_parameters()), decay=0.9999)
    other.load(saved, updates=1)
    ema.update()
    other.update()
    assert torch.equal(ema.tensors()["weight"], other.tensors()["weight"])


def test_an_average_of_another_model_is_refused() -> None:
    ema = EMA(dict(network().named_parameters()), decay=0.9)
    with pytest.raises(CheckpointError, match="weight"):
        ema.load({"weight": torch.ones(5), "bias": torch.ones(2)}, updates=1)
    with pytest.raises(CheckpointError, match="other"):
        ema.load({**ema.tensors(), "other": torch.ones(5)}, updates=1)
