"""What `runtime` switches in the training loops: the same numbers, or the same but for rounding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit.errors import DivergedError
from ldmkit.training.autoencoder import train_autoencoder
from ldmkit.training.checkpointing.checkpoints import Checkpoint, Checkpoints
from ldmkit.training.diffusion import train_diffusion
from ldmkit.training.logging.log import Log
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Interrupted, Stop


def train(toy: SimpleNamespace, folder: Path, runtime: Runtime, *, stop: Stop | None = None, **changes: Any) -> Any:
    state = train_diffusion(
        toy.model(),
        toy.data(),
        toy.data(),
        settings=toy.settings(**{"steps": 4, **changes}),
        seed=5,
        checkpoints=Checkpoints(folder),
        log=Log(),
        stop=stop or Stop(),
        runtime=runtime,
    )
    return torch.cat([value.flatten() for value in newest(folder).tensors("model").values()]), state


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder).newest()
    assert found is not None
    return found


@pytest.fixture
def plain(toy: SimpleNamespace, tmp_path: Path) -> Tensor:
    return train(toy, tmp_path / "plain", Runtime())[0]  # type: ignore[no-any-return]


def test_checkpointing_changes_no_bit(toy: SimpleNamespace, tmp_path: Path, plain: Tensor) -> None:
    """Activations, and what dropout draws, come out the second time as they did the first."""
    assert torch.equal(train(toy, tmp_path / "less", Runtime(checkpointing=True))[0], plain)


def test_channels_last_rounds_differently_at_most(toy: SimpleNamespace, tmp_path: Path) -> None:
    """The gradients, that is: Adam's first steps are as large for rounding noise as for what is no noise."""
    gradients = []
    for last in (False, True):
        _, state = train(toy, tmp_path / str(last), Runtime(channels_last=last), steps=1, clip=None)
        moments = state.optimizers["model"].tensors()  # after one step: a tenth of the gradient
        gradients.append(torch.cat([v.flatten() for name, v in moments.items() if name.endswith(":exp_avg")]))
    assert torch.allclose(*gradients, atol=1e-6 * float(gradients[0].abs().max()), rtol=1e-4)


class Second(Stop):
    """Asks for a stop in the second step."""

    polls = 0

    @property
    def requested(self) -> bool:
        self.polls += 1
        if self.polls == 2:
            self.request()
        return self._signal is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_comes_near_and_resumes_with_the_same_bits(
    toy: SimpleNamespace, tmp_path: Path, plain: Tensor, precision: str
) -> None:
    """fp16 with its scaler, which a recipe gets on a GPU only, works on a CPU too."""
    runtime = Runtime(dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    whole, state = train(toy, tmp_path / "whole", runtime, steps=3)
    with pytest.raises(Interrupted):
        train(toy, tmp_path / "parts", runtime, stop=Second(), steps=3)
    train(toy, tmp_path / "parts", runtime, steps=3)
    assert newest(tmp_path / "parts").manifest["files"] == newest(tmp_path / "whole").manifest["files"]
    scaler = newest(tmp_path / "whole").state["scaler"]
    assert (scaler is not None) == (precision == "fp16")
    if scaler is not None:
        assert scaler["scale"] == state.scaler.get_scale() > 1
    exact = train(toy, tmp_path / "exact", Runtime(), steps=3)[0]
    assert 1e-6 < float((whole - exact).norm() / exact.norm()) < 0.1


def test_compile_compiles_the_denoiser_once(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, so that checkpoints keep their names; the compiler itself would take a minute here."""
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    train(toy, tmp_path, Runtime(compile=True), steps=1)
    assert compiled == ["UNet"]


def test_the_autoencoder_stage_gives_up_with_its_batch_saved_too(toy: SimpleNamespace, tmp_path: Path) -> None:
    losses = toy.losses(learn_logvar=True)
    generator, calls = losses.generator, []

    def poisoned(*arguments: Any) -> Any:
        loss, values = generator(*arguments)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 2 or len(calls) > 4 else loss), values

    losses.generator = poisoned
    with pytest.raises(DivergedError, match="the autoencoder's loss was not finite 3 times in a row, up to step 7"):
        train_autoencoder(
            toy.model().autoencoder,
            losses,
            toy.data(),
            toy.data(),
            settings=toy.settings(autoencoder=True, steps=20),
            seed=5,
            checkpoints=Checkpoints(tmp_path),
            log=Log(),
            stop=Stop(),
        )
    assert newest(tmp_path).step == 6
    assert newest(tmp_path).state["skipped"] >= 3  # the lone one of step 2, and two of the row
    assert (tmp_path / "diverged-00000006" / "batch.safetensors").is_file()


def test_the_checkpoint_with_the_best_validation_stays(toy: SimpleNamespace, tmp_path: Path) -> None:
    """A learning rate that ruins the weights after the first checkpoint."""
    train(toy, tmp_path, Runtime(), steps=8, lr=0.5, warmup=8, decay="constant", ema=None)
    scores = {found.step: found.manifest["score"] for found in Checkpoints(tmp_path).all()}
    assert set(scores) == {2, 6, 8}  # the last two, and the best
    assert min(scores, key=lambda step: scores[step]) == 2
