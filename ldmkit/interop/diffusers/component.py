"""One directory of a pipeline folder: its config and its weights, whatever they are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.folders import read_json
from ldmkit.interop.safe_reading.tensors import read_tensors

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# In the order in which they are preferred; a variant's name (fp16, non_ema) stands before the ending, or before `.json`.
PLAIN = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


@dataclass(frozen=True)
class Component:
    """One directory of a pipeline."""

    path: Path
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Component:
        """The component of a directory with a `config.json`."""
        return cls(path, read_json(path / "config.json"))

    @property
    def where(self) -> str:
        """The file that its options are from."""
        return str(self.path / "config.json")

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, as float32; `notes` says which variant was read, and what else lies there.

        Raises CheckpointError where there are none, or several variants and none without a name.
        """
        files = self._files()
        if not files:
            lying = (
                ", ".join(sorted(file.name for file in self.path.iterdir() if file.name != "config.json")) or "nothing"
            )
            raise CheckpointError(
                f"there are no weights in this folder that are read (there is {lying})",
                where=str(self.path),
                hint=f"{STEMS[0]} or {STEMS[1]} with {', '.join(PLAIN)} are read, with a variant's name (fp16) too",
            )
        variants = {variant for variant, _ in files}
        if "" not in variants and len(variants - {"fp16"}) > 1:
            raise CheckpointError(
                f"there are weights of the variants {', '.join(sorted(variants))}, and none without a name",
                where=str(self.path),
                hint="leave the one that is wanted",
            )
        chosen = "" if "" in variants else "fp16" if "fp16" in variants else variants.pop()
        file = next(file for variant, file in files if variant == chosen)
        others = sorted({variant for variant, _ in files if variant != chosen})
        if chosen or others:
            unread = f"; not read: {', '.join(others)}" if others else ""
            self.notes.append(f"{self.path.name}: the {chosen or 'plain'} weights are read{unread}")
        return read_tensors(file)

    def _files(self) -> list[tuple[str, Path]]:
        """(variant, file) of everything that holds or lists weights, in order of preference."""
        found = []
        for stem in STEMS:
            for ending in PLAIN:
                for file in sorted(self.path.glob(f"{stem}*")):
                    if (variant := _variant(file.name, stem, ending)) is not None:
                        found.append((variant, file))
        return found


def _variant(name: str, stem: str, ending: str) -> str | None:
    """The variant in a file's name ("" where it has none); None where the file is another kind, or a shard."""
    middle = name.removeprefix(stem)
    if middle == ending:
        return ""
    if ending.endswith(".index.json"):
        start = ending.removesuffix(".json")
        if middle.startswith(f"{start}.") and middle.endswith(".json"):
            return middle.removeprefix(f"{start}.").removesuffix(".json")
        return None
    variant = (
        middle.removesuffix(ending).removeprefix(".") if middle.endswith(ending) and middle.startswith(".") else ""
    )
    return variant if variant and "-" not in variant and "." not in variant else None
