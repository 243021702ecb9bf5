"""A signal in whatever a run does between its trainings: it ends in good order, and the same call goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.directory import read_status
from ldmkit.runs.run import run
from ldmkit.training.caching import latents
from ldmkit.training.stop import Interrupted


@pytest.mark.slow
def test_in_each_phase(
    tmp_path: Path, recipe: Callable[..., Recipe], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tiny"
    source = type(registry.data_sources.create("squares", {}))

    def stage() -> Any:
        return read_status(place).get("stage")

    phases: list[tuple[Any, str, Callable[[], bool], str]] = [
        (source, "__getitem__", lambda: stage() is None, "while reading the data"),
        (latents, "_encode", lambda: True, "while computing latents"),
        # The last pictures of the stage, which are drawn when its checkpoint is on the disk.
        (LatentDiffusion, "sample_batch", lambda: stage() == "diffusion", "while evaluating"),
        (LatentDiffusion, "sample_batch", lambda: stage() == "evaluation", "while evaluating"),
    ]
    for owner, name, due, words in phases:
        work, heard = getattr(owner, name), []

        def signalled(*arguments: Any, work: Any = work, due: Any = due, heard: list[int] = heard, **rest: Any) -> Any:
            if not heard and due():
                heard.append(1)
                signal.raise_signal(signal.SIGTERM)
            return work(*arguments, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, signalled)
            with pytest.raises(Interrupted, match=words) as caught:
                run(recipe(), place, registry=registry, console=False)
        assert heard
        assert caught.value.exit_code == 143
        assert read_status(place)["state"] == "interrupted"
    assert run(recipe(), place, registry=registry, console=False).status["state"] == "finished"
