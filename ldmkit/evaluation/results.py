"""What an evaluation found: figures beside what they are to be compared with. Loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from ldmkit.errors import DataError
from ldmkit.files import write_text

SCHEMA = 1

Verdict = Literal["better", "worse", "no difference", "too few"]


@dataclass(frozen=True)
class Figure:
    """One number, and the numbers it stands beside.

    A judge of ours says little alone: `beside` holds the same number for real held-out pictures, for what the autoencoder
    makes of them, for shuffled conditions, for a baseline without a model.
    """

    name: str  # the metric, ``psnr``
    value: float
    title: str = ""  # for people; empty = the name
    slot: str | None = None  # the slot it speaks about; None = the pictures as such
    interval: tuple[float, float] | None = None  # 95 %, over the sources
    unit: str = ""  # ``fraction`` is shown in per cent, ``gain`` as the factor 1 + value
    better: Literal["higher", "lower"] = "higher"
    beside: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # key of `beside` -> 95 % of value minus it, paired
    baseline: str | None = None  # the key of `beside` that has to be beaten
    note: str = ""  # what it means, and what to mistrust
    n: int = 0  # images it was measured on
    sources: int = 0  # independent images among them (crops of one image are one); 0 = not known
    seed: int = 0
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # curves behind the number
    axes: tuple[str, str] = ("", "")  # what the curves show: along (their points are 1, 2, 3 ...) and up

    @property
    def label(self) -> str:
        """The title with its slot."""
        title = self.title or self.name
        return f"{title} ({self.slot})" if self.slot else title

    def show(self, value: float) -> str:
        """A value of this figure as text, with its unit."""
        if self.unit == "fraction":
            return f"{fixed(100 * value, 1)} %"
        if self.unit == "gain":
            factor = 1 + value
            return f"{fixed(factor, 3 if factor < 10 else 1 if factor < 100 else 0)} times"
        shown = [abs(number) for number in (self.value, *self.beside.values()) if math.isfinite(number)]
        # One precision for all that is compared.
        digits = 2 if self.unit == "dB" or max(shown, default=0.0) >= 10 else 3
        return f"{fixed(value, digits)}{' ' + self.unit if self.unit else ''}"

    def span(self) -> str:
        """The interval as text; empty without one."""
        if self.interval is None:
            return ""
        low, high = (self.show(bound) for bound in self.interval)
        unit = {"fraction": "", "gain": "times"}.get(self.unit, self.unit)
        return f"{low.removesuffix(' ' + unit) if unit else low} to {high}"

    @property
    def counted(self) -> str:
        """What it was measured on: ``n = 128, of 2 sources``."""
        return f"n = {self.n}, of {self.sources} sources" if 0 < self.sources < self.n else f"n = {self.n}"

    def verdict(self) -> Verdict | None:
        """Whether the value is better or worse than the baseline: where the interval of the paired difference excludes zero.

        Else ``no difference`` was seen, or there were ``too few`` sources for an interval. None without a baseline, or where the
        difference was not taken.
        """
        if self.baseline is None or self.baseline not in self.differences:
            return None
        low, high = self.differences[self.baseline]
        if not (low > 0 or high < 0):
            return "too few" if math.isinf(low) else "no difference"
        return "better" if (low > 0) == (self.better == "higher") else "worse"

    def judgement(self) -> str:
        """The verdict in words: ``no difference from bicubic seen (n = 128, of 2 sources)``; empty without a baseline."""
        verdict = self.verdict()
        if verdict is None:
            return ""
        if verdict == "too few":
            return f"too few to tell from {self.baseline} ({self.counted})"
        if verdict == "no difference":
            return f"no difference from {self.baseline} seen ({self.counted})"
        return f"{verdict} than {self.baseline}"

    def line(self) -> str:
        """One line for a console: the value and everything beside it."""
        others = ", ".join(f"{name} {self.show(value)}" for name, value in self.beside.items())
        shown = f"{self.label}: {self.show(self.value)}" + (f"  ({others})" if others else "")
        return f"{shown}  {self.judgement()}".rstrip()


@dataclass(frozen=True)
class Picture:
    """A sheet of pictures that the evaluation wrote."""

    file: str  # relative to the run directory, ``samples/held-out.png``
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Results:
    """Everything an evaluation found; `evaluation.json` of a run."""

    figures: tuple[Figure, ...]
    n: int
    seed: int
    sampling: Mapping[str, Any] = field(default_factory=dict)  # sampler, steps, guidance, its options
    unavailable: Mapping[str, str] = field(default_factory=dict)  # metric -> why there is no figure
    pictures: tuple[Picture, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)  # attribution, licence, counts
    parts: tuple[Mapping[str, Any], ...] = ()  # of the model: name, kind, output, parameters
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # what else it depends on: weights, step, each metric's options
    made: str = ""  # when, in ISO 8601
    sources: int = 0  # independent images among the rows; 0 = not known

    def find(self, name: str, slot: str | None = None) -> Figure | None:
        """The first figure of this name (and slot, where one is given)."""
        return next((f for f in self.figures if f.name == name and slot in (None, f.slot)), None)

    def lines(self) -> list[str]:
        """The figures as text, one a line, in the order of the recipe; then what was asked for and not measured, and why."""
        missing = [f"{name}: not measured: {reason}" for name, reason in self.unavailable.items()]
        return [figure.line() for figure in self.figures] + missing

    def to_json(self) -> dict[str, Any]:
        """JSON values; numbers that are not finite become the strings ``inf``, ``-inf``, ``nan``."""
        values = _plain({"schema": SCHEMA, **asdict(self)})
        assert isinstance(values, dict)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        rest = {k: v for k, v in values.items() if k not in ("schema", "figures", "pictures", "parts")}
        return cls(
            figures=tuple(_figure(f) for f in values["figures"]),
            pictures=tuple(Picture(**p) for p in values.get("pictures", ())),
            parts=tuple(values.get("parts", ())),
            **rest,
        )

    def save(self, path: Path) -> None:
        """Writes `path` in one piece: a reader sees the old file or the new one."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote; `DataError` where it is damaged or of another schema."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("schema") != SCHEMA:
                raise DataError(
                    f"evaluation schema {values.get('schema')}; this ldmkit reads {SCHEMA}", where=str(path)
                )
            return cls.from_json(values)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"not an evaluation: {error}", hint="run `ldmkit evaluate` again", where=str(path)
            ) from error


def fixed(value: float, digits: int) -> str:
    """A number with so many digits after the point, and no minus before a zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _figure(values: Mapping[str, Any]) -> Figure:
    interval = values.get("interval")
    return Figure(
        **{
            **values,
            "value": float(values["value"]),
            "interval": None if interval is None else (float(interval[0]), float(interval[1])),
            "beside": {name: float(value) for name, value in values.get("beside", {}).items()},
            "differences": {name: (float(d[0]), float(d[1])) for name, d in values.get("differences", {}).items()},
            "axes": tuple(values.get("axes", ("", ""))),
            "series": {name: tuple(map(float, curve)) for name, curve in values.get("series", {}).items()},
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
