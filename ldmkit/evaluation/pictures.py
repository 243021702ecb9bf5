"""The sheets of an evaluation: conditions beside samples and truth, samples beside their nearest training picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldmkit.conditioning import ConditionerSet, Tensors
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.images import Example, save, sheet, to_pil
from ldmkit.evaluation.results import Picture

LEVELS = 127.5  # of [-1, 1], in 8-bit grey levels
WHITE = 0.5  # the mean difference over the channels, of images in [-1, 1], that an error map shows as white
STAGES = 6  # on the way from noise to image
SHOWN = 8  # examples on the sheets besides the samples


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
    pictures = [] if evaluation.alone else _samples(evaluation, folder, count, place)
    shown = min(SHOWN, count)
    save(sheet(reconstruction_examples(evaluation, shown), title="Reconstructions"), folder / "reconstructions.png")
    caption = (
        f"The first {shown} held-out images, what the autoencoder makes of them, and the absolute difference: black is none, "
        f"white is {round(WHITE * LEVELS)} grey levels or more."
    )
    pictures.append(Picture(f"{place}reconstructions.png", "What the autoencoder loses", caption))
    if evaluation.neighbours is not None:
        page = sheet(neighbour_examples(evaluation, shown), title="Nearest training pictures")
        save(page, folder / "nearest.png")
        caption = "Samples beside the training picture nearest to each of them."
        pictures.append(Picture(f"{place}nearest.png", "Does it copy?", caption))
    return tuple(pictures)


def _samples(evaluation: Evaluation, folder: Path, count: int, place: str) -> list[Picture]:
    save(sheet(held_out_examples(evaluation, count), title="Held-out conditions"), folder / "held-out.png")
    sampled = (
        f"The first {count} held-out pictures in a fixed order, each sample with its own fixed seed from {evaluation.seed}; "
        "nothing is selected."
    )
    shown = Picture(f"{place}held-out.png", "Samples for held-out conditions", sampled)
    examples = denoising_examples(evaluation, min(4, count))
    if not examples:
        return [shown]
    save(sheet(examples, title="Progressive denoising"), folder / "denoising.png")
    way = f"What the model takes for the final image on the way, from noise to the end, of the first {min(4, count)} samples."
    return [shown, Picture(f"{place}denoising.png", "Progressive denoising", way)]


def denoising_examples(evaluation: Evaluation, count: int) -> list[Example]:
    """Of the first rows, the clean image that is predicted at about `STAGES` steps of the sampler, the last one included.

    None of a sampler that calls nobody back.
    """
    kept: list[tuple[int, Tensor]] = []

    def keep(done: int, total: int, noisy: Tensor, clean: Tensor) -> None:
        number = min(STAGES, total)
        if done * number // total > (done - 1) * number // total:
            kept.append((done, clean))

    evaluation.sampled(slice(0, count), callback=keep)
    with torch.no_grad():
        columns = [(done, evaluation.model.autoencoder.decode(clean).float().cpu()) for done, clean in kept]
    return [
        Example([(f"step {done}", to_pil(images[row])) for done, images in columns], preview_words(evaluation, row))
        for row in range(count if kept else 0)
    ]


def preview_words(evaluation: Evaluation, row: int) -> str:
    """The row's conditions in words."""
    return preview(evaluation.model.conditioners, evaluation.rows[row])[1]


def reconstruction_examples(evaluation: Evaluation, count: int) -> list[Example]:
    """The first held-out images, their reconstructions, and where the two differ."""
    examples = []
    for index in range(count):
        truth, decoded = evaluation.truth[index], evaluation.reconstructions[index]
        error = (truth - decoded).abs().mean(dim=0, keepdim=True)
        level = f"{float(error.mean()) * LEVELS:.1f} grey levels on average"
        images = [("held out", truth), ("reconstruction", decoded), ("error", error / WHITE * 2 - 1)]
        examples.append(Example([(title, to_pil(image)) for title, image in images], level))
    return examples


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
