"""A conditioner's widget -> components on the page, and what a person did with them -> what the command line would be given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio as gr

from ldmkit import Conditioner, UsageError
from ldmkit.conditioning.widgets import (
    Choice,
    Choices,
    Number,
    Numbers,
    Text,
    Widget,
)
from ldmkit_demo import files
from ldmkit_demo.painter import PAINTED, painter

MOST_TEXT = 10_000  # characters
MOST_MENU = 8  # names that are shown all at once


@dataclass(frozen=True)
class Given:
    """What one condition was given: the `str` for `from_user`, and how the command line says it, beside the files it names."""

    value: str
    shown: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Input:
    """The input of one slot.

    Attributes:
        size: (h, w) of the model's images: what is painted is as large.
        paths: whether a text may be the path of a file of this machine, for `from_user` would read it: then it is refused.
    """

    slot: str
    widget: Widget
    size: tuple[int, int]
    paths: bool

    @classmethod
    def of(cls, slot: str, conditioner: Conditioner, size: tuple[int, int]) -> Input:
        own = type(conditioner).widget is not Conditioner.widget
        widget = conditioner.widget()
        return cls(slot, widget, size, paths=isinstance(widget, Text) and not own)

    @cached_property
    def components(self) -> list[gr.components.Component]:
        """Drawn where it is first asked for."""
        widget = self.widget
        if isinstance(widget, PAINTED):
            return [painter(widget, self.size, self.slot)]
        if isinstance(widget, Text):
            return [_text(widget)]
        if isinstance(widget, Choice):
            return [_menu(widget)]
        if isinstance(widget, Choices):
            return [gr.CheckboxGroup(list(widget.names), show_label=False, container=False)]
        numbers = widget.numbers if isinstance(widget, Numbers) else (widget,)
        optional = isinstance(widget, Numbers) and widget.optional
        return [part for number in numbers for part in _slider(number, optional)]

    def given(self, values: Sequence[Any], folder: Path) -> Given:
        """What the components hold, files written to `folder`. Raises UsageError for what is none of the widget's."""
        widget = self.widget
        if isinstance(widget, PAINTED):
            return self._painted(str(values[0] or ""), folder)
        if isinstance(widget, Text):
            return self._plain(self._text(values[0]))
        if isinstance(widget, Choice):
            return self._plain(self._named(values[0], widget.names))
        if isinstance(widget, Choices):
            return self._plain(", ".join(self._named(name, widget.names) for name in values[0] or ()))
        if isinstance(widget, Number):
            return self._plain(f"{self._number(values[0], widget):.6g}")
        pairs = list(zip(values[::2], values[1::2], strict=True)) if widget.optional else [(True, v) for v in values]
        chosen = {
            number.name: float(f"{self._number(value, number):.6g}")
            for number, (use, value) in zip(widget.numbers, pairs, strict=True)
            if use
        }
        return self._plain(json.dumps(chosen))

    def _plain(self, text: str) -> Given:
        text = f" {text}" if text.startswith("@") else text  # on the command line @ is a file of values
        return Given(text, text)

    def _text(self, value: Any) -> str:
        text = "" if value is None else str(value)
        if len(text) > MOST_TEXT:
            raise UsageError(f"{self.slot}: a text has at most {MOST_TEXT} characters; this one has {len(text)}")
        if self.paths and files.names_a_file(text):
            raise UsageError(
                f"{self.slot}: this page reads no file of the machine it runs on, and {text!r:.80} could be one's name",
                hint="on the command line it is read: ldmkit sample",
            )
        return text

    def _named(self, value: Any, names: Sequence[str]) -> str:
        if value not in names:
            raise UsageError(
                f"{self.slot}: nothing is chosen" if value is None else f"{self.slot}: there is no {value!r}"
            )
        return str(value)

    def _number(self, value: Any, number: Number) -> float:
        what = f"{self.slot}: {number.name or 'the number'}"
        if not isinstance(value, int | float) or not number.low <= value <= number.high:
            raise UsageError(f"{what} lies from {number.low:g} to {number.high:g}; given: {value}")
        return float(value)

    def _painted(self, text: str, folder: Path) -> Given:
        paths = files.write(self.widget, text, self.slot, self.size, folder)
        if isinstance(paths, str):
            return Given(paths, paths)
        return Given(",".join(map(str, paths)), ",".join(path.name for path in paths), tuple(paths))


def _text(widget: Text) -> gr.Textbox:
    return gr.Textbox(
        lines=widget.lines,
        placeholder=widget.placeholder,
        show_label=False,
        container=False,
        max_length=MOST_TEXT,
    )


def _menu(widget: Choice) -> gr.components.Component:
    """All names at once where they are few, else a menu that can be searched."""
    names = list(widget.names)
    if len(names) <= (2 * MOST_MENU if max(map(len, names)) < 3 else MOST_MENU):
        return gr.Radio(names, value=names[0], show_label=False, container=False)
    return gr.Dropdown(names, value=names[0], show_label=False, container=False, filterable=True)


def _slider(number: Number, optional: bool) -> list[gr.components.Component]:
    """A slider, after a box to leave it out where `optional`."""
    start = number.value if number.value is not None else (number.low + number.high) / 2
    step = number.step or float(f"{(number.high - number.low) / 200:.1g}")
    slider = gr.Slider(
        number.low, number.high, value=start, step=step, label=number.name or "value", info=number.help or None
    )
    return [gr.Checkbox(True, label=f"{number.name} is known"), slider] if optional else [slider]
