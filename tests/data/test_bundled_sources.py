"""photos, digits and scenes, and the judges against real pictures."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldmkit.data import Dataset, Sample, Source
from ldmkit.data.sources.digits.source import DigitsSource
from ldmkit.data.sources.photos import GREY_PHOTOS, PHOTOS, PhotosSource
from ldmkit.data.sources.scenes.judges import parse
from ldmkit.data.sources.scenes.place_judges import iou
from ldmkit.data.sources.scenes.source import RELATIONS, ScenesSource
from ldmkit.errors import DataError


def samples(source: Source, size: int, count: int) -> tuple[torch.Tensor, list[Sample]]:
    dataset = Dataset(source, size=size)
    out = [dataset.sample(item) for item in range(count)]
    return torch.stack([sample["image"] for sample in out]), out


# photos


def test_two_photographs_are_held_out_whole() -> None:
    source = PhotosSource()
    train = {source.split("train")[i]["name"] for i in range(source.split("train").info().count)}
    held_out = source.split("validation")
    names = {held_out[i]["name"] for i in range(held_out.info().count)}
    assert names == {"chelsea", "coffee"}
    assert not names & train
    assert len(names | train) == len(PHOTOS) == 9


def test_grey_photographs_are_added_on_request_and_can_be_held_out() -> None:
    source = PhotosSource(grey=True, held_out=("camera", "chelsea"))
    train, held_out = source.split("train"), source.split("validation")
    assert train.info().count + held_out.info().count == len(PHOTOS) + len(GREY_PHOTOS)
    image = next(held_out[i]["image"] for i in range(2) if held_out[i]["name"] == "camera")
    red, green, blue = image.split()
    assert red.tobytes() == green.tobytes() == blue.tobytes()
    with pytest.raises(DataError, match="camera"):
        PhotosSource(held_out=("camera",))


def test_every_photograph_is_there_and_attributed() -> None:
    for part in ("train", "validation"):
        source = PhotosSource(grey=True).split(part)
        for index in range(source.info().count):
            assert source[index]["image"].mode == "RGB"
            assert min(source[index]["image"].size) >= 300
            assert source[index]["name"] in source.attribution()
    assert "CC BY 2.0" in PhotosSource().attribution()


def test_views_of_photographs_are_distinct_and_repeatable() -> None:
    source = PhotosSource().split("validation")
    dataset = Dataset(source, size=64, **source.view_defaults)
    assert len(dataset) == 2 * 512
    first = torch.stack([dataset.sample(item)["image"] for item in range(20)])
    again = Dataset(pickle.loads(pickle.dumps(source)), size=64, **source.view_defaults)
    assert torch.equal(first, torch.stack([again.sample(item)["image"] for item in range(20)]))
    assert len(torch.unique(first.flatten(1), dim=0)) == 20


def test_photographs_that_do_not_exist() -> None:
    with pytest.raises(DataError, match=r"held_out is \['dog'\]"):
        PhotosSource(held_out=("dog",))


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmkit.data.sources.photos.find_spec", lambda name: None)
    monkeypatch.setattr(
        "ldmkit.data.sources.photos._decode", PhotosSource.__getitem__.__globals__["_decode"].__wrapped__
    )
    with pytest.raises(DataError, match=r'pip install "ldmkit\[samples\]"'):
        PhotosSource()[0]["image"]


def test_using_them_imports_neither_library() -> None:
    code = (
        "import sys; from ldmkit.data.sources.photos import PhotosSource; "
        "from ldmkit.data.sources.digits.source import DigitsSource; "
        "PhotosSource()[0]['image']; DigitsSource()[0]['image']; "
        "assert not {'skimage', 'sklearn', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# digits


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    train, held_out = DigitsSource(), DigitsSource().split("validation")
    assert (train.info().count, held_out.info().count) == (1442, 355)
    assert sorted([*train.rows, *held_out.rows]) == list(range(1797))
    for index in (0, 17, 354):
        row = held_out.rows[index]
        assert held_out[index]["label"] == truth.target[row]
        assert np.array_equal(np.round(np.array(held_out[index]["image"]) * (16 / 255)), truth.images[row])


def test_the_held_out_digits_are_a_fifth_of_each_class() -> None:
    train, held_out = DigitsSource(), DigitsSource().split("validation")
    for label in range(10):
        counts = [sum(s[i]["label"] == label for i in range(s.info().count)) for s in (train, held_out)]
        assert counts[1] == sum(counts) // 5


def test_the_digit_judge_reads_held_out_digits() -> None:
    source = DigitsSource()
    images, truth = samples(source.split("validation"), 32, 355)
    judge = source.judge("label")
    assert judge is not None
    score = judge.score(images, truth)
    assert score.shape == (355,)
    assert score.mean() >= 0.98
    assert judge.score(images.expand(-1, 3, -1, -1), truth).mean() >= 0.98
    assert judge.score(images, truth[1:] + truth[:1]).mean() < 0.2
    assert source.judge("caption") is None


# scenes


def test_scenes_are_a_function_of_seed_and_index() -> None:
    a, b = ScenesSource(seed=1), pickle.loads(pickle.dumps(ScenesSource(seed=1)))
    b[3]["image"]  # what was drawn before does not matter
    assert np.array_equal(np.array(a[12]["image"]), np.array(b[12]["image"]))
    assert a[12]["caption"] == b[12]["caption"]
    other = ScenesSource(seed=2)
    assert not np.array_equal(np.array(a[12]["image"]), np.array(other[12]["image"]))
    held_out = a.split("validation")
    assert held_out.info().count == 1024
    assert a.info().count is None
    assert not np.array_equal(np.array(a[0]["image"]), np.array(held_out[0]["image"]))


def test_the_fields_of_a_scene_agree() -> None:
    source = ScenesSource(shapes=(1, 4), kinds=ScenesSource.KINDS)
    info = source.info()
    relations = set()
    for index in range(120):
        sample = source[index]
        asked = parse(sample["caption"])
        relations.add(asked.relation)
        assert info.fields["label"].names[sample["label"]] == asked.ground
        assert len(asked.shapes) == len(sample["boxes"]) == sample["shapes"]
        assert len({color for color, _ in asked.shapes}) == len(asked.shapes)
        ids = sample["map"]
        for (_, kind), (box_kind, left, top, right, bottom) in zip(asked.shapes, sample["boxes"], strict=True):
            assert info.fields["boxes"].names[int(box_kind)] == kind
            rows, columns = np.nonzero(ids == info.fields["map"].names.index(kind))
            x, y = (columns + 0.5) / 64, (rows + 0.5) / 64
            inside = (x > left) & (x < right) & (y > top) & (y < bottom)
            area = (right - left) * (bottom - top) * 64**2
            assert (
                {"circle": 0.74, "square": 0.9, "triangle": 0.44, "star": 0.25}[kind] * area
                <= inside.sum()
                <= area * 1.1
            )
            assert min(left, top) >= 0
            assert max(right, bottom) <= 1
        if asked.relation is not None:
            centres = (sample["boxes"][:, 1:3] + sample["boxes"][:, 3:5]) / 2
            offset = centres[0] - centres[1]
            assert offset @ np.array(RELATIONS[asked.relation]) > 0.15
    assert relations == {None, *RELATIONS}


def test_judges_read_held_out_scenes() -> None:
    source = ScenesSource()
    images, truth = samples(source.split("validation"), 64, 48)
    shuffled = truth[1:] + truth[:1]
    scores = {"caption": (0.99, 0.35), "map": (0.98, 0.2), "label": (0.99, 0.5), "boxes": (0.9, 0.15)}
    for field, (least, most_by_chance) in (scores | {"keypoints": (0.99, 0.15)}).items():
        judge = source.judge(field)
        assert judge is not None
        assert judge.score(images, truth).mean() >= least
        assert judge.score(images, shuffled).mean() <= most_by_chance
        blurred = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
        assert judge.score(blurred, truth).mean() >= least - 0.03


def test_judges_of_places_agree_with_what_is_drawn() -> None:
    source = ScenesSource(shapes=(2, 2))
    (image,), (sample,) = samples(source, 64, 1)
    for field in ("boxes", "keypoints"):
        judge = source.judge(field)
        assert judge is not None
        rows = sample[field]
        one, none = rows[:1], rows[:0]
        assert float(judge.score(image[None], [{field: rows}])) > 0.85
        assert float(judge.score(image[None], [{field: one}])) == pytest.approx(0.5, abs=0.1)  # a shape too many
        assert float(judge.score(image[None], [{field: none}])) == 0.0
        moved = rows.clone()
        moved[:, 1:] = (moved[:, 1:] + 0.5) % 1
        assert float(judge.score(image[None], [{field: moved}])) < 0.3
    # 1 of 1 + 1 - 1/4: squares of side 1 that overlap in a quarter
    assert iou((0, 0, 1, 1), (0.5, 0.5, 1.5, 1.5)) == pytest.approx(0.25 / 1.75)


def test_judges_see_what_is_wrong() -> None:
    source = ScenesSource(shapes=(2, 2))
    (image,), (sample,) = samples(source, 64, 1)
    caption = source.judge("caption")
    assert caption is not None

    def score(text: str) -> float:
        return float(caption.score(image[None], [{"caption": text}]))

    asked = parse(sample["caption"])
    assert score(sample["caption"]) == 1.0
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[asked.relation or ""]
    assert (
        score(sample["caption"].replace(asked.relation or "", opposite)) == 0.75
    )  # of two shapes, a ground, a relation
    other = next(ground for ground in source.grounds if ground != asked.ground)
    assert score(sample["caption"].replace(asked.ground, other)) == 0.75
    kind = next(kind for kind in source.kinds if kind not in dict(asked.shapes).values())
    assert score(sample["caption"].replace(asked.shapes[0][1], kind, 1)) == 0.5  # the relation goes with the shape
    grey = source.judge("map")
    assert grey is not None
    assert float(grey.score(torch.zeros(1, 3, 64, 64), [sample])) < 0.35


def test_captions_in_words() -> None:
    captions = {
        len(parse(c).shapes): c for c in (ScenesSource(shapes=(1, 3), relations=False)[i]["caption"] for i in range(30))
    }
    assert captions[1].count(" a ") == 0
    assert " and a " in captions[2]
    assert ", a " in captions[3]
    with pytest.raises(DataError, match="no caption of a scene"):
        parse("a photograph of a dog")


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ("blob",)},
        {"colors": ("red", "red")},
        {"shapes": (0, 2)},
        {"shapes": (2, 9)},
        {"count": 0},
        {"size": 4},
    ],
)
def test_impossible_scenes(options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        ScenesSource(**options)  # type: ignore[arg-type]
