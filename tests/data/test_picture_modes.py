"""`to_rgb8` and `to_ids` over every mode that Pillow has."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ldmkit.errors import DataError
from ldmkit.images.files import ORIENTATION
from ldmkit.images.pixels import to_ids, to_rgb8, upright

RED = (200, 30, 40)


def through(image: Image.Image, format: str, **options: object) -> Image.Image:
    """Saved and opened again, as a file would be."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "P"])
def test_colours_survive(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), RED)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
        assert image is not None
    elif mode == "RGBa":
        image = picture.convert("RGBA").convert("RGBa")
    elif mode == "P":
        image = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    else:
        image = picture.convert(mode)
    out = to_rgb8(image)
    assert out.mode == "RGB"
    assert np.abs(np.array(out, dtype=int) - RED).max() <= (12 if mode in ("LAB", "HSV") else 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "PA"])
def test_greys_survive(mode: str) -> None:
    image = Image.new("L", (4, 4), 255)
    image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    assert np.array(to_rgb8(image)).min() == 255


def test_a_cmyk_jpeg_keeps_its_red() -> None:
    image = through(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95)
    assert image.mode == "CMYK"
    assert np.abs(np.array(to_rgb8(image), dtype=int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    out = np.array(to_rgb8(through(Image.fromarray(ramp), format)))
    assert len(np.unique(out)) == 256
    assert np.array_equal(out[..., 0], np.round(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_floats_and_long_integers_need_a_range(dtype: type, mode: str) -> None:
    ramp = np.linspace(-100, 900, 256).astype(dtype).reshape(16, 16)
    image = through(Image.fromarray(ramp), "TIFF")
    assert image.mode == mode
    with pytest.raises(DataError, match="value_range"):
        to_rgb8(image)
    out = np.array(to_rgb8(image, value_range=(-100, 900)))[..., 0]
    assert np.abs(out.astype(float) - (ramp + 100) / 1000 * 255).max() <= 0.5001
    holes = np.array([[np.nan, np.inf], [-np.inf, 0.5]], dtype=np.float32)
    assert np.array(to_rgb8(Image.fromarray(holes), value_range=(0, 1)))[..., 0].tolist() == [[0, 255], [0, 128]]


def test_transparent_pixels_show_the_background_not_what_is_hidden() -> None:
    hidden = Image.new("RGBA", (1, 1), (*RED, 0))
    assert to_rgb8(hidden).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb8(hidden, background=(0, 10, 20)).getpixel((0, 0)) == (0, 10, 20)
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert to_rgb8(half).getpixel((0, 0)) == (255, 127, 127)
    assert to_rgb8(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_a_png_is_transparent(mode: str) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    image = image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    key = image.getpixel((0, 0))
    out = to_rgb8(through(image, "PNG", transparency=key))
    assert out.getpixel((0, 0)) == (255, 255, 255)
    assert out.getpixel((1, 0)) != (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """EXIF 2.32, table 6: which corner of the scene the first row and column are."""
    scene = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    undo = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.T,
        6: np.rot90(scene, 1),
        7: scene[::-1, ::-1].T,
        8: np.rot90(scene, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(np.array(upright(through(stored, "PNG", exif=exif))), scene)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I"])
def test_ids_are_what_is_stored(mode: str) -> None:
    values = np.array([[0, 1], [1, 0]]) if mode == "1" else np.array([[0, 1], [2, 200]])
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette([7] * 768)  # the colours do not matter
        assert image.mode == "P"
    else:
        kind = {"1": np.bool_, "L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]
        image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    assert to_ids(image).tolist() == values.tolist()


def test_a_picture_is_no_label_map() -> None:
    with pytest.raises(DataError, match="picture of mode RGB"):
        to_ids(Image.new("RGB", (2, 2)))
    with pytest.raises(DataError, match="2x2x3 of float64"):
        to_ids(np.zeros((2, 2, 3)))
