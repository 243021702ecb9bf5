"""The way to the images, the command that makes the same, and errors that are shown."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np
import pytest
from ldmkit_demo.results import Result, waiting
from ldmkit_demo.sampling import Frame, Request, frames
from PIL import Image

import ldmkit
from ldmkit import cli


@dataclass
class Value:
    value: str

    @property
    def shown(self) -> str:
        return self.value


@pytest.fixture(scope="module")
def model(tiny):
    return ldmkit.load(tiny)


def last(model, request):
    *_, frame = frames(model, request)
    return frame


def test_the_command_makes_the_same_images(tiny, model, tmp_path, monkeypatch, capsys):
    asked = {"text": Value("a red  circle\non sand"), "class": Value("snow")}
    request = Request(
        asked, count=2, steps=3, sampler="ddim", guidance={"class": 2.0, "semantic_map": 1.5, "text": 3.0}, seed=5
    )
    frame = last(model, request)
    assert frame.error is None
    words = shlex.split(request.command(str(tiny)))
    assert words[:3] == ["ldmkit", "sample", str(tiny)]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[1:], "--out", "made"])
    assert not stop.value.code, capsys.readouterr().err
    for seed, image in zip((5, 6), frame.images, strict=True):
        with Image.open(f"made/seed-{seed:05d}.png") as own:
            assert np.array_equal(np.asarray(image), np.asarray(own))
    assert not np.array_equal(np.asarray(frame.images[0]), np.asarray(frame.images[1]))


def test_the_way_there_is_the_predicted_image(model, monkeypatch):
    monkeypatch.setattr("ldmkit_demo.sampling.PAUSE", 0.0)
    seen = list(frames(model, Request({"class": Value("sand")}, count=1, steps=4, seed=1)))
    assert [frame.done for frame in seen] == [0, 1, 2, 3, 4]
    assert seen[0].images == ()
    kept = []
    model.sample({"class": "sand"}, steps=4, sampler="ddim", seed=1, callback=lambda *step: kept.append(step[3]))
    truth = model.autoencoder.decode(kept[1]).clamp(-1, 1)
    pixels = np.asarray(seen[2].images[0]).astype(float) / 127.5 - 1
    assert np.abs(pixels - truth[0].permute(1, 2, 0).detach().numpy()).max() <= 1 / 255 + 1e-6
    assert seen[-1].asked == {"class": "sand"}
    assert seen[-1].seconds > 0


def test_a_warning_is_shown_beside_the_images(model):
    frame = last(model, Request({"text": Value("a magenta elephant")}, count=1, steps=1))
    assert frame.error is None
    assert "without the words 'magenta', 'elephant'" in " ".join(frame.notes)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request({"class": Value("mud")}), "there is no class 'mud'"),
        (Request(count=17), "count lies from 1 to 16"),
        (Request(steps=0), "steps lies from 1 to 1000"),
        (Request(seed=-1), "a whole number from 0 up"),
        (Request(sampler="dim"), "no sampler is called 'dim'; did you mean 'ddim'"),
        (Request(guidance="text +"), "guidance"),
    ],
)
def test_an_error_is_a_frame(model, request_, words):
    frame = last(model, request_)
    assert words in (frame.error or "")
    assert "Traceback" not in frame.error


def test_a_fault_of_ours_is_one_line_too(model, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("no")

    monkeypatch.setattr(model.conditioners["class"], "from_user", broken)
    assert last(model, Request({"class": Value("sand")})).error == "internal error: RuntimeError: no"


def test_who_goes_away_stops_the_sampler(model):
    steps = []
    way = frames(model, Request({"class": Value("sand")}, count=1, steps=900))
    handle = model.denoiser.register_forward_hook(lambda *_: steps.append(1))
    next(way)
    way.close()
    handle.remove()
    assert len(steps) < 900


def test_what_a_person_wrote_is_text_on_the_page(tmp_path):
    frame = Frame(done=1, total=1, asked={"text": "<script>1</script>"}, notes=("<b>",), seconds=1.0)
    page = Result("<i>run</i>", frame, "ldmkit sample '<x>'").html() + waiting("<i>", "<u>")
    assert not any(tag in page for tag in ("<script", "<b>", "<i>", "<x>", "<u>"))
    assert "<script" not in Result("a", Frame(error="<script>")).html()
