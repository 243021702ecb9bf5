"""The inpainting conditioners: their contract, masks and values, and the channels of the released codes as the truth."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ldmkit_inpainting import masks, values
from ldmkit_inpainting.conditioner import InpaintingConditioner, MasksConditioner
from PIL import Image

from ldmkit.conditioning import Canvas, ForeignStage
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import LATENT, check_conditioner


def canvas(size=(64, 64), picture=None) -> Canvas:
    """Its latent is the mean over 8 x 8 pixels, in as many channels as LATENT has."""
    return Canvas(
        size,
        (size[0] // 8, size[1] // 8),
        torch.device("cpu"),
        torch.float32,
        lambda images: F.avg_pool2d(images.mean(1, True), 8).repeat(1, LATENT.channels, 1, 1),
        picture=picture,
    )


def image(height=64, width=64, seed=0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def opened(path) -> Image.Image:
    with Image.open(path) as found:
        found.load()
        return found


def files(folder, size=(64, 64), mask=(64, 64)) -> tuple[str, str]:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    white = np.zeros(mask, dtype=np.uint8)
    white[: mask[0] // 2] = 255
    Image.fromarray(white).save(folder / "mask.png")
    return str(folder / "photo.png"), str(folder / "mask.png")


def test_contract(tmp_path):
    conditioner = InpaintingConditioner(latent=LATENT)
    check_conditioner(
        conditioner, {"image": image()}, others=[{"image": image(seed=1)}], value=",".join(files(tmp_path))
    )


def test_contract_with_the_datas_own_masks():
    mask = torch.full((1, 64, 64), -1.0)
    mask[:, 10:30, 20:40] = 1
    check_conditioner(MasksConditioner(latent=LATENT), {"image": image(), "mask": mask})


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_inpainting; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# masks


@pytest.mark.parametrize("kind", ["boxes", "strokes", "wide", "medium"])
def test_masks_are_a_function_of_the_generator_and_leave_something(kind):
    shares = []
    for seed in range(40):
        first = masks.drawn((48, 80), [kind], torch.Generator().manual_seed(seed))
        again = masks.drawn((48, 80), [kind], torch.Generator().manual_seed(seed))
        assert torch.equal(first, again)
        assert first.shape == (48, 80)
        shares.append(float(first.float().mean()))
    assert min(shares) >= masks.LEAST
    assert max(shares) <= masks.MOST
    assert len(set(shares)) > 20


def test_wide_masks_cover_more_than_medium_boxes():
    def mean(draw):
        return np.mean([float(draw(masks.Chance(torch.Generator().manual_seed(s))).float().mean()) for s in range(60)])

    wide = mean(lambda chance: masks.boxes((64, 64), chance, masks.WIDE[1]))
    medium = mean(lambda chance: masks.boxes((64, 64), chance, masks.MEDIUM[1]))
    assert wide > 3 * medium


def test_boxes_of_lamas_wide_masks_keep_their_margin():
    for seed in range(30):
        mask = masks.boxes((256, 256), masks.Chance(torch.Generator().manual_seed(seed)))
        assert not mask[:10].any()
        assert not mask[:, -10:].any()


def test_without_a_generator_the_middle_is_painted():
    mask = masks.drawn((40, 60), ["wide"], None)
    assert mask.sum() == 20 * 30
    assert mask[10:30, 15:45].all()


# what is joined to the latent


def test_the_masked_image_and_its_mask():
    prepared = InpaintingConditioner(latent=LATENT, fill=-1.0).prepare({"image": image()})
    assert prepared["mask"].shape == (1, 64, 64)
    assert torch.equal(prepared["masked"][:, 16:48, 16:48], torch.full((3, 32, 32), -1.0))
    known = prepared["mask"][0] == 0
    assert torch.equal(prepared["masked"][:, known], image()[:, known])


@pytest.mark.parametrize(("last", "signed"), [(False, False), (True, True)])
def test_channels_are_the_mask_and_the_latent_in_their_order(last, signed):
    conditioner = InpaintingConditioner(latent=LATENT, mask_last=last, signed=signed)
    prepared = conditioner.collate([conditioner.prepare({"image": image()})])
    found = conditioner.encode(prepared, canvas()).concat[0]
    mask, latent = (found[-1], found[:-1]) if last else (found[0], found[1:])
    white = torch.zeros(8, 8)
    white[2:6, 2:6] = 1
    assert torch.equal(mask, 2 * white - 1 if signed else white)
    torch.testing.assert_close(latent, canvas().to_latent(prepared["masked"])[0])


def test_on_a_larger_canvas_the_mask_keeps_its_place():
    conditioner = InpaintingConditioner(latent=LATENT)
    prepared = conditioner.collate([conditioner.prepare({"image": image(60, 60)})])
    found = conditioner.encode(prepared, canvas((64, 64), picture=(60, 60))).concat[0, 0]
    # rows 15 to 44 of 60 are painted: the upper left pixel of cells 2 to 5, which are rows 16, 24, 32, 40
    assert torch.nonzero(found[:, 3])[:, 0].tolist() == [2, 3, 4, 5]


def test_the_null_is_one_hole():
    conditioner = InpaintingConditioner(latent=LATENT, fill=0.5)
    null = conditioner.null(canvas()).concat
    assert (null[:, 0] == 1).all()
    torch.testing.assert_close(null[:, 1:], torch.full_like(null[:, 1:], 0.5))


def test_what_is_kept_is_kept_to_the_pixel_and_the_rest_is_painted():
    conditioner = InpaintingConditioner(latent=LATENT)
    prepared = conditioner.collate([conditioner.prepare({"image": image(seed=seed)}) for seed in (0, 1)])
    made = torch.zeros(2, 3, 64, 64)
    finished = conditioner.finish(made, prepared)
    known = prepared["mask"].expand(-1, 3, -1, -1) == 0
    assert torch.equal(finished[known], torch.stack([image(seed=0), image(seed=1)])[known])
    assert (finished[~known] == 0).all()
    assert (made == 0).all()
    larger = conditioner.finish(torch.ones(2, 3, 72, 80), prepared)
    assert torch.equal(larger[..., :64, :64][known], finished[known])
    assert (larger[..., 64:, :] == 1).all()


def test_fidelity_is_one_for_what_goes_on_and_less_for_what_does_not():
    conditioner = InpaintingConditioner(latent=LATENT)
    flat = torch.full((3, 64, 64), 0.25)
    prepared = conditioner.collate([conditioner.prepare({"image": flat})] * 2)
    images = torch.stack([flat, flat - 0.5])
    # half of |0.25 - (-0.25)|
    torch.testing.assert_close(conditioner.fidelity(images, prepared), torch.tensor([1.0, 0.75]))


# what a person gives


@pytest.mark.parametrize("form", ["text", "json", "list", "mapping", "tuple", "pillow", "array"])
def test_the_forms_of_a_value_are_one(tmp_path, form):
    photo, mask = files(tmp_path)
    forms = {
        "text": f"{photo},{mask}",
        "json": json.dumps({"image": photo, "mask": mask}),
        "list": json.dumps([photo, mask]),
        "mapping": {"image": photo, "mask": mask},
        "tuple": (photo, mask),
        "pillow": (opened(photo), opened(mask)),
        "array": (np.array(opened(photo)), np.array(opened(mask))),
    }
    prepared = InpaintingConditioner(latent=LATENT).from_user(forms[form], (64, 64))
    truth = torch.from_numpy(np.array(opened(photo))).permute(2, 0, 1).float() / 127.5 - 1
    assert (prepared["mask"][0, :32] == 1).all()
    assert (prepared["mask"][0, 32:] == 0).all()
    torch.testing.assert_close(prepared["masked"][:, 32:], truth[:, 32:])
    assert (prepared["masked"][:, :32] == 0).all()


def test_an_image_of_another_shape_is_cut_with_its_mask(tmp_path):
    photo, mask = files(tmp_path, (64, 128), (64, 128))
    prepared = InpaintingConditioner(latent=LATENT).from_user((photo, mask), (32, 32))
    assert prepared["masked"].shape == (3, 32, 32)
    assert prepared["mask"][0, :, 0].tolist() == [1.0] * 16 + [0.0] * 16


def test_a_name_with_a_comma_is_found(tmp_path):
    photo, mask = files(tmp_path)
    odd = tmp_path / "a,b.png"
    opened(photo).save(odd)
    assert values.pair(f"{odd},{mask}") == (str(odd), mask)


def test_lists_hold_one_value_an_image_or_are_one():
    many = InpaintingConditioner(latent=LATENT).many
    assert many(["a.png,m.png", "b.png,m.png"])
    assert many([("a.png", "m.png"), {"image": "b.png", "mask": "m.png"}])
    assert not many(["a.png", "m.png"])
    assert not many(("a.png", "m.png"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("photo.png", "names one file; an image and a mask are needed"),
        ({"image": "a.png"}, "an image and a mask are needed; given: image"),
        (("a", "b", "c"), "given: tuple of 3"),
        ("{not json", "is no JSON"),
        (3, "given: int"),
        ("none.png,nothing.png", "cannot be read"),
        ((image() * torch.nan, torch.zeros(64, 64)), "from nan"),
        ((image(), torch.full((64, 64), 2.5)), r"from 2\.5 to 2\.5; they lie in \[0, 1\]"),
        ((image(), torch.full((64, 64), torch.nan)), "from nan"),
        ((image(), torch.zeros(32, 64)), "the mask is a tensor of 32 x 64"),
        ((image(), torch.zeros(2, 64, 64)), r"\(h, w\) or \(1, h, w\); given: \(2, 64, 64\)"),
    ],
)
def test_bad_values(value, words):
    with pytest.raises(UsageError, match=words):
        InpaintingConditioner(latent=LATENT).from_user(value, (64, 64))


def test_a_mask_of_another_size_names_both(tmp_path):
    pair = files(tmp_path, (64, 64), (64, 50))
    with pytest.raises(UsageError, match=r"the image is 64 x 64 pixels \(h x w\) and its mask 64 x 50"):
        InpaintingConditioner(latent=LATENT).from_user(pair, (64, 64))


def test_bad_masks_of_the_data():
    conditioner = MasksConditioner(latent=LATENT)
    with pytest.raises(DataError, match="the image is 64 x 64 pixels"):
        conditioner.prepare({"image": image(), "mask": torch.zeros(1, 32, 32)})
    with pytest.raises(DataError, match="from nan"):
        conditioner.prepare({"image": image(), "mask": torch.full((1, 64, 64), torch.nan)})
    with pytest.raises(DataError, match="not finite"):
        conditioner.prepare({"image": image() * torch.nan, "mask": torch.zeros(1, 64, 64)})


def test_a_map_is_a_mask_where_it_is_not_0():
    ids = torch.zeros(64, 64, dtype=torch.int64)
    ids[:8] = 3
    assert MasksConditioner(latent=LATENT).prepare({"image": image(), "mask": ids})["mask"].sum() == 8 * 64


@pytest.mark.parametrize(("options", "words"), [({"kinds": []}, "kinds is empty"), ({"fill": 2.0}, "fill is 2.0")])
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        InpaintingConditioner(latent=LATENT, **options)


# released checkpoints


def test_the_papers_inpainting_is_read_with_its_order():
    stage = ForeignStage("__is_first_stage__", {}, "masked_image", "concat", 4)
    conditioner = InpaintingConditioner.from_foreign(stage)
    assert conditioner.emits.concat == 4
    # scripts/inpaint.py: images and mask from 0 to 1, (1 - mask) * image, both brought to [-1, 1], latent before the mask
    photo, mask = (image() + 1) / 2, torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    theirs = torch.cat(
        [canvas().to_latent(((1 - mask) * photo * 2 - 1)[None])[:, :3], mask[None, :, ::8, ::8] * 2 - 1], 1
    )
    three = Canvas(
        (64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: canvas().to_latent(images)[:, :3]
    )
    prepared = conditioner.collate([conditioner.from_user((image(), mask), (64, 64))])
    torch.testing.assert_close(conditioner.encode(prepared, three).concat, theirs)


def test_stable_diffusions_inpainting_has_the_mask_first_and_grey_holes():
    stage = ForeignStage("StableDiffusionInpaintPipeline", {}, "masked_image", "concat", 5)
    conditioner = InpaintingConditioner.from_foreign(stage)
    assert (conditioner.emits.concat, conditioner.mask_last, conditioner.signed, conditioner.fill) == (
        5,
        False,
        False,
        0.0,
    )


def test_other_stages_are_not_its_own():
    for target, key in (("StableDiffusionDepth2ImgPipeline", "depth"), ("__is_first_stage__", "LR_image")):
        stage = ForeignStage(target, {}, key, "concat", 4)
        assert InpaintingConditioner.from_foreign(stage) is None
        assert MasksConditioner.from_foreign(stage) is None
