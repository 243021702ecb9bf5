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


def test_threads() -> None:
    before = torch.get_num_threads()
    runtime.resolve(threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
