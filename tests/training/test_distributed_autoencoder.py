"""Stage one on several processes: networks, discriminator, adaptive weight and codebook go the way they go on one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmkit.autoencoder import Autoencoder, make
from ldmkit.training.autoencoder import train_autoencoder
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.logging.log import Log, read
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Interrupted, Stop

InRanks = Callable[..., list[Any]]
# Networks compute in float64, where another order of sums is far below; what is logged has six digits.
TOLERANCE = 1.1e-5
SMALL = {"downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 2}
GAME = {"start": 1, "layers": 1, "channels": 8}
# What each tests: options of the autoencoder, of its loss, and the values that come from more than a mean of the rows' own.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "kl": (
        {"type": "kl"},
        {"adversarial": {**GAME, "norm": "group", "r1": 1.0}, "learn_logvar": True},
        {"adaptive_weight", "r1", "logvar"},
    ),
    "averaged codes": (
        {"type": "vq", "codebook": 32, "ema": 0.8, "revive": 2},
        {"adversarial": {**GAME, "norm": "none", "lecam": 0.1, "lecam_decay": 0.5}},
        {"adaptive_weight", "lecam", "perplexity", "usage", "revived"},
    ),
    "learned codes": (
        {"type": "vq", "codebook": 32, "revive": 1},
        {"adversarial": {**GAME, "norm": "group", "loss": "vanilla"}},
        {"adaptive_weight", "perplexity", "usage", "revived"},
    ),
}


def autoencoder(kind: str) -> Autoencoder:
    torch.manual_seed(0)
    return make(**{**SMALL, **KINDS[kind][0]}).double()


def train(
    toy: SimpleNamespace,
    folder: Path,
    kind: str,
    ranks: Ranks | None = None,
    *,
    network: Autoencoder | None = None,
    stop: Stop | None = None,
) -> Autoencoder:
    ranks, network = ranks or Ranks(), network or autoencoder(kind)
    train_autoencoder(
        network,
        toy.losses(**KINDS[kind][1]).double(),
        toy.double_data(),
        toy.double_data(),
        settings=toy.settings(autoencoder=True, log_every=1, steps=5, ema=0.9),
        seed=5,
        checkpoints=Checkpoints(folder / "autoencoder", ranks=ranks),
        log=Log(folder if ranks.first else None, ranks=ranks),
        ranks=ranks,
        stop=stop or Stop(),
    )
    return network


def lines(folder: Path) -> list[dict[str, float]]:
    found = [line for line in read(folder / "metrics.jsonl") if "alarm" not in line]
    return [
        {name: v for name, v in line.items() if not name.endswith("per_second") and name != "stage"} for line in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(
    toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks, kind: str
) -> None:
    alone = train(toy, tmp_path / "one", kind).state_dict()
    first, second = in_ranks(2, lambda ranks: train(toy, tmp_path / "two", kind, ranks).state_dict())
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [set(line) for line in one] == [set(line) for line in two]
    seen = set().union(*one)
    assert seen >= {"loss", "discriminator_loss", "gradient_norm", "psnr", *KINDS[kind][2]}
    if "revived" in seen:
        assert sum(line.get("revived", 0) for line in one) > 0
    for line, other in zip(one, two, strict=True):
        assert other == pytest.approx(line, abs=TOLERANCE, rel=TOLERANCE), line["step"]
    for name, value in first.items():
        assert torch.equal(second[name], value), f"both have the same {name}"
        if "embedding" in name or "quantizer" in name or "idle" in name:
            assert torch.allclose(alone[name].float(), value.float(), atol=1e-4), name


@pytest.mark.slow
def test_a_stop_and_going_on_alone(toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks) -> None:
    """Codebook, counts of idle codes and both optimizers come back from what two processes saved."""
    train(toy, tmp_path / "one", "averaged codes")

    def action(ranks: Ranks) -> None:
        steps: list[int] = []

        def count(*_: Any) -> None:
            steps.append(1)
            if ranks.rank == 1 and len(steps) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        network = autoencoder("averaged codes")
        network.register_forward_pre_hook(count)
        with Stop() as stop:
            train(toy, tmp_path / "two", "averaged codes", ranks, network=network, stop=stop)

    for error in in_ranks(2, action):
        assert isinstance(error, Interrupted)
        assert "training the autoencoder, step 3 of 5" in str(error)
    train(toy, tmp_path / "two", "averaged codes")
    for line, other in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert other == pytest.approx(line, abs=TOLERANCE, rel=TOLERANCE), line["step"]
