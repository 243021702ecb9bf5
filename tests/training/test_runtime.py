from __future__ import annotations

import pytest
import torch

from ldmkit.errors import ResourceError
from ldmkit.training import runtime


def test_on_a_cpu_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_devices", lambda: {"cuda": False, "mps": False, "cpu": True})
    found = runtime.resolve()
    assert (found.device.type, found.dtype, found.precision) == ("cpu", torch.float32, "fp32")
    assert runtime.describe(found).startswith("cpu, ")
    with pytest.raises(ResourceError, match="this machine has cpu"):
        runtime.resolve(device="cuda")
    with pytest.raises(ResourceError, match="no CPU trains in"):
        runtime.resolve(precision="fp16")


def test_bf16_computes_in_bf16() -> None:
    bf16 = runtime.resolve(device="cpu", precision="bf16")
    layer = torch.nn.Linear(2, 2)
    with bf16.autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with runtime.Runtime().autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    assert not bf16.scaler().is_enabled()


def test_deterministic_is_a_switch_that_goes_off_again() -> None:
    """With it, an operation that has no algorithm of one order says so; a run without it does not inherit it."""
    runtime.resolve(device="cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    runtime.resolve(device="cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads() -> None:
    runtime.resolve(threads=2)
    assert torch.get_num_threads() == 2  # where every test begins with one


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 1), (3, 2), (64, 2)])
def test_workers_take_the_cores_that_are_left(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr(runtime, "_cores", lambda: cores)
    assert runtime.resolve(device="cpu", workers="auto").workers == workers
    assert runtime.resolve(device="cpu", workers=5).workers == 5


def test_devices_are_named_by_number_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_devices", lambda: {"cuda": True, "mps": False, "cpu": True})
    monkeypatch.setattr(runtime, "_count", lambda kind: 2)
    assert runtime.resolve(device="cuda:1", precision="fp32").device == torch.device("cuda:1")
    for wrong in ("cuda:2", "cuda:x"):
        with pytest.raises(ResourceError, match=f"device is {wrong}; there are cuda:0, cuda:1"):
            runtime.resolve(device=wrong)
    with pytest.raises(ResourceError, match="device is mps, and this machine has cuda, cpu"):
        runtime.resolve(device="mps")


def test_compiling_without_a_compiler_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ResourceError, match=r"there is no /nowhere/g\+\+"):
        runtime.resolve(device="cpu", compile=True)
    monkeypatch.setattr(runtime, "_devices", lambda: {"cuda": True, "mps": False, "cpu": True})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install triton"):
        runtime.resolve(device="cuda", precision="fp32", compile=True)


def test_channels_last_lays_out_convolutions_and_changes_no_number() -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    images = torch.randn(2, 3, 8, 8)
    before = layer(images)
    found = runtime.resolve(device="cpu", channels_last=True)
    found.place(layer)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(layer(images), before, atol=1e-6)
    assert runtime.describe(found).endswith("fp32, channels-last")


def test_tf32_is_on_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has two sets of names for it: an answer by the one and none by the other is an error in whatever asks next."""
    monkeypatch.setattr(runtime, "_devices", lambda: {"cuda": True, "mps": False, "cpu": True})
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for asked in (False, True, False):
            runtime.resolve(device="cuda", precision="fp32", tf32=asked)
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (asked, asked)
            assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if asked else "ieee")
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is asked
            assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=asked):  # which reads what it will restore
                pass
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
