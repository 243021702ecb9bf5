"""The semantic-map conditioner: its contract, reading maps, and the rescaler against closed forms."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ldmkit_semantic_map.conditioner import SemanticMapConditioner
from PIL import Image

from ldmkit.conditioning import Canvas, ForeignStage
from ldmkit.data import Field
from ldmkit.errors import CheckpointError, DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

PALETTE = [(0, 0, 0), (255, 0, 0), (0, 128, 0)]


def canvas(grid: tuple[int, int]) -> Canvas:
    size = (grid[0] * 8, grid[1] * 8)
    return Canvas(size, grid, torch.device("cpu"), torch.float32, lambda images: images)


def random_map(height: int = 32, width: int = 32, classes: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(classes, (height, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ignore", [None, 255])
def test_contract(ignore):
    first, second = random_map(seed=0), random_map(seed=1)
    if ignore is not None:
        first[:5] = ignore
    conditioner = SemanticMapConditioner(classes=3, channels=2, ignore=ignore)
    check_conditioner(conditioner, {"map": first}, others=[{"map": second}], value=second[:17].numpy())


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_semantic_map; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_papers_rescaler():
    """Two bilinear halvings of 182 one-hot channels and a 1x1 convolution, as at f = 4."""
    ids = torch.stack([random_map(64, 64, 182, seed) for seed in (0, 1)])
    conditioner = SemanticMapConditioner(classes=182)
    x = F.one_hot(ids, 182).permute(0, 3, 1, 2).float()
    for _ in range(2):
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
    expected = torch.einsum("oc,bchw->bohw", conditioner.channel_mapper.weight[:, :, 0, 0], x)
    answer = conditioner.encode({"map": ids}, canvas((16, 16)))
    torch.testing.assert_close(answer.concat, expected)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_halving_counts_the_classes_of_each_block(factor):
    """Closed form: bilinear halving at even sizes is the mean of 2x2, so what is left is the share of each class in a block."""
    ids = random_map(32, 48)
    conditioner = SemanticMapConditioner(classes=3, channels=3)
    torch.nn.init.dirac_(conditioner.channel_mapper.weight)
    answer = conditioner.encode({"map": ids[None]}, canvas((32 // factor, 48 // factor)))
    blocks = ids.unfold(0, factor, factor).unfold(1, factor, factor).flatten(2)
    expected = torch.stack([(blocks == number).float().mean(-1) for number in range(3)])
    torch.testing.assert_close(answer.concat[0], expected)


def test_a_uniform_map_stays_uniform_on_any_grid():
    conditioner = SemanticMapConditioner(classes=3, channels=3)
    torch.nn.init.dirac_(conditioner.channel_mapper.weight)
    for grid in ((5, 7), (8, 8), (40, 3), (64, 64)):
        answer = conditioner.encode({"map": torch.full((1, 30, 50), 2)}, canvas(grid))
        expected = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, *grid)
        torch.testing.assert_close(answer.concat, expected)


def test_a_map_of_any_size_keeps_its_scale_on_a_larger_canvas():
    ids = torch.arange(12 * 20).reshape(1, 12, 20) % 3
    conditioner = SemanticMapConditioner(classes=3, channels=3)
    conditioner.channel_mapper.weight.data = torch.eye(3)[:, :, None, None]
    rounded = replace(canvas((8, 12)), size=(16, 24), picture=(12, 20))
    answer = conditioner.encode({"map": ids}, rounded).concat
    alone = conditioner.encode({"map": ids}, replace(canvas((6, 10)), size=(12, 20))).concat
    torch.testing.assert_close(answer[..., :6, :10], alone)


def test_ignored_pixels_are_nothing():
    conditioner = SemanticMapConditioner(classes=3, ignore=255)
    ids = torch.full((1, 16, 16), 255)
    assert torch.equal(conditioner.encode({"map": ids}, canvas((4, 4))).concat, torch.zeros(1, 3, 4, 4))


def test_the_null_is_learned():
    conditioner = SemanticMapConditioner(classes=3, channels=2)
    with torch.no_grad():
        conditioner.absent.copy_(torch.tensor([1.0, -2.0]))
    null = conditioner.null(canvas((4, 6))).concat
    assert torch.equal(null[0, :, 2, 3], torch.tensor([1.0, -2.0]))
    null.sum().backward()
    assert torch.equal(conditioner.absent.grad, torch.full((2,), 24.0))


# reading


def indexed(ids: torch.Tensor) -> Image.Image:
    picture = Image.new("P", (ids.shape[1], ids.shape[0]))
    picture.putdata(ids.flatten().tolist())
    picture.putpalette([part for colour in PALETTE for part in colour])
    return picture


def test_every_form_of_a_map_reads_the_same(tmp_path):
    ids = random_map(6, 4)
    colours = np.array(PALETTE, dtype=np.uint8)[ids.numpy()]
    path = tmp_path / "map.png"
    indexed(ids).save(path)
    conditioner = SemanticMapConditioner(palette=PALETTE)
    forms = [
        ids,
        ids[None],
        ids.int(),
        ids.numpy(),
        indexed(ids),
        Image.fromarray(ids.numpy().astype(np.uint8)),
        str(path),
    ]
    for form in [*forms, path, Image.fromarray(colours), colours, torch.from_numpy(colours)]:
        assert torch.equal(conditioner.from_user(form, (6, 4))["map"], ids)
    for form in (ids, indexed(ids), Image.fromarray(colours)):
        assert torch.equal(conditioner.prepare({"map": form})["map"], ids)


def test_a_persons_map_is_cut_in_the_middle_and_resized_by_nearest():
    """As a training map is: the largest window of the image's shape, so nothing is stretched."""
    ids = random_map(8, 12, 200)
    small = SemanticMapConditioner(classes=200).from_user(ids, (13, 13))["map"]
    middle = Image.fromarray(ids.numpy().astype(np.uint8)[:, 2:10])
    assert torch.equal(small, torch.from_numpy(np.array(middle.resize((13, 13), Image.Resampling.NEAREST))).long())


def test_fit_takes_what_the_source_knows():
    known = Field("map", classes=3, palette=tuple(PALETTE), ignore=255)
    learned = SemanticMapConditioner.fit({}, iter([]), {"map": known})
    assert learned == {"classes": 3, "palette": [list(color) for color in PALETTE], "ignore": 255}
    assert SemanticMapConditioner.fit({"classes": 5}, iter([]), {"map": known}) == {"ignore": 255}
    with pytest.raises(DataError, match="the maps have 3 classes, and the recipe says 2"):
        SemanticMapConditioner.fit({"classes": 2}, iter([]), {"map": known})


def test_a_map_given_when_sampling_is_read_as_the_sources_own(tmp_path):
    """Numbers that stand for classes (0 and 255), and colours, as the training folder painted them."""
    ids = random_map(classes=2)
    Image.fromarray((ids.numpy() * 255).astype(np.uint8)).save(tmp_path / "binary.png")
    conditioner = SemanticMapConditioner(classes=2)
    conditioner.known_fields = {"map": Field("map", classes=2, values=(0, 255))}
    assert torch.equal(conditioner.from_user(str(tmp_path / "binary.png"), (32, 32))["map"], ids)
    painted = np.array(PALETTE[:2], dtype=np.uint8)[ids.numpy()]
    Image.fromarray(painted).save(tmp_path / "colours.png")
    conditioner.known_fields = {"map": Field("map", classes=2, palette=tuple(PALETTE[:2]))}
    assert torch.equal(conditioner.from_user(str(tmp_path / "colours.png"), (32, 32))["map"], ids)


@pytest.mark.parametrize("error", [DataError, UsageError])
def test_numbers_out_of_range_are_named(error):
    conditioner = SemanticMapConditioner(classes=3)
    ids = random_map()
    ids[3, 4] = 7
    ids[0, 1] = 7
    with pytest.raises(error, match=r"class 7 in 2 pixels; allowed are 0 to 2\n.*`ignore: 7`"):
        conditioner.prepare({"map": ids}) if error is DataError else conditioner.from_user(ids, (32, 32))
    with pytest.raises(DataError, match=r"class 254 .* allowed are 0 to 2, and 255 to ignore"):
        SemanticMapConditioner(classes=3, ignore=255).prepare({"map": torch.full((4, 4), 254)})


def test_unknown_colours_are_named():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[0, :2] = (1, 2, 3)
    with pytest.raises(DataError, match=r"colour \(1, 2, 3\) is not among the 3 of `palette`; 2 pixels"):
        SemanticMapConditioner(palette=PALETTE).prepare({"map": pixels})
    with pytest.raises(DataError, match="no `palette` says"):
        SemanticMapConditioner(classes=3).prepare({"map": pixels})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.rand(4, 4), "class numbers .*given: float32"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), r"of shape \(2, 4, 4\)"),
        ("/nowhere/map.png", "/nowhere/map.png: the label map cannot be read: No such file"),
    ],
)
def test_what_is_no_map_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        SemanticMapConditioner(classes=3).from_user(value, (8, 8))


def test_a_file_that_is_no_picture(tmp_path):
    path = tmp_path / "map.png"
    path.write_text("no picture")
    with pytest.raises(UsageError, match="not a picture in a format"):
        SemanticMapConditioner(classes=3).from_user(path, (8, 8))


def test_fit_learns_the_number_of_classes():
    maps = [{"map": torch.tensor([[0, 4], [255, 1]])}, {"map": None}, {"map": np.array([[2]])}]
    assert SemanticMapConditioner.fit({"ignore": 255}, maps) == {"classes": 5}
    assert SemanticMapConditioner.fit({}, maps) == {"classes": 256}
    assert SemanticMapConditioner.fit({"palette": PALETTE}, maps) == {"classes": 3}
    assert SemanticMapConditioner.fit({"classes": 9}, maps) == {}
    with pytest.raises(DataError, match="no sample has a label `map`"):
        SemanticMapConditioner.fit({}, [{"map": None}])


def test_previews_show_the_palette():
    ids = torch.tensor([[0, 1], [2, 255]])
    picture = SemanticMapConditioner(palette=PALETTE, ignore=255).preview({"map": ids})
    assert [picture.getpixel((x, y)) for y in range(2) for x in range(2)] == [*PALETTE, (0, 0, 0)]
    plain = SemanticMapConditioner(classes=60).preview({"map": torch.arange(60)[None]})
    assert len(set(plain.get_flattened_data())) == 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not known"),
        ({"classes": 0}, "not known|at least one"),
        ({"classes": -1}, "at least one"),
        ({"classes": 4, "palette": PALETTE}, "palette has 3 colours"),
        ({"classes": 4, "ignore": 2}, "one of the 4 classes"),
        ({"palette": [(0, 0, 300)]}, "each from 0 to 255"),
        ({"palette": []}, "palette is empty"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        SemanticMapConditioner(**options)


def test_a_released_rescaler_loads():
    weight = torch.randn(3, 182, 1, 1)
    params = {"n_stages": 2, "in_channels": 182, "out_channels": 3}
    target = "ldm.modules.encoders.modules.SpatialRescaler"
    conditioner = SemanticMapConditioner.from_foreign(
        ForeignStage(target, params, "segmentation", "concat", 3, {"channel_mapper.weight": weight})
    )
    assert torch.equal(conditioner.channel_mapper.weight, weight)
    assert conditioner.emits.concat == 3
    assert torch.equal(conditioner.null(canvas((2, 2))).concat, torch.zeros(1, 3, 2, 2))
    with pytest.raises(CheckpointError, match="channel_mapper"):
        SemanticMapConditioner.from_foreign(ForeignStage(target, params, "segmentation", "concat", 3, {}))
    assert (
        SemanticMapConditioner.from_foreign(ForeignStage("torch.nn.Identity", {}, "segmentation", "concat", 3)) is None
    )


@pytest.mark.parametrize("values", [None, (5, 9, 200)])
def test_what_a_canvas_paints_reads_back_as_its_classes(tmp_path, values):
    conditioner = SemanticMapConditioner(classes=3, ignore=255)
    conditioner.known_fields = {"map": Field("map", classes=3, names=("sky", "sea"), values=values)}
    canvas = conditioner.widget()
    assert canvas.names == ("sky", "sea", "2")
    assert len(set(canvas.palette)) == 3
    assert canvas.ignore == 255
    numbers = [*(canvas.values or (0, 1, 2)), canvas.ignore]
    painted = Image.fromarray(np.array([numbers], dtype=np.uint8))
    painted.putpalette(bytes(3 * 256))  # a shorter one would be saved in fewer bits than the numbers need
    assert painted.mode == "P"
    painted.save(tmp_path / "map.png")
    read = conditioner.from_user(str(tmp_path / "map.png"), (1, 4))["map"]
    assert read.tolist() == [[0, 1, 2, 255]]
    assert SemanticMapConditioner(palette=PALETTE).widget().palette == tuple(map(tuple, PALETTE))
