from __future__ import annotations

import errno
import io
import json
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldmkit.training.logging.console import Console, duration
from ldmkit.training.logging.log import METRICS, Log, read, truncate


def train(log: Log, start: int, stop: int, *, total: int = 10) -> None:
    with log.stage("diffusion", total=total, done=start, every=2) as stage:
        for step in range(start, stop):
            stage.step(step + 1, {"loss": torch.tensor(float(step)), "lr": 0.1}, images=4)
            if step + 1 == 4:
                stage.write(4, {"validation": 0.25})


def test_lines_hold_the_means_between_them(tmp_path: Path) -> None:
    train(Log(tmp_path), 0, 10)
    lines = read(tmp_path / METRICS)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses == {1: 0.0, 2: 1.0, 4: 2.5, 6: 4.5, 8: 6.5, 10: 8.5}
    assert [line["validation"] for line in lines if "validation" in line] == [0.25]
    assert all(line["stage"] == "diffusion" for line in lines)
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)


def test_a_run_that_goes_on_writes_no_step_twice_and_tensorboard_agrees(tmp_path: Path) -> None:
    train(Log(tmp_path), 0, 8)
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"stage": "diffusion", "step": 9, "lo')  # torn by a crash
    train(Log(tmp_path), 4, 10)
    lines = read(tmp_path / METRICS)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 10
    events = EventAccumulator(str(tmp_path / "tensorboard" / "diffusion"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == steps
    assert events.Scalars("loss")[-1].value == pytest.approx(8.5)


def test_truncation_leaves_other_stages_alone(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for stage, step in (("autoencoder", 50), ("diffusion", 10), ("diffusion", 20)):
        log.append(stage, step, {"loss": 1.0})
    truncate(tmp_path / METRICS, "diffusion", 10)
    assert [(line["stage"], line["step"]) for line in read(tmp_path / METRICS)] == [
        ("autoencoder", 50),
        ("diffusion", 10),
    ]


def test_numbers_that_json_has_not_are_null(tmp_path: Path) -> None:
    Log(tmp_path).append("diffusion", 1, {"loss": float("nan"), "count": 3})
    assert json.loads((tmp_path / METRICS).read_text()) == {"stage": "diffusion", "step": 1, "loss": None, "count": 3}


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()  # nothing can be appended to a directory
    out = io.StringIO()
    log = Log(tmp_path, console=Console(file=out))
    for step in range(3):
        log.append("diffusion", step, {"loss": 1.0})
    assert out.getvalue().count("warning") == 1


def test_lines_are_written_again_as_soon_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    log = Log(tmp_path, console=Console(file=out))
    log.append("diffusion", 1, {"loss": 1.0})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"stage": "diffusion", "st')  # half of a line is what a full disk took
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        for step in (2, 3):
            log.append("diffusion", step, {"loss": 1.0})
    for step in (4, 5):
        log.append("diffusion", step, {"loss": 1.0})
    assert [line["step"] for line in read(tmp_path / METRICS)] == [1, 4, 5]
    assert out.getvalue().count("warning") == 1


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_tensorboard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are written by a thread, and fail late: in any later call, and again when it is closed."""
    from torch.utils.tensorboard import SummaryWriter

    out = io.StringIO()
    log = Log(tmp_path, console=Console(file=out))
    for broken in ("add_scalar", "add_image", "close"):
        with monkeypatch.context() as patch, log.stage(broken, total=4, every=1) as stage:
            patch.setattr(SummaryWriter, broken, full)
            stage.step(1, {"loss": 1.0}, images=4)
            log.picture(1, Image.new("RGB", (6, 4)), tmp_path / "sheet.png")
            stage.step(2, {"loss": 1.0}, images=4)
    assert out.getvalue().count("could not write TensorBoard events") == 1
    assert [line["step"] for line in read(tmp_path / METRICS)] == [1, 2] * 3


def test_a_full_disk_is_no_reason_not_to_begin_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(Log(tmp_path), 0, 8)
    before = (tmp_path / METRICS).read_text()
    monkeypatch.setattr("os.replace", full)
    train(Log(tmp_path), 4, 5)
    assert (tmp_path / METRICS).read_text().startswith(before)
    assert not list(tmp_path.glob(".tmp-*"))


def test_observers_get_what_is_written(tmp_path: Path) -> None:
    seen: list[tuple[str, int, float]] = []
    train(Log(observer=lambda stage, step, values: seen.append((stage, step, values.get("loss", -1.0)))), 0, 4)
    assert seen == [("diffusion", 1, 0.0), ("diffusion", 2, 1.0), ("diffusion", 4, 2.5), ("diffusion", 4, -1.0)]


def test_a_pipe_gets_plain_lines() -> None:
    out = io.StringIO()
    train(Log(console=Console(file=out)), 0, 10)
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("diffusion 10/10  loss 8.5000, ")
    assert last.endswith("images/s, 0 s left")
    assert "\x1b" not in out.getvalue()


def test_nobody_listens() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(file=Closed())
    console.note("hello")
    console.note("again")
    assert not console.enabled


def test_a_narrow_code_page_is_no_reason_to_stop() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=out).note("caf\u00e9")
    out.flush()
    assert raw.getvalue() == b"caf?\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (185, "3:05 min"), (7800, "2:10 h")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with log.stage("diffusion", total=4) as stage:
        stage.step(1, {"loss": 1.0}, images=4)
        log.picture(1, Image.new("RGB", (6, 4), (255, 0, 0)), tmp_path / "sheet.png")
    log.picture(2, Image.new("RGB", (6, 4)), tmp_path / "sheet.png")  # no stage runs: nobody to show it to
    events = EventAccumulator(str(tmp_path / "tensorboard" / "diffusion"))
    events.Reload()
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (1, 6, 4)


def test_a_loss_out_of_all_proportion_is_an_alarm(tmp_path: Path) -> None:
    out = io.StringIO()
    with Log(tmp_path, console=Console(file=out)).stage("diffusion", total=9, every=1) as stage:
        for step, loss in enumerate([1.0, 2.0, 0.5, 1.0, 1.0, 900.0, 2000.0, 1.0], start=1):
            stage.step(step, {"loss": loss}, images=4)
    alarms = [line for line in read(tmp_path / METRICS) if "alarm" in line]
    assert [(line["step"], line["alarm"].split(";")[0]) for line in alarms] == [
        (7, "the loss is 2e+03 at step 7, and was 1")
    ]
    assert "warning: diffusion: the loss is 2e+03" in out.getvalue()


def test_a_checkpoint_that_outlasts_the_grace_of_a_scheduler_is_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Log(tmp_path).stage("diffusion", total=9) as stage:
        with stage.saving(1):
            pass
        assert not any("alarm" in line for line in read(tmp_path / METRICS))
        monkeypatch.setattr("ldmkit.training.logging.log.GRACE", 0.01)
        for step in (2, 3):
            with stage.saving(step):
                time.sleep(0.02)
    alarms = [line for line in read(tmp_path / METRICS) if "alarm" in line]
    assert [line["step"] for line in alarms] == [2]  # once
    assert "between SIGTERM and SIGKILL" in alarms[0]["alarm"]


def test_a_pipe_is_no_terminal_whatever_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a display of ten frames a second, full of escape sequences, goes into a file."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    out = io.StringIO()
    console = Console(file=out)
    assert not console.live
    with console.progress("work", total=1000) as progress:
        for done in range(1, 1001):
            progress.update(done, "at it")
    assert out.getvalue() == "work 1000/1000  at it\n"


def test_no_line_is_said_twice_and_one_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ldmkit.training.logging.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Console(file=out).progress("work", total=200) as progress:
        for done in range(1, 201):
            now[0] += 0.1
            progress.update(done)
    lines = out.getvalue().splitlines()
    assert lines[-1] == "work 200/200"
    assert len(lines) == len(set(lines)) <= 1 + 20
