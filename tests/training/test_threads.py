"""The number of threads is measured without leaving a trace, chosen, kept, and the same after a stop."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmkit.training import threads as module
from ldmkit.training.autoencoder import train_autoencoder
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.diffusion import train_diffusion
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import Log, read
from ldmkit.training.openmp import wait_passively
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Interrupted, Stop
from ldmkit.training.threads import Threads, chosen, measure
from tests.conftest import checksums
from tests.training.conftest import Soon


class Clock:
    """Time that passes only in what is measured: `seconds` of a trial, by the number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.trials = 0.0, seconds, []

    def trial(self) -> None:
        count = torch.get_num_threads()
        self.trials.append(count)
        self.now += self.seconds[count]

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[int, float]], Clock]]:
    def make(seconds: dict[int, float]) -> Clock:
        found = Clock(seconds)
        monkeypatch.setattr(module, "time", found)
        return found

    torch.set_num_threads(4)
    yield make
    torch.set_num_threads(1)


def test_each_number_is_measured_in_turn_and_the_fewest_of_the_fastest_are_chosen(
    clock: Callable[[dict[int, float]], Clock],
) -> None:
    quiet = clock({4: 1.0, 2: 1.5, 1: 2.9})
    found = measure(quiet.trial, 4)
    assert found == pytest.approx({4: 1.0, 2: 1.5, 1: 2.9})
    assert quiet.trials[:6] == [4, 2, 1, 4, 2, 1], "in turn: a moment of noise is everybody's"
    assert chosen(found) == 4
    assert chosen({4: 1.0, 2: 1.02, 1: 1.2}) == 2, "what brings nothing is left to others"
    busy = clock({4: 9.0, 2: 2.5, 1: 1.0})
    assert chosen(measure(busy.trial, 4)) == 1
    assert busy.trials.count(4) <= 2, "a hopeless number is not tried again and again"
    many = clock({64: 1.0, 32: 1.9, 16: 3.5, 8: 7.0, 4: 14.0, 2: 28.0, 1: 56.0})
    assert chosen(measure(many.trial, 64)) == 64
    assert set(many.trials) == {64, 32, 16}, "what is slower still is left out"


def test_a_hiccup_is_no_speed(clock: Callable[[dict[int, float]], Clock]) -> None:
    own = clock({2: 1.0, 1: 1.9})
    once = iter([0.0] * 4 + [20.0] + [0.0] * 40)

    def trial() -> None:
        own.trial()
        own.now += next(once)

    assert chosen(measure(trial, 2)) == 2


def pace(folder: Path, own: Clock, step: int = 0) -> tuple[Threads, module.Pace, Log]:
    torch.set_num_threads(4)
    threads = Threads(folder, automatic=True)
    log = Log(folder, console=Console(file=io.StringIO()))
    return threads, threads.pace("diffusion", step, log, own.trial), log


def run(found: module.Pace, own: Clock, first: int, count: int, seconds: float) -> None:
    for done in range(first, first + count):
        with found.step(done):
            own.now += seconds


def test_the_number_is_kept_and_measured_again_when_the_speed_falls(
    tmp_path: Path, clock: Callable[[dict[int, float]], Clock]
) -> None:
    own = clock({4: 1.0, 2: 2.0, 1: 4.0})
    _, found, log = pace(tmp_path, own)
    run(found, own, 0, 100, 1.0)
    found.saved(100)
    assert torch.get_num_threads() == 4
    assert not found.slow
    own.seconds.update({4: 9.0, 2: 2.5, 1: 2.4})
    run(found, own, 100, 49, 9.0)
    run(found, own, 149, 1, 9.0)
    assert found.slow
    assert torch.get_num_threads() == 4, "never between two checkpoints"
    found.saved(150)
    assert torch.get_num_threads() == 1
    assert not found.slow
    rows = [{"stage": "diffusion", "step": step, "threads": number} for step, number in ((0, 4), (150, 1))]
    assert json.loads((tmp_path / "threads.json").read_text()) == rows
    said = log.console.file.getvalue()  # type: ignore[attr-defined]
    assert "threads: 4 for the diffusion (1000 ms a step with 4, 2000 ms a step with 2" in said
    assert "less than half its speed" in said
    assert [line["threads"] for line in read(tmp_path / "metrics.jsonl")] == [4, 1]
    # A process that goes on takes the number of its checkpoint, and measures nothing.
    for step, number in ((150, 1), (120, 4)):
        torch.set_num_threads(4)
        trials = len(own.trials)
        _, found, _ = pace(tmp_path, own, step)
        assert torch.get_num_threads() == number
        run(found, own, step, 1, 1.0)
        assert (torch.get_num_threads(), len(own.trials)) == (number, trials)
    assert json.loads((tmp_path / "threads.json").read_text()) == rows[:1], "what later steps said is lost with them"


def test_who_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    cases: list[tuple[Any, Runtime, Ranks, bool]] = [
        ("auto", Runtime(), Ranks(), True),
        (4, Runtime(), Ranks(), False),
        (None, Runtime(), Ranks(), False),
        ("auto", Runtime(), Ranks(0, 2), False),
        ("auto", Runtime(compile=True), Ranks(), False),
        ("auto", Runtime(torch.device("meta")), Ranks(), False),
    ]
    for asked, runtime, ranks, expected in cases:
        assert Threads.of(tmp_path, asked, runtime, ranks).automatic is expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not Threads.of(tmp_path, "auto", Runtime(), Ranks()).automatic, "the user's own number stays"
    torch.set_num_threads(1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert not Threads.of(tmp_path, "auto", Runtime(), Ranks()).automatic, "there is nothing to choose from"


def test_the_number_from_before_comes_back() -> None:
    torch.set_num_threads(2)
    with Threads(automatic=True):
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("text", ["{", "{}", '[{"stage": "diffusion"}]', "[3]"])
def test_a_record_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "threads.json").write_text(text)
    assert Threads(tmp_path).recorded("diffusion", 9) is None


class Steady(Threads):
    """Measures as it does, and takes one thread, so that bits can be compared with a run of one."""

    def record(self, stage: str, step: int, number: int) -> None:
        super().record(stage, step, 1)
        torch.set_num_threads(1)


def train(toy: SimpleNamespace, folder: Path, kind: str, threads: Threads, stop: Stop | None = None) -> dict[str, str]:
    options: dict[str, Any] = {"seed": 5, "log": Log(folder), "stop": stop or Stop(), "threads": threads}
    if kind == "diffusion":
        settings = toy.settings(accumulate=2)
        checkpoints = Checkpoints(folder / kind)
        train_diffusion(toy.model(), toy.data(), toy.data(), settings=settings, checkpoints=checkpoints, **options)
        return checksums(folder / kind)
    settings, checkpoints = toy.settings(autoencoder=True), Checkpoints(folder / kind)
    model, losses = toy.model("vq").autoencoder, toy.losses()
    if kind == "averaged codes":
        torch.manual_seed(0)
        small = {"downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 2}
        from ldmkit.autoencoder import make

        model = make("vq", **small, codebook=16, ema=0.8, revive=2)
    train_autoencoder(model, losses, toy.data(), toy.data(), settings=settings, checkpoints=checkpoints, **options)
    return checksums(folder / kind)


@pytest.mark.parametrize("kind", ["diffusion", "learned codes", "averaged codes"])
def test_measuring_changes_no_bit(toy: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    """Dropout, codes that a forward pass moves, gradients: all as if nothing had been measured."""
    plain = train(toy, tmp_path / "plain", kind, Threads())
    torch.set_num_threads(2)
    threads = Steady(tmp_path / "measured", automatic=True)
    assert threads.automatic
    assert train(toy, tmp_path / "measured", kind, threads) == plain
    assert threads.recorded(kind if kind == "diffusion" else "autoencoder", 0) == 1


def test_a_stopped_stage_goes_on_with_its_number(toy: SimpleNamespace, tmp_path: Path) -> None:
    plain = train(toy, tmp_path / "plain", "diffusion", Threads())
    torch.set_num_threads(2)
    with pytest.raises(Interrupted):
        train(toy, tmp_path / "parts", "diffusion", Steady(tmp_path / "parts", automatic=True), Soon(3))
    torch.set_num_threads(2)
    threads = Threads(tmp_path / "parts", automatic=True)
    assert train(toy, tmp_path / "parts", "diffusion", threads) == plain
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("own", "policy"),
    [
        ({}, "PASSIVE"),
        ({"OMP_NUM_THREADS": "2"}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, None),
        ({"KMP_BLOCKTIME": "0"}, None),
    ],
)
def test_threads_wait_passively_unless_the_user_says_how(own: dict[str, str], policy: str | None) -> None:
    environment = dict(own)
    wait_passively(environment)
    assert environment.get("OMP_WAIT_POLICY") == policy
    assert {name: environment[name] for name in own} == own
