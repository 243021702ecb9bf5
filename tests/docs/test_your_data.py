"""The `data` sections of the how-to load what they say they load."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ldmkit import plugins
from ldmkit.assembly import datasets
from ldmkit.conditioning import ConditionerSet
from ldmkit.data import batches
from ldmkit.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "your-data.md").read_text("utf-8")
SECTIONS = [yaml.safe_load(block)["data"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
SIZES = [(90, 90), (70, 120), (120, 70)]


def png(number: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    height, width = SIZES[number % 3]
    Image.new(mode, (width, height), 3 if mode == "L" else (5 * number, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page speaks of."""
    import datasets as library

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for folder in ("photos", "photo_maps", "shards", "table"):
        Path(folder).mkdir()
    for number in range(12):
        Path(f"photos/{number}.png").write_bytes(png(number))
        Path(f"photo_maps/{number}.png").write_bytes(png(number, "L"))
    for shard in range(3):
        with tarfile.open(f"shards/train-{shard:03d}.tar", "w") as archive:
            for number in range(4):
                for extension, content in {"png": png(number), "txt": b"a caption"}.items():
                    member = tarfile.TarInfo(f"{shard}{number}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    pictures = [{"bytes": png(number), "path": None} for number in range(40)]
    features = library.Features({"picture": library.Image(), "title": library.Value("string")})
    table = library.Dataset.from_dict({"picture": pictures, "title": ["a caption"] * 40}, features=features)
    table.to_parquet("table/0.parquet")


def recipe(data: dict[str, Any]) -> Recipe:
    denoiser = {"channels": 8, "multipliers": [1, 2], "attention": []}
    return Recipe.parse(
        {"name": "t", "data": data, "autoencoder": {"type": "identity"}, "denoiser": denoiser, "train": {"steps": 1}}
    )


def test_there_are_sections_for_each_source() -> None:
    assert {section["type"] for section in SECTIONS} == {"folder", "huggingface", "webdataset"}
    assert any("buckets" in section for section in SECTIONS)


@pytest.mark.parametrize("data", SECTIONS, ids=lambda data: f"{data['type']}-{'-'.join(map(str, data))}"[:60])
def test_a_section_of_the_page_gives_batches(world: None, data: dict[str, Any]) -> None:
    train, validation = datasets(recipe(data), plugins.load(only=()))
    batch = next(batches(train, ConditionerSet({}, vector_width=1), start=0, batch=2, seed=0))
    assert tuple(batch.images.shape[2:]) in {(64, 64), *map(tuple, data.get("buckets", []))}
    held_out = validation.readable(0)
    assert tuple(held_out["image"].shape) == (3, 64, 64)
    if data["type"] != "folder":
        assert held_out["caption"] == "a caption"
    if "maps" in data:
        assert held_out["map"].unique().tolist() == [3]
