"""`precision: auto` on a CPU: what decides, what is recorded, and how far bf16 is from float32."""

from __future__ import annotations

import json
import time

import pytest
import torch

from ldmkit.denoiser.attention import attend
from ldmkit.denoiser.unet import UNet
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import Log
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.precision import Precisions
from ldmkit.training.runtime import Runtime


class Clock:
    """CPU time that passes as said: seconds of a step by precision."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now, self.steps = seconds, 0.0, []

    def __call__(self, runtime: Runtime) -> None:
        self.steps.append(runtime.precision)
        self.now += self.seconds[runtime.precision]


@pytest.fixture
def decided(monkeypatch, tmp_path):
    def decide(step: int = 0, **seconds: float) -> tuple[str, Clock]:
        clock = Clock(**seconds)
        monkeypatch.setattr(time, "process_time", lambda: clock.now)
        found = Precisions(tmp_path, automatic=True).runtime(Runtime(), "diffusion", step, Log(), clock)
        return found.precision, clock

    return decide


def test_bf16_where_it_is_faster(decided, tmp_path):
    assert decided(fp32=1.0, bf16=0.5)[0] == "bf16"
    assert json.loads((tmp_path / "precision.json").read_text()) == {"diffusion": "bf16"}


def test_float32_where_bf16_wins_little(decided):
    assert decided(fp32=1.0, bf16=0.9)[0] == "fp32"


def test_a_small_network_is_not_tried(decided):
    name, clock = decided(fp32=0.05, bf16=0.01)
    assert name == "fp32"
    assert clock.steps == ["fp32", "fp32"]


def test_a_resumed_run_goes_on_as_it_was_and_measures_nothing(decided):
    decided(fp32=1.0, bf16=0.5)
    name, clock = decided(step=7, fp32=0.5, bf16=1.0)
    assert (name, clock.steps) == ("bf16", [])


def test_a_run_from_before_stays_in_float32(decided):
    name, clock = decided(step=7, fp32=1.0, bf16=0.5)
    assert (name, clock.steps) == ("fp32", [])


def test_a_person_is_told(monkeypatch, tmp_path, capsys):
    clock = Clock(fp32=1.0, bf16=0.5)
    monkeypatch.setattr(time, "process_time", lambda: clock.now)
    Precisions(automatic=True).runtime(Runtime(), "diffusion", 0, Log(console=Console()), clock)
    assert (
        "precision: bf16 for the diffusion (1000 ms a step in fp32 on one thread, bf16 is 2.00"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("asked", "runtime"),
    [
        ("fp32", Runtime()),
        ("bf16", Runtime()),
        ("auto", Runtime(compile=True)),
        ("auto", Runtime(torch.device("cuda"))),
    ],
)
def test_only_auto_on_a_cpu_is_measured(asked, runtime, tmp_path):
    assert not Precisions.of(tmp_path, asked, runtime, Ranks()).automatic
    assert Precisions.of(tmp_path, "auto", Runtime(), Ranks()).automatic


def test_the_number_of_threads_is_what_it_was(decided):
    before = torch.get_num_threads()
    decided(fp32=1.0, bf16=0.5)
    assert torch.get_num_threads() == before


def test_attention_for_a_gradient_is_float32s_rounded_once():
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 2, 9, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    wide = [one.detach().double().requires_grad_() for one in given]
    found, expected = attend(*given), attend(*wide)
    assert found.dtype == torch.bfloat16
    # One rounding to bf16's 8 bits: half a unit in the last place, 2^-9 of the value.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    found.double().square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(given, wide, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = (one.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 2**-7, "the rounding of the output, and of the gradient"


def test_gradients_in_bf16_are_float32s_up_to_its_rounding():
    torch.manual_seed(0)
    unet = UNet.of_widths(
        in_channels=4, out_channels=4, channels=16, multipliers=(1, 2), blocks=1, attention=(2,), context_width=8
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0]), torch.randn(2, 3, 8)

    def gradient(runtime: Runtime) -> torch.Tensor:
        unet.zero_grad()
        with runtime.autocast():
            output = unet(x, t, tokens=tokens)
        output.float().square().mean().backward()
        gradients = [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]
        assert all(one.dtype == torch.float32 for one in gradients), "the weights are float32, and so are theirs"
        return torch.cat([one.flatten() for one in gradients])

    full, half = gradient(Runtime()), gradient(Runtime(dtype=torch.bfloat16))
    # 2^-8 a rounding, and some twenty layers whose roundings add up as a random walk, forwards and backwards.
    assert (half - full).norm() / full.norm() < 2**-8 * 40**0.5 * 2
