"""Muon against torch's on matrices, a float64 iteration on kernels, and AdamW on everything else."""

import math

import pytest
import torch
from torch import nn

from ldmkit.errors import UsageError
from ldmkit.training.muon import COEFFICIENTS, Muon, muon, orthogonal
from ldmkit.training.optim import Group, Optimization, owners
from ldmkit.training.optimizers import ParameterGroup


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 2)
        self.conv, self.words, self.norm = nn.Conv2d(4, 8, 3), nn.Embedding(5, 6), nn.LayerNorm(8)

    def grads(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def group(net: nn.Module, names: tuple[str, ...] = (), lr: float = 0.02, weight_decay: float = 0.1) -> ParameterGroup:
    named = {name: p for name, p in net.named_parameters() if not names or name in names}
    return ParameterGroup(named, owners(net), lr, weight_decay)


BESIDES = ("stem.*", "out.*")


def test_on_matrices_it_is_torchs_muon_bit_for_bit() -> None:
    ours, theirs = Net(), Net()
    optimizer = muon([group(ours)], besides=BESIDES, precision="bf16")
    reference = torch.optim.Muon(
        [theirs.hidden.weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(4):
        ours.grads(seed)
        theirs.grads(seed)
        optimizer.step()
        reference.step()
    assert torch.equal(ours.hidden.weight, theirs.hidden.weight)


def test_everything_else_is_adamws_bit_for_bit() -> None:
    ours, theirs = Net(), Net()
    optimizer = muon([group(ours)], besides=BESIDES, betas=(0.8, 0.99))
    names = [name for name, _ in ours.named_parameters() if name not in ("hidden.weight", "conv.weight")]
    reference = torch.optim.AdamW(
        [p for name, p in theirs.named_parameters() if name in names], lr=0.02, weight_decay=0.1, betas=(0.8, 0.99)
    )
    for seed in range(4):
        ours.grads(seed)
        theirs.grads(seed)
        optimizer.step()
        reference.step()
    for name in names:
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name)), name


def test_a_kernel_is_a_matrix_of_its_outputs_by_a_float64_iteration() -> None:
    net = Net()
    before = net.conv.weight.detach().clone().double()
    optimizer = muon([group(net, ("conv.weight",))], nesterov=False)
    net.grads(3)
    optimizer.step()
    a, b, c = COEFFICIENTS
    x = (0.05 * net.conv.weight.grad).double().flatten(1)
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    expected = before * (1 - 0.02 * 0.1) - 0.02 * 0.2 * math.sqrt(36) * x.view_as(before)
    # float32 has 24 bits, and five iterations with slopes of up to 3.4 each multiply its rounding by some hundreds.
    difference = (net.conv.weight.detach().double() - expected).norm() / (expected - before * 0.998).norm()
    assert float(difference) < 1e-4


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_what_is_made_orthogonal_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonal(matrix, 5, torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ found @ v.T
    values = inside.diagonal()
    assert float((inside - values.diag()).abs().max()) < 1e-9
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    def optimization(net: nn.Module) -> Optimization:
        named = dict(net.named_parameters())
        made = Made("muon", muon, {"besides": BESIDES})
        return Optimization([Group(named)], lr=0.02, steps=8, optimizer=made, modules=owners(net))

    from ldmkit.training.optim import Made

    whole, halves = Net(), Net()
    one, first = optimization(whole), optimization(halves)
    for step in range(6):
        one.begin(step)
        whole.grads(step)
        one.step()
        if step < 3:
            first.begin(step)
            halves.grads(step)
            first.step()
    second = optimization(halves)
    second.load({name: value.clone() for name, value in first.tensors().items()})
    for step in range(3, 6):
        second.begin(step)
        halves.grads(step)
        second.step()
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, halves.get_parameter(name)), name


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(UsageError, match="no weight of a hidden linear or convolution layer"):
        muon([group(Net())], besides=("*",))


def test_a_unets_first_and_last_layers_are_adamws() -> None:
    from ldmkit.denoiser.unet import UNet

    net = UNet.of_widths(
        in_channels=4, out_channels=4, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), shortcut=True
    )
    named = {f"denoiser.{name}": p for name, p in net.named_parameters()}
    optimizer = muon([ParameterGroup(named, owners(net, "denoiser."), 1e-3, 0.0)])
    assert isinstance(optimizer, Muon)
    names = {id(p): name for name, p in named.items()}
    hidden = {names[id(p)] for p in optimizer._hidden[0]["params"]}
    assert "denoiser.input_blocks.1.0.in_layers.2.weight" in hidden
    assert not hidden & {"denoiser.input_blocks.0.0.weight", "denoiser.out.2.weight", "denoiser.shortcut.conv.weight"}
    assert sum(named[name].numel() for name in hidden) > 0.7 * sum(p.numel() for p in named.values())
