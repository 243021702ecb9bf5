"""The evaluation's shared, deterministic inputs."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ldmkit.errors import DataError
from ldmkit.evaluation.context import Evaluation, condition_fields


def test_rows_repeat_only_after_every_held_out_picture_was_used(evaluation: Evaluation) -> None:
    assert sorted(evaluation.items[:40]) == list(range(40))
    assert evaluation.items[40:] == evaluation.items[:8]
    assert evaluation.distinct == 40
    assert evaluation.truth.shape == (40, 3, 32, 32)
    assert evaluation.reconstructions.shape == (40, 3, 32, 32)
    assert evaluation.generated.shape == (48, 3, 32, 32)
    assert len(evaluation.validation.read) == 40  # type: ignore[attr-defined]


def test_latents_go_with_their_rows(evaluation: Evaluation) -> None:
    batch = evaluation.encoded(evaluation.batch)
    assert batch.latents is not None
    expected = evaluation.model.autoencoder.posterior(evaluation.batch.images).mean
    torch.testing.assert_close(batch.latents["mean"], expected)


def test_endless_data_are_taken_in_order(evaluation: Evaluation) -> None:
    evaluation.validation.count = None  # type: ignore[misc, assignment]
    assert evaluation.items == list(range(48))


def test_samples_do_not_depend_on_the_chunk(evaluation: Evaluation) -> None:
    whole = evaluation.generated
    calls = evaluation.model.calls  # type: ignore[attr-defined]
    assert [(call["seed"], call["rows"]) for call in calls] == [(3, 16), (19, 16), (35, 16)]
    del evaluation.__dict__["generated"]
    evaluation.chunk = 7
    assert torch.equal(evaluation.generated, whole)


def test_shuffled_leaves_no_row_in_place_and_uses_every_row(evaluation: Evaluation) -> None:
    assert sorted(evaluation.shuffled.tolist()) == list(range(48))
    assert not (evaluation.shuffled == torch.arange(48)).any()


def test_baseline_is_pillows_bicubic_of_the_small_picture(evaluation: Evaluation) -> None:
    assert evaluation.baseline_slot == "small"
    assert evaluation.baseline is not None
    conditioner = evaluation.model.conditioners["small"]
    small = conditioner.preview(evaluation.rows[5]["small"])  # type: ignore[arg-type]
    assert isinstance(small, Image.Image)
    assert small.size == (8, 8)
    expected = small.resize((32, 32), Image.Resampling.BICUBIC).getpixel((3, 4))
    got = tuple(round((float(v) + 1) * 127.5) for v in evaluation.baseline[5, :, 4, 3])
    assert got == expected


def test_progress_counts_pictures_and_check_can_stop(evaluation: Evaluation) -> None:
    told: list[tuple[str, int, int]] = []
    evaluation.progress = lambda *told_now: told.append(told_now)
    _ = evaluation.generated
    assert [t for t in told if t[0] == "sampling"] == [("sampling", done, 48) for done in (0, 16, 32, 48)]

    def stop() -> None:
        raise KeyboardInterrupt

    evaluation.check = stop
    with pytest.raises(KeyboardInterrupt):
        _ = evaluation.reconstructions


def test_a_field_the_data_do_not_have_is_named() -> None:
    sample = {"image": torch.zeros(3, 8, 8), "label": 1}
    assert condition_fields(sample, {"label": "label"}, "kind") == sample
    assert condition_fields({**sample, "label": None}, {"label": "label"}, "kind") is None
    with pytest.raises(DataError, match=r"slot words reads the field 'caption'; the data have image, label"):
        condition_fields(sample, {"text": "caption"}, "words")
