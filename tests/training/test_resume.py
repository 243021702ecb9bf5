"""An interrupted stage ends with the same bits as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmkit.training.autoencoder import train_autoencoder
from ldmkit.training.caching import latents
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.diffusion import train_diffusion
from ldmkit.training.logging.log import Log, read
from ldmkit.training.stop import Interrupted, Stop
from tests.conftest import checksums
from tests.training.conftest import Soon


class CrashError(Exception):
    """What a process does not survive."""


def diffusion(
    toy: SimpleNamespace, folder: Path, *, stop: Stop | None = None, crash_at: int = -1, **options: Any
) -> Any:
    """One process' share of the diffusion stage: all is built anew."""

    def observer(stage: str, step: int, values: Mapping[str, float]) -> None:
        if step == crash_at:
            raise CrashError

    train_settings = toy.settings(**{"log_every": 1, **options.pop("settings", {})})
    data = toy.data(**options.pop("data", {}))
    model = toy.model()
    cache = None
    if options.pop("cached", False):
        cache = latents.build(model.autoencoder, data, folder=folder / "latents", key="key", seed=5)
    return train_diffusion(
        model,
        data,
        toy.data(),
        settings=train_settings,
        seed=5,
        checkpoints=Checkpoints(folder / "diffusion"),
        log=Log(folder, observer=observer),
        stop=stop or Stop(),
        cache=cache,
        **options,
    )


def autoencoder(toy: SimpleNamespace, folder: Path, *, kind: str, stop: Stop | None = None, crash_at: int = -1) -> Any:
    def observer(stage: str, step: int, values: Mapping[str, float]) -> None:
        if step == crash_at:
            raise CrashError

    return train_autoencoder(
        toy.model(kind).autoencoder,
        toy.losses(learn_logvar=True),
        toy.data(),
        toy.data(),
        settings=toy.settings(autoencoder=True, crop=12, log_every=1),
        seed=5,
        checkpoints=Checkpoints(folder / "autoencoder"),
        log=Log(folder, observer=observer),
        stop=stop or Stop(),
    )


@pytest.fixture(scope="module")
def uninterrupted(toy: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nothing stopped; to be read only."""
    folder = tmp_path_factory.mktemp("whole")
    diffusion(toy, folder)
    return folder


@pytest.fixture(scope="module")
def whole(uninterrupted: Path) -> dict[str, str]:
    return checksums(uninterrupted / "diffusion")


def test_there_is_something_to_compare(whole: dict[str, str]) -> None:
    assert set(whole) == {"model.safetensors", "ema.safetensors", "model-optimizer.safetensors", "trainer.json"}


def test_stopped_at_every_step(toy: SimpleNamespace, tmp_path: Path, whole: dict[str, str]) -> None:
    for stops in range(1, 6):
        with pytest.raises(Interrupted) as caught:
            diffusion(toy, tmp_path / "parts", stop=Soon(1))
        assert caught.value.exit_code == 143
        newest = Checkpoints(tmp_path / "parts" / "diffusion").newest()
        assert newest is not None
        assert newest.step == stops
    diffusion(toy, tmp_path / "parts")
    assert checksums(tmp_path / "parts" / "diffusion") == whole
    steps = [line["step"] for line in read(tmp_path / "parts" / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_crash_loses_no_more_than_the_steps_since_the_checkpoint(
    toy: SimpleNamespace, tmp_path: Path, whole: dict[str, str]
) -> None:
    with pytest.raises(CrashError):
        diffusion(toy, tmp_path / "parts", crash_at=5)
    newest = Checkpoints(tmp_path / "parts" / "diffusion").newest()
    assert newest is not None
    assert newest.step == 4
    diffusion(toy, tmp_path / "parts")
    assert checksums(tmp_path / "parts" / "diffusion") == whole


def test_a_damaged_newest_checkpoint_costs_one_interval_and_no_checksums(
    toy: SimpleNamespace, tmp_path: Path, whole: dict[str, str]
) -> None:
    with pytest.raises(CrashError):
        diffusion(toy, tmp_path / "parts", crash_at=5)
    path = tmp_path / "parts" / "diffusion" / "step-00000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    diffusion(toy, tmp_path / "parts")
    assert checksums(tmp_path / "parts" / "diffusion") == whole


def test_more_steps_extend_a_finished_stage(toy: SimpleNamespace, tmp_path: Path) -> None:
    constant = {"decay": "constant", "warmup": 0}
    diffusion(toy, tmp_path / "whole", settings={**constant, "steps": 5})
    diffusion(toy, tmp_path / "parts", settings={**constant, "steps": 3})
    diffusion(toy, tmp_path / "parts", settings={**constant, "steps": 5})
    assert checksums(tmp_path / "parts" / "diffusion") == checksums(tmp_path / "whole" / "diffusion")


def test_streams_resume_as_well(toy: SimpleNamespace, tmp_path: Path) -> None:
    endless = {"data": {"count": None}, "settings": {"steps": 4}}
    diffusion(toy, tmp_path / "whole", **endless)
    with pytest.raises(Interrupted):
        diffusion(toy, tmp_path / "parts", stop=Soon(3), **endless)
    diffusion(toy, tmp_path / "parts", **endless)
    assert checksums(tmp_path / "parts" / "diffusion") == checksums(tmp_path / "whole" / "diffusion")


def test_cached_latents_change_nothing_but_rounding(toy: SimpleNamespace, tmp_path: Path, uninterrupted: Path) -> None:
    diffusion(toy, tmp_path, cached=True)
    plain, cached = (Checkpoints(folder / "diffusion").newest() for folder in (uninterrupted, tmp_path))
    assert plain is not None
    assert cached is not None
    one, other = (torch.cat([v.flatten() for v in c.tensors("model").values()]) for c in (plain, cached))
    assert float((one - other).norm() / one.norm()) < 1e-4
    losses = [
        [line["loss"] for line in read(folder / "metrics.jsonl") if "loss" in line]
        for folder in (uninterrupted, tmp_path)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_autoencoder_stage_with_both_its_optimizers(toy: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    autoencoder(toy, tmp_path / "whole", kind=kind)
    for _ in range(2):
        with pytest.raises(Interrupted):
            autoencoder(toy, tmp_path / "parts", kind=kind, stop=Soon(1))
    with pytest.raises(CrashError):
        autoencoder(toy, tmp_path / "parts", kind=kind, crash_at=5)
    autoencoder(toy, tmp_path / "parts", kind=kind)
    expected = checksums(tmp_path / "whole" / "autoencoder")
    assert {"generator-optimizer.safetensors", "discriminator-optimizer.safetensors", "losses.safetensors"} <= set(
        expected
    )
    assert checksums(tmp_path / "parts" / "autoencoder") == expected
