"""The sheets of an evaluation: conditions beside samples and truth, samples beside their nearest training picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ldmkit.conditioning import ConditionerSet, Tensors
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.images import Example, save, sheet, to_pil
from ldmkit.evaluation.results import Picture


def write_pictures(
    evaluation: Evaluation, folder: Path, *, count: int = 16, run: Path | None = None
) -> tuple[Picture, ...]:
    """Writes `held-out.png` into `folder`, and `nearest.png` where neighbours were measured.

    Returns what `Results.pictures` holds, with names relative to `run` (default: the directory that `folder` is in). The first
    `count` rows of the evaluation are shown: nothing is selected.
    """
    place = folder.relative_to(run or folder.parent).as_posix()
    place = "" if place == "." else f"{place}/"
    count = min(count, evaluation.distinct)
    save(sheet(held_out_examples(evaluation, count), title="Held-out conditions"), folder / "held-out.png")
    sampled = (
        f"The first {count} held-out pictures in a fixed order, each sample with its own fixed seed from {evaluation.seed}; "
        "nothing is selected."
    )
    pictures = [Picture(f"{place}held-out.png", "Samples for held-out conditions", sampled)]
    if evaluation.neighbours is not None:
        save(
            sheet(neighbour_examples(evaluation, min(8, count)), title="Nearest training pictures"),
            folder / "nearest.png",
        )
        caption = "Samples beside the training picture nearest to each of them."
        pictures.append(Picture(f"{place}nearest.png", "Does it copy?", caption))
    return tuple(pictures)


def preview(conditioners: ConditionerSet, row: dict[str, Tensors | None]) -> tuple[list[tuple[str, Image.Image]], str]:
    """What a person sees of a row's conditions: titled pictures, and words."""
    pictures: list[tuple[str, Image.Image]] = []
    words: list[str] = []
    for slot in conditioners:
        prepared = row[slot]
        seen = None if prepared is None else conditioners.examiner(slot).preview(prepared)
        if isinstance(seen, Image.Image):
            pictures.append((slot.replace("_", " "), seen))
        elif seen is not None:
            words.append(seen)
    return pictures, ", ".join(words)


def held_out_examples(evaluation: Evaluation, count: int) -> list[Example]:
    """The conditions (and bicubic, where one is a smaller picture), the sample and the truth of the first rows."""
    examples = []
    for index in range(count):
        conditions, caption = preview(evaluation.model.conditioners, evaluation.rows[index])
        pictures = list(conditions)
        if evaluation.baseline is not None:
            pictures.append(("bicubic", to_pil(evaluation.baseline[index])))
        pictures += [("sample", to_pil(evaluation.generated[index])), ("truth", to_pil(evaluation.truth[index]))]
        examples.append(Example(pictures, caption))
    return examples


def neighbour_examples(evaluation: Evaluation, count: int) -> list[Example]:
    """The first samples, each beside the nearest training picture."""
    assert evaluation.neighbours is not None
    examples = []
    for sample, (item, distance) in zip(evaluation.generated, evaluation.neighbours[:count], strict=False):
        training = evaluation.train.readable(item)["image"]
        examples.append(
            Example([("sample", to_pil(sample)), ("training", to_pil(training))], f"{distance:.0f} grey levels apart")
        )
    return examples
