"""The evaluations of a run besides its own: sweeps as curves, all others as a table. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ldmkit.evaluation.report.charts import Band, line_chart
from ldmkit.evaluation.report.record import Record
from ldmkit.evaluation.report.tables import plain, table
from ldmkit.evaluation.results import Results
from ldmkit.evaluation.store import Kept, comparable, key


def evaluations(record: Record) -> str:
    """What was measured later, or otherwise."""
    others = [each for each in record.evaluations if not _shown(each.results, record.results)]
    return sweeps([each for each in others if "sweep" in each.results.settings]) + _others(others)


def _shown(results: Results, own: Results | None) -> bool:
    """Whether its figures stand among those of the run."""
    return own is not None and "sweep" not in results.settings and comparable(own, results)


def sweeps(kept: Sequence[Kept]) -> str:
    """The newest sweep over each setting: a chart a figure, its value and interval at each value."""
    newest: dict[str, list[Results]] = {}
    for each in kept:
        sweep = each.results.settings["sweep"]
        there = newest.get(str(sweep["over"]), [])
        same = bool(there) and there[0].settings["sweep"]["began"] == sweep["began"]
        newest[str(sweep["over"])] = [*there, each.results] if same else [each.results]
    return "".join(_sweep(over, results) for over, results in newest.items())


def _sweep(over: str, results: Sequence[Results]) -> str:
    names = dict.fromkeys(key(figure) for each in results for figure in each.figures)
    charts = [_chart(over, name, results) for name in names]
    return f'<h3>By {escape(over)}</h3><div class="charts">{"".join(charts)}</div>'


def _chart(over: str, name: tuple[str, str, str | None], results: Sequence[Results]) -> str:
    values = [each.settings["sweep"]["value"] for each in results]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    band, label, beside = Band([], []), "", dict[str, list[tuple[float, float]]]()
    for index, (value, each) in enumerate(zip(values, results, strict=True)):
        figure = next((one for one in each.figures if key(one) == name), None)
        if figure is None:
            continue
        x = float(value) if numeric else float(index + 1)
        label = f"{figure.label}{f' ({figure.unit})' if figure.unit not in ('', 'fraction', 'gain') else ''}"
        scale = 100.0 if figure.unit == "fraction" else 1.0
        band.curve.append((x, scale * figure.value))
        if figure.interval is not None:
            band.bounds.append((x, scale * figure.interval[0], scale * figure.interval[1]))
        if figure.baseline is not None:
            beside.setdefault(figure.baseline, []).append((x, scale * figure.beside[figure.baseline]))
    if label and scale == 100.0:
        label += " (%)"
    axis = over if numeric else f"{over}: {', '.join(map(plain, values))}"
    return line_chart({"samples": band.curve, **beside}, title=label, x_label=axis, log=False, bounds=band.bounds)


def _others(kept: Sequence[Kept]) -> str:
    """A row an evaluation: how it was made, and what it found."""
    rows = []
    for each in reversed(kept):
        results = each.results
        how = {**results.sampling, "n": results.n, "seed": results.seed}
        how |= {name: value for name, value in results.settings.items() if name in ("weights", "step", "without")}
        rows.append(
            {
                "kept in": f"evaluations/{each.folder.name}",
                "when": results.made,
                "how": ", ".join(f"{name} {plain(value)}" for name, value in how.items()),
                "found": "; ".join(f"{f.label} {f.show(f.value)}" for f in results.figures) or "nothing",
            }
        )
    return f"<details><summary>Other evaluations ({len(rows)})</summary>{table(rows)}</details>" if rows else ""
