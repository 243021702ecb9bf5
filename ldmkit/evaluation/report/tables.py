"""Tables and plain values of a report. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values; nested mappings become ``outer.inner``."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(plain(value))}</td></tr>" for name, value in _flat(values).items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>' if rows else ""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mappings as rows, their keys as columns."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))

    def numeric(column: str) -> str:
        values = [row[column] for row in rows if row.get(column) is not None]
        return ' class="number"' if values and all(type(v) in (int, float) for v in values) else ""

    head = "".join(f"<th{numeric(column)}>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{numeric(column)}>{escape(plain(row.get(column)))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="card scroll"><table class="plan"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def duration(seconds: float) -> str:
    """41 s, 3:05 min, 2:10 h."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out


def plain(value: Any) -> str:
    """A JSON value as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if value else "0"  # and never -0
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)
