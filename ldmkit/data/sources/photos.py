"""`photos`: the colour photographs that scikit-image and scikit-learn ship inside their wheels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from PIL import Image

from ldmkit.data.sample import Info, Sample
from ldmkit.data.source import Part, Source, ViewOptions
from ldmkit.errors import DataError
from ldmkit.fields import Field


@dataclass(frozen=True)
class Photo:
    """A photograph in a wheel; `box` (left, top, right, bottom) is the part worth looking at, `reduce` a whole factor."""

    name: str
    package: str
    file: str
    licence: str
    credit: str
    box: tuple[int, int, int, int] | None = None
    reduce: int = 1


PHOTOS = (
    Photo("astronaut", "skimage", "data/astronaut.png", "public domain", "NASA: Eileen Collins"),
    Photo("chelsea", "skimage", "data/chelsea.png", "CC0 1.0", "Stefan van der Walt: Chelsea the cat"),
    Photo("coffee", "skimage", "data/coffee.png", "CC0 1.0", "Rachel Michetti, Pikolo Espresso Bar: a cup of coffee"),
    Photo("rocket", "skimage", "data/rocket.jpg", "public domain", "SpaceX: launch of DSCOVR on Falcon 9"),
    Photo("hubble", "skimage", "data/hubble_deep_field.jpg", "public domain", "NASA: Hubble eXtreme Deep Field"),
    # The disc of the retina fills the square inside it; around it the file is black. At full size it is all smooth.
    Photo(
        "retina",
        "skimage",
        "data/retina.jpg",
        "CC0 1.0",
        "Häggström, Medical gallery of Mikael Häggström 2014: fundus photograph",
        box=(224, 224, 1188, 1188),
        reduce=2,
    ),
    Photo(
        "ihc",
        "skimage",
        "data/ihc.png",
        "no known copyright restrictions",
        "Center for Microscopy And Molecular Imaging: immunohistochemical staining of colonic glands",
    ),
    Photo("china", "sklearn", "datasets/images/china.jpg", "CC BY 2.0", "danielbuechele (Flickr): china.jpg"),
    Photo("flower", "sklearn", "datasets/images/flower.jpg", "CC BY 2.0", "vultilion (Flickr): flower.jpg"),
)

# Grey ones, which `grey` adds.
GREY_PHOTOS = (
    Photo("brick", "skimage", "data/brick.png", "CC0 1.0", "CC0Textures: Bricks25"),
    Photo("camera", "skimage", "data/camera.png", "CC0 1.0", "Lav Varshney: photographer with a camera"),
    Photo(
        "cell", "skimage", "data/cell.png", "CC0 1.0", "Paul Müller et al. 2018: a cell in quantitative phase imaging"
    ),
    Photo(
        "coins",
        "skimage",
        "data/coins.png",
        "no known copyright restrictions",
        "Brooklyn Museum: Greek coins from Pompeii",
    ),
    Photo("grass", "skimage", "data/grass.png", "CC0 1.0", "linolafett (DeviantArt): Grass 01"),
    Photo("gravel", "skimage", "data/gravel.png", "CC0 1.0", "CC0Textures: Gravel04"),
)


class PhotosSource(Source):
    """Nine photographs in colour, and six grey ones on request.

    Nothing is downloaded: the files lie in the wheels of scikit-image and scikit-learn. Decoded images stay in memory (uint8).

    Args:
        held_out: the photographs that are kept for validation, whole.
        grey: also those without colours, as images of three equal channels.
    """

    # A window of 64 to 160 photograph pixels shows a thing and its texture at 64 x 64.
    view_defaults: ClassVar[ViewOptions] = {"crop": "random", "views": 512, "zoom": (1.0, 2.5)}

    def __init__(self, *, held_out: tuple[str, ...] = ("chelsea", "coffee"), grey: bool = False) -> None:
        self.all = PHOTOS + GREY_PHOTOS if grey else PHOTOS
        known = [photo.name for photo in self.all]
        unknown = [name for name in held_out if name not in known]
        if unknown or not 0 < len(set(held_out)) < len(known):
            raise DataError(
                f"held_out is {list(held_out)}; name at least one photograph and leave some to train on",
                hint=f"there are {', '.join(known)}",
            )
        self.held_out = tuple(held_out)
        self.photos = tuple(photo for photo in self.all if photo.name not in self.held_out)

    def split(self, part: Part) -> PhotosSource:
        """Whole photographs: those not held out, or those held out."""
        twin = copy.copy(self)
        twin.photos = tuple(p for p in self.all if (p.name in self.held_out) == (part == "validation"))
        return twin

    def info(self) -> Info:
        """As many samples as photographs; the `Dataset` makes views of them."""
        licence = "; ".join(f"{photo.name}: {photo.credit} ({photo.licence})" for photo in self.photos)
        return Info(len(self.photos), {"image": Field("image"), "name": Field("text")}, licence=licence)

    def __getitem__(self, index: int) -> Sample:
        photo = self.photos[index]
        return Sample({"image": lambda: _decode(photo), "name": lambda: photo.name}, name=f"photos/{photo.name}")

    def sizes(self) -> list[tuple[int, int]]:
        """Of the parts that are shown."""
        pictures = [_decode(photo) for photo in self.photos]
        return [(picture.height, picture.width) for picture in pictures]

    def attribution(self) -> str:
        """One photograph a line: whose it is, under which licence, from which package."""
        package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
        return "\n".join(f"{p.name}: {p.credit}, {p.licence}, from {package[p.package]}" for p in self.photos)


@cache
def _decode(photo: Photo) -> Image.Image:
    with Image.open(package_folder(photo.package) / photo.file) as image:
        picture = image.convert("RGB")
    picture = picture.crop(photo.box) if photo.box else picture
    return picture.reduce(photo.reduce) if photo.reduce > 1 else picture


def package_folder(package: str) -> Path:
    """Where an installed package lies; found without importing it, which would take a second."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the photographs and digits come inside scikit-image and scikit-learn, and {package} is not installed",
            hint='pip install "ldmkit[samples]"',
        )
    return Path(spec.origin).parent
